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

from fcn.errors import UserError
from fcn.files import read_object
from fcn.options import PREDICT_NETS
from fcn.schema import unknown
from fcn.spec import Run, Suite, contents_hash
from fcn.suites import SEED_MAX, load_suite


def _suite(args: argparse.Namespace) -> Suite:
    seeds, precision = getattr(args, "seeds", None), getattr(args, "precision", None)
    return load_suite(args.suite, seeds, precision)


def _known(kind: str, name: str, known: dict[str, Any]) -> dict[str, Any]:
    if name not in known:
        raise UserError(unknown(kind, name, known))
    definition: dict[str, Any] = known[name]
    return definition


MOST_PROCESSES = 4096  # threads or loaders; a typo would fill the memory


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
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)


def _workers(args: argparse.Namespace, device_type: str) -> int:
    """Loader processes: on a GPU all but one of the threads; on the CPU the net needs them."""
    if args.workers is not None:
        return int(args.workers)
    threads = args.threads or os.cpu_count() or 1
    return max(1, threads - 1) if device_type == "cuda" else 0


def _run(args: argparse.Namespace, training: bool = False) -> Run:
    """The run that is asked for; the data sets that it needs must be prepared."""
    suite = _suite(args)
    run = suite.run(args.run)
    for name in run.datasets if training else [run.dataset]:
        path = args.data_dir / "prepared" / name / "dataset.json"
        _need(path, f"prepare {name}", args)
        wanted = contents_hash(suite.datasets[name])
        if read_object(path).get("definition", wanted) != wanted:  # older files do not say
            again = _command(f"prepare {name}", args)
            raise UserError(f"{path}: of another definition of {name}; prepare it again: {again}")
    return run


def _train(args: argparse.Namespace) -> None:
    run = _run(args, training=True)
    if run.backbone:
        sidecar = args.data_dir / "backbones" / run.backbone / "backbone.json"
        _need(sidecar, f"backbone {run.backbone}", args)
    if run.released:
        archive = _suite(args).backbones[run.released]["archive"]
        _need(args.data_dir / "archives" / f"{archive}.json", f"fetch {archive}", args)
    for parent in run.parents.values():
        weights = args.results / parent / f"seed{args.seed}" / "model.safetensors"
        _need(weights, f"train {parent} --seed {args.seed}", args)
    _threads(args)
    from fcn.device import chosen
    from fcn.train import train

    with chosen(args.device) as device:
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
    trained = run.directory(args.results, args.seed) / "train.json"
    _need(trained, f"train {run.id} --seed {args.seed}", args)
    _threads(args)
    from fcn.device import chosen
    from fcn.evaluate import evaluate_run

    with chosen(args.device) as device:
        evaluate_run(
            run,
            args.seed,
            device=device,
            data_dir=args.data_dir,
            results=args.results,
            workers=_workers(args, device.type),
        )


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
    _need(folder / "train.json", f"train {run.id} --seed {args.seed}", args)
    _threads(args)
    from fcn.device import chosen

    with chosen(args.device) as device:
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
        args.demo,
    )
    print(f"{args.out / 'benchmarks.html'}", file=sys.stderr)


