"""``python -m fcn STAGE``: every stage of the DAG, and the tools that stand on their own."""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that spin at a barrier stall each other when several jobs share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fcn.arguments import parser
from fcn.errors import UserError
from fcn.files import at_home, read_object
from fcn.schema import ROOT, unknown
from fcn.spec import Run, Suite, contents_hash, fingerprint, source_hash
from fcn.suites import load_suite


def _suite(args: argparse.Namespace) -> Suite:
    seeds, precision = getattr(args, "seeds", None), getattr(args, "precision", None)
    return load_suite(args.suite, seeds, precision)


def _known(kind: str, name: str, known: dict[str, Any]) -> dict[str, Any]:
    if name not in known:
        raise UserError(unknown(kind, name, known))
    definition: dict[str, Any] = known[name]
    return definition


# The options that a stage is given when another one advises to run it first, with their defaults.
_USUAL = {"suite": "paper", "precision": None, "data_dir": Path("data"), "results": Path("results")}
_PASSED_ON = {
    "fetch": ("suite", "data_dir"),
    "extract": ("data_dir",),
    "prepare": ("suite", "data_dir"),
    "backbone": ("suite", "data_dir"),
    "train": tuple(_USUAL),
}


def _command(stage: str, args: argparse.Namespace) -> str:
    """The command of another stage, on the same suite and folders, to be copied."""
    words = ["python", "-m", "fcn", *stage.split()]
    for option in _PASSED_ON[stage.split()[0]]:
        value = getattr(args, option, _USUAL[option])
        if value != _USUAL[option]:
            words += [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _need(path: Path, stage: str, args: argparse.Namespace) -> None:
    """UserError where a file that another stage makes is not there, naming that stage."""
    if not path.exists():
        raise UserError(f"{path}: no such file; first run: {_command(stage, args)}")


def _need_trained(run: Run, args: argparse.Namespace) -> None:
    for name in ("train.json", "model.safetensors"):
        path = run.directory(args.results, args.seed) / name
        _need(path, f"train {run.id} --seed {args.seed}", args)


def _fetch(args: argparse.Namespace) -> None:
    from fcn.data.archives import fetch

    definition = _known("archive", args.name, _suite(args).archives)
    fetch(args.name, definition, args.data_dir, args.mirror, args.mirror_is_subset)


def _extract(args: argparse.Namespace) -> None:
    from fcn.data.archives import extract

    _need(args.data_dir / "archives" / f"{args.name}.json", f"fetch {args.name}", args)
    extract(args.name, args.data_dir)


def _prepare(args: argparse.Namespace) -> None:
    from fcn.data.prepare import SEG11VALID, check_seg11valid, prepare

    suite = _suite(args)
    definition = _known("data set", args.name, suite.datasets)
    for archive in definition.get("archives", []):
        sidecar = suite.sidecar(archive)
        stage = "extract" if sidecar.startswith("extracted") else "fetch"
        _need(args.data_dir / sidecar, f"{stage} {archive}", args)
    info = prepare(args.name, definition, args.data_dir, workers=args.threads)
    if args.name in SEG11VALID and all(
        (args.data_dir / "prepared" / name).exists() for name in SEG11VALID
    ):
        print(check_seg11valid(args.data_dir), file=sys.stderr)
    for note in info["notes"]:
        print(f"{args.name}: {note}", file=sys.stderr)


def _backbone(args: argparse.Namespace) -> None:
    definition = _known("backbone", args.name, _suite(args).backbones)
    if "pretrain" in definition:
        _threads(args)
        from fcn.pretrain import pretrain

        pretrain(args.name, definition, args.data_dir)
        return
    archive = definition["archive"]
    _need(args.data_dir / "archives" / f"{archive}.json", f"fetch {archive}", args)
    from fcn.weights.backbone import convert

    about = convert(args.name, definition, args.data_dir)
    for what in ("missing_layers", "unused_layers"):
        layers = ", ".join(about[what])
        if layers:
            print(f"{args.name}: {what.replace('_', ' ')}: {layers}", file=sys.stderr)


def _threads(args: argparse.Namespace) -> None:
    """Before any tensor: how many threads compute, and what becomes of freed memory."""
    import torch

    from fcn.device import keep_memory

    keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)