def _score(args: argparse.Namespace) -> None:
    from fcn.score import main

    main(args)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _at_most(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if _natural(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        return int(text)

    return number


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()  # a shell leaves the ~ of --data-dir=~/x alone
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}: no such home folder") from None


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fcn", description="Fully convolutional networks: stages and tools."
    )
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, call: Any, text: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        for option in options:
            _OPTIONS[option](sub)
        return sub

    fetch = stage(
        "fetch", _fetch, "Download an archive, verified and resumable.", "suite", "data", "mirror"
    )
    fetch.add_argument("name", metavar="ARCHIVE")
    extract = stage("extract", _extract, "Unpack a fetched archive, once.", "data")
    extract.add_argument("name", metavar="ARCHIVE")
    prepare = stage(
        "prepare", _prepare, "Bring a data set into the one layout.", "suite", "data", "threads"
    )
    prepare.add_argument("name", metavar="DATASET")
    backbone = stage(
        "backbone", _backbone, "Convert or pretrain a backbone.", "suite", "data", "threads"
    )
    backbone.add_argument("name", metavar="BACKBONE")
    for name, call, text in (
        ("train", _train, "Train one run with one seed; continues where it was stopped."),
        ("evaluate", _evaluate, "Score a trained run."),
        ("time", _time, "Time the inference of a run's net."),
    ):
        options = ("suite", "precision", "data", "results", "device", "threads", "seed")
        sub = stage(name, call, text, *options, *(() if name == "time" else ("workers",)))
        sub.add_argument("run", metavar="RUN", help="DATASET/RUN of the suite, or RUN")
        if name == "time":
            sub.add_argument(
                "--trials", type=_positive, default=50, help="trials of the synchronised protocol"
            )
    bounds = stage(
        "bounds", _bounds, "Upper bounds on mean IU from the truth alone.", "data", "results"
    )
    bounds.add_argument("dataset", metavar="DATASET")
    bounds.add_argument("split", metavar="SPLIT")
    bounds.add_argument(
        "--labels",
        type=_path,
        metavar="PATH",
        help="a folder or tar of label PNGs, instead of a prepared data set",
    )
    bounds.add_argument("--classes", type=_positive, metavar="N")
    bounds.add_argument("--void", type=int, metavar="V", help="default: 255")
    classifier = stage(
        "classifier",
        _classifier,
        "Time a classifier on crops against the net on the whole image (section 3.1).",
        "suite",
        "results",
        "device",
        "threads",
    )
    classifier.add_argument(
        "--trials", type=_positive, default=None, help="default: 50 on a GPU, 5 on a CPU"
    )
    submission = stage(
        "submission",
        _submission,
        "Label the VOC server's test images as the archive that it takes, or check one.",
        "suite",
        "data",
        "results",
        "device",
        "threads",
        "seed",
        "precision",
        "workers",
    )
    submission.add_argument(
        "run", nargs="?", metavar="RUN", help="DATASET/RUN of the suite, or RUN"
    )
    submission.add_argument(
        "--dataset", default="voc2012test", metavar="NAME", help="voc2011test or %(default)s"
    )
    submission.add_argument(
        "--out", type=_path, metavar="FILE", help="default: the data set's name .tgz beside the run"
    )
    submission.add_argument(
        "--check", type=_path, metavar="FILE", help="check an archive and make none"
    )
    runs = ("suite", "seeds", "precision", "data", "results")
    architecture = "Describe the nets of a suite."
    stage("architecture", _architecture, architecture, "suite", "seeds", "precision", "results")
    report = stage("report", _report, "Render whatever results exist.", *runs)
    report.add_argument("--out", type=_path, default=Path("reports"), metavar="DIR")
    report.add_argument(
        "--no-images", action="store_true", help="leave out images and label maps of the data sets"
    )
    publish = stage(
        "publish",
        _publish,
        "Copy numbers, curves, provenance and the report, without images, as a record.",
        *runs,
    )
    publish.add_argument("--out", type=_path, required=True, metavar="DIR")
    stage("plan", _plan, "List the runs of a suite with their cost.", *runs)
    start = stage(
        "preflight",
        _preflight,
        "Say what is missing to start a suite.",
        *runs,
        "device",
        "mirror",
    )
    start.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables or files under results/ (default: the whole suite)",
    )
    predict = stage("predict", _predict, "Label images of one's own.", "device", "threads")
    predict.add_argument(
        "--net",
        required=True,
        metavar="NET",
        help=f"{', '.join(PREDICT_NETS)}, or auto: what a file of ours says",
    )
    predict.add_argument(
        "--weights",
        required=True,
        type=_path,
        metavar="FILE",
        help="our .safetensors or a .caffemodel",
    )
    predict.add_argument("--out", required=True, type=_path, metavar="DIR")
    predict.add_argument("--overlay", action="store_true", help="also DIR/STEM_overlay.png")
    predict.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    predict.add_argument("images", nargs="+", type=_path, metavar="IMAGE")
    bench = stage("bench", _bench, "Measure speed against floors and peers.", "device", "threads")
    bench.add_argument("--out", type=_path, default=Path("reports"), metavar="DIR")
    bench.add_argument("--quick", action="store_true", help="fewer rounds")
    for option, text in (
        ("peer", "a checkout of wkentaro/pytorch-fcn to compare with"),
        ("weights", "a run's model.safetensors: agreement of bf16 with fp32 (needs --data)"),
        ("data", "a prepared data set (data/prepared/NAME)"),
        ("demo", "a working tree in which the demo has run: the DAG's own share"),
    ):
        bench.add_argument(f"--{option}", type=_path, metavar="PATH", help=text)
    bench.add_argument("--split", default="val", help="of --data (default: %(default)s)")
    bench.add_argument("--images", type=_positive, default=50, metavar="N", help="of the agreement")
    score = stage("score", _score, "Score label PNGs against truth PNGs.")
    score.add_argument("--truth", type=_path, required=True, metavar="DIR", help="true label PNGs")
    score.add_argument(
        "--pred", type=_path, required=True, metavar="DIR", help="predicted label PNGs"
    )
    score.add_argument("--classes", type=int, required=True, metavar="N", help="classes, 0 to N-1")
    score.add_argument(
        "--void",
        type=int,
        default=255,
        metavar="V",
        help="value of void in the truth (default: %(default)s)",
    )
    score.add_argument("--json", action="store_true", help="print one JSON object")
    return top


_OPTIONS: dict[str, Any] = {
    "suite": lambda p: p.add_argument(
        "--suite",
        default="paper",
        metavar="NAME|FILE",
        help="a suite of config/suites, or a YAML file (default: %(default)s)",
    ),
    "seeds": lambda p: p.add_argument(
        "--seeds", default=None, metavar="N|LIST", help="seeds, instead of the suite's"
    ),
    "precision": lambda p: p.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default=None,
        help="of every training, instead of the recipe's",
    ),
    "data": lambda p: p.add_argument("--data-dir", type=_path, default=Path("data"), metavar="DIR"),
    "results": lambda p: p.add_argument(
        "--results", type=_path, default=Path("results"), metavar="DIR"
    ),
    "device": lambda p: p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N"),
    "seed": lambda p: p.add_argument("--seed", type=_at_most(SEED_MAX), default=0),
    "workers": lambda p: p.add_argument(
        "--workers",
        type=_at_most(MOST_PROCESSES),
        default=None,
        help="processes that load images",
    ),
    "threads": lambda p: p.add_argument(
        "--threads", type=_at_most(MOST_PROCESSES), default=0, help="CPU threads (default: all)"
    ),
    "mirror": lambda p: (
        p.add_argument(
            "--mirror",
            default=None,
            metavar="FOLDER|URL",
            help="serves the archives under their names; then it alone is asked",
        ),
        p.add_argument(
            "--mirror-is-subset",
            action="store_true",
            help="declare that the mirror's archives are subsets of the official ones",
        ),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a name of a file may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(arguments)
    try:
        args.call(args)
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
    except Exception as error:
        torch = sys.modules.get("torch")  # not imported for a stage that does without it
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(
            "error: the GPU has too little free memory; take a smaller recipe.batch, precision "
            "bf16, or another GPU (device=cuda:N).",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