def _workers(args: argparse.Namespace, device_type: str) -> int:
    """Loader processes: on a GPU all but one of the threads; on the CPU the net needs them."""
    if args.workers is not None:
        return int(args.workers)
    threads = args.threads or min(16, _cores())
    return max(1, threads - 1) if device_type == "cuda" else 0


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _run(args: argparse.Namespace, training: bool = False) -> Run:
    """The run that is asked for; the data sets that it needs must be prepared."""
    suite = _suite(args)
    run = suite.run(args.run)
    for name in run.datasets if training else [run.dataset]:
        path = args.data_dir / "prepared" / name / "dataset.json"
        _need(path, f"prepare {name}", args)
        definition, about = suite.datasets[name], read_object(path)
        wanted, again = contents_hash(definition), _command(f"prepare {name}", args)
        if about.get("definition", wanted) != wanted:  # older files do not say
            raise UserError(f"{path}: of another definition of {name}; prepare it again: {again}")
        own = "source" in about and (ROOT / at_home(definition["path"])).is_dir()
        if own and about["source"] != source_hash(definition):
            print(
                f"note: {definition['path']} has changed since {name} was prepared; to take its "
                f"files as they are now: {again}",
                file=sys.stderr,
            )
    return run


def _train(args: argparse.Namespace) -> None:
    run = _run(args, training=True)
    if run.backbone:
        sidecar = args.data_dir / "backbones" / run.backbone / "backbone.json"
        _need(sidecar, f"backbone {run.backbone}", args)
        wanted = fingerprint(_suite(args).backbones[run.backbone])
        if read_object(sidecar).get("definition", wanted) != wanted:  # older files do not say
            again = _command(f"backbone {run.backbone}", args)
            raise UserError(f"{sidecar}: of another definition; make it again: {again}")
    if run.released:
        archive = _suite(args).backbones[run.released]["archive"]
        _need(args.data_dir / "archives" / f"{archive}.json", f"fetch {archive}", args)
    for parent in run.parents.values():
        weights = args.results / parent / f"seed{args.seed}" / "model.safetensors"
        _need(weights, f"train {parent} --seed {args.seed}", args)
    _threads(args)
    from fcn.device import chosen, deterministic
    from fcn.train import train

    with chosen(args.device) as device, deterministic(run.precision == "reference"):
        train(
            run,
            args.seed,
            device=device,
            data_dir=args.data_dir,
            results=args.results,
            workers=_workers(args, device.type),
        )


def _evaluate(args: argparse.Namespace) -> None:
    run = _run(args)
    _need_trained(run, args)
    _threads(args)
    from fcn.device import chosen, deterministic
    from fcn.evaluate import evaluate_run

    with chosen(args.device) as device, deterministic(run.precision == "reference"):
        found = evaluate_run(
            run,
            args.seed,
            device=device,
            data_dir=args.data_dir,
            results=args.results,
            workers=_workers(args, device.type),
        )
    if not sys.stdout.isatty():  # the log of a job that is done ends in its bar (`unfinished`)
        return
    for task, scores in found["tasks"].items():
        value = "none" if scores["mean_iu"] is None else f"{100 * scores['mean_iu']:.1f} %"
        print(f"{run.id} seed {args.seed}: {task} mean IU {value}, {found['images']} images")


def _time(args: argparse.Namespace) -> None:
    run = _run(args)
    _threads(args)
    from fcn.device import chosen
    from fcn.timing import time_run

    with chosen(args.device) as device:
        time_run(
            run,
            args.seed,
            device=device,
            data_dir=args.data_dir,
            results=args.results,
            trials=args.trials,
        )


def _classifier(args: argparse.Namespace) -> None:
    suite = _suite(args)
    _threads(args)
    from fcn.classifier import time_classifier
    from fcn.device import chosen

    with chosen(args.device) as device:
        time_classifier(suite, device=device, results=args.results, trials=args.trials)


def _submission(args: argparse.Namespace) -> None:
    from fcn.submission import SPLIT, check_archive, submit, year_of

    year = year_of(args.dataset)
    if args.check and not args.check.is_file():
        raise UserError(f"{args.check}: no such file.")
    if args.check and args.run:
        raise UserError("submission --check: takes an archive and no run.")
    prepared = args.data_dir / "prepared" / args.dataset
    _need(prepared / "dataset.json", f"prepare {args.dataset}", args)
    if args.check:
        from fcn.data.dataset import SegmentationSet

        found = check_archive(args.check, SegmentationSet(prepared, SPLIT, labels=()), year)
        print(f"{args.check}: {found['images']} images, competition {found['competition']}")
        return
    if not args.run:
        raise UserError("submission: name the run (DATASET/RUN), or an archive with --check.")
    suite = _suite(args)
    run = suite.run(args.run)
    folder = run.directory(args.results, args.seed)
    _need_trained(run, args)
    _threads(args)
    from fcn.device import chosen, deterministic

    with chosen(args.device) as device, deterministic(run.precision == "reference"):
        submit(
            run,
            args.seed,
            args.dataset,
            args.out or folder / f"{args.dataset}.tgz",
            runs=suite.runs,
            device=device,
            data_dir=args.data_dir,
            results=args.results,
            workers=_workers(args, device.type),
        )


def _bounds(args: argparse.Namespace) -> None:
    from fcn.bounds import bounds, bounds_of_folder

    if "/" in args.dataset:
        raise UserError(f"bounds: {args.dataset!r} is no name of a data set, it has a /.")
    if not args.labels and (args.classes is not None or args.void is not None):
        raise UserError("bounds: --classes and --void describe the label PNGs of --labels.")
    if args.labels:
        if not args.classes:
            raise UserError("bounds --labels: give the number of classes with --classes.")
        bounds_of_folder(
            args.labels,
            args.classes,
            255 if args.void is None else args.void,
            args.dataset,
            args.split,
            args.results,
        )
    else:
        sidecar = args.data_dir / "prepared" / args.dataset / "dataset.json"
        if not sidecar.exists():
            _known("data set", args.dataset, _suite(args).datasets)
        _need(sidecar, f"prepare {args.dataset}", args)
        bounds(args.dataset, args.split, args.data_dir, args.results)


def _architecture(args: argparse.Namespace) -> None:
    from fcn.architecture import architecture

    architecture(_suite(args), args.results)


def _report(args: argparse.Namespace) -> None:
    from fcn.report import render

    summary = render(_suite(args), args.results, args.data_dir, args.out, images=not args.no_images)
    claims = ", ".join(f"{n} {verdict}" for verdict, n in summary["claims"].items())
    print(f"{args.out / 'tables.html'}: claims: {claims or 'none'}", file=sys.stderr)
    for problem in summary["problems"]:
        print(problem, file=sys.stderr)


def _publish(args: argparse.Namespace) -> None:
    from fcn.report.publish import publish

    files = publish(_suite(args), args.results, args.data_dir, args.out)
    print(f"{args.out}: {len(files)} files", file=sys.stderr)


def _plan(args: argparse.Namespace) -> None:
    from fcn.plan import plan

    print(plan(_suite(args), args.results, args.data_dir))


def _preflight(args: argparse.Namespace) -> None:
    from fcn.plan import check_targets, preflight

    suite = _suite(args)
    check_targets(suite, args.targets)
    preflight(
        suite,
        args.device,
        args.mirror,
        args.data_dir,
        args.results,
        args.targets,
        args.mirror_is_subset,
    )
    print(f"{suite.name}: nothing is missing to start")


def _predict(args: argparse.Namespace) -> None:
    _threads(args)
    from fcn.predict import main

    main(args)


def _bench(args: argparse.Namespace) -> None:
    _threads(args)
    from fcn.bench.run import bench

    bench(
        args.device,
        args.out,
        args.quick,
        args.peer,
        args.weights,
        args.data,
        args.split,
        args.images,
        args.canvas_images,
        args.demo,
        args.logs,
    )
    print(f"{args.out / 'benchmarks.html'}", file=sys.stderr)


def _score(args: argparse.Namespace) -> None:
    from fcn.score import main

    main(args)


_STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "fetch": _fetch,
    "extract": _extract,
    "prepare": _prepare,
    "backbone": _backbone,
    "train": _train,
    "evaluate": _evaluate,
    "time": _time,
    "classifier": _classifier,
    "submission": _submission,
    "bounds": _bounds,
    "architecture": _architecture,
    "report": _report,
    "publish": _publish,
    "plan": _plan,
    "preflight": _preflight,
    "predict": _predict,
    "bench": _bench,
    "score": _score,
}


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a name of a file may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(arguments)
    try:
        _STAGES[args.stage](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space or no permission, a folder where a file is to be, ..
        names = [str(name) for name in (error.filename, error.filename2) if name]
        where = f"{' to '.join(names)}: " if names else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if (sentence := _of_pytorch(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


def _of_pytorch(error: RuntimeError) -> str | None:
    """What an error of PyTorch's that is no fault of ours means; None for any other."""
    torch = sys.modules.get("torch")  # not imported for a stage that does without it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU has too little free memory; take a smaller recipe.batch, precision bf16, or "
            "another GPU (device=cuda:N)."
        )
    if str(error).startswith("DataLoader worker"):  # raised wherever this process is just then
        reason = str(error).split("\n")[0].rstrip(" .")
        return (
            f"a process that decodes images has gone ({reason}), for want of memory or of "
            "/dev/shm perhaps; ask for fewer --workers. A training goes on from its checkpoint."
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
