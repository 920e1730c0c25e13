"""What a suite costs, and whether this machine can start it. No PyTorch: it answers at once."""

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests

from fcn.data.subsets import undeclared
from fcn.errors import UserError
from fcn.files import at_home, lookup, read_object
from fcn.schema import ROOT, unknown
from fcn.spec import Run, Suite
from fcn.suites import TABLES_WITHOUT_RUNS

# A training step costs about three forward passes (forward, gradients of features and of weights).
PASSES = 3
# Sustained rates (TFLOP/s) that estimates assume until a run has been measured: of FCN-32s, one
# image a step, on one H100 (docs/speed.md), and of two CPU cores with FCN-GoogLeNet in bf16 and
# with slim nets in fp32.
ASSUMED_GPU = {"fp32": 23.0, "tf32": 85.0, "bf16": 149.0, "reference": 23.0}
ASSUMED_CPU = 0.1
# Downloaded, unpacked and prepared, an archive takes about three times its size.
DISK_FACTOR = 3
PROBE_SECONDS = 6.0
# Columns of config/tables.yaml that only the VOC server can fill, and the test set behind each.
SERVER_SETS = {"voc2011_test": "voc2011test", "voc2012_test": "voc2012test"}
OF_DATA = re.compile(r"(^|/)(archives|extracted|prepared|backbones)/")
TARGETS = ("submission", "released", "classifier")  # beside the tables and results/...
WHOLE = ("all", "report")  # targets that ask for the whole suite


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use, without PyTorch."""
    present = _gpus_present()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])


def _gpus_present() -> int:
    for folder, pattern in (("/proc/driver/nvidia/gpus", "*"), ("/dev", "nvidia[0-9]*")):
        found = len(list(Path(folder).glob(pattern)))
        if found:
            return found
    if not shutil.which("nvidia-smi"):  # all that is there under Windows' Linux
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(re.findall(r"^GPU \d", listed.stdout, re.M))


# ------------------------------------------------------------------------------------ what is asked


def wanted(suite: Suite, targets: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs, with those that they start from, and further data sets behind ``targets``.

    ``targets`` are the words of a Snakemake command: names of tables and paths under ``results/``
    count; where there is none, the whole suite is asked for. What follows from the nets alone, and
    an archive, data set or backbone, needs no run.
    """
    bounds = list(dict.fromkeys(bound["dataset"] for bound in suite.bounds))
    named = [
        word
        for word in targets
        if word in suite.tables or word in TARGETS or word.startswith("results/")
    ]
    if not named and any(
        word == "architecture" or (OF_DATA.search(word) and "=" not in word) for word in targets
    ):
        return [], []
    if not named:
        return list(suite.runs.values()), bounds
    asked: dict[str, Run] = {}
    for run in suite.runs.values():
        names = {row.table for row in run.rows} | ({"released"} if run.released else set())
        names |= {"submission"} if server_sets(suite, run) else set()
        if any(word in names or word.startswith(f"results/{run.id}/") for word in named):
            steps = [run]
            while steps:
                step = steps.pop()
                if step.id not in asked:
                    asked[step.id] = step
                    steps += [suite.runs[parent] for parent in step.parents.values()]
    sets = [name for name in bounds if "bounds" in named or f"results/{name}/bounds.json" in named]
    if "submission" in named:
        sets += {name: None for run in asked.values() for name in server_sets(suite, run)}
    return list(asked.values()), sets


def unfilled(suite: Suite, table: str) -> str:
    """What is wrong with asking for a table that the suite leaves empty; else empty."""
    timed = of_classifier(suite, table)
    filled = any(row.table == table for run in suite.runs.values() for row in run.rows)
    filled |= suite.tables[table].get("kind") in TABLES_WITHOUT_RUNS
    if filled or (timed and suite.classifier):
        return ""
    what = "classifier" if timed else "run"
    return f"no {what} of the suite {suite.name} fills the table {table}."


def of_classifier(suite: Suite, table: str) -> bool:
    """Whether a table has rows that no run fills, but the times of the suite's classifier."""
    sources = [row.get("sources", {}) for row in suite.tables[table].get("rows", [])]
    return any(origin.startswith("classifier.") for of in sources for origin in of.values())


def check_targets(suite: Suite, targets: Sequence[str]) -> None:
    """UserError naming the first word that is no target, or of which the suite has no run."""
    known = [*suite.tables, *TARGETS, *WHOLE, "architecture"]
    for word in targets:
        if "/" not in word and word not in known:
            raise UserError(unknown("target", word, known))
        match word.split("/"):
            case ["results", dataset, name, _, *_] if f"{dataset}/{name}" not in suite.runs:
                raise UserError(f"{word}: {unknown('run', f'{dataset}/{name}', suite.runs)}")
        if word in suite.tables and (problem := unfilled(suite, word)):
            raise UserError(problem)


def server_sets(suite: Suite, run: Run) -> list[str]:
    """The VOC server's test sets that a run's rows have a column for."""
    columns = {c for row in run.rows for c in suite.tables[row.table].get("columns", {})}
    return [name for column, name in SERVER_SETS.items() if column in columns]


def is_done(run: Run, seed: int, results: Path) -> bool:
    """Whether a run is trained and scored with the configuration that it has now."""
    folder = run.directory(results, seed)
    if not (folder / "metrics.json").exists() or not _is_trained(run, seed, results):
        return False
    weights = read_object(folder / "train.json").get("weights_sha256")
    try:
        scored = read_object(folder / "metrics.json")
    except UserError:
        return False  # it is made again
    return bool(scored.get("weights_sha256", weights) == weights)


def _is_trained(run: Run, seed: int, results: Path) -> bool:
    path = run.directory(results, seed) / "train.json"
    return path.exists() and read_object(path).get("config_hash") == run.hash


def unfinished(runs: Iterable[Run], results: Path) -> list[tuple[Run, int]]:
    """Every run and seed that is still to be trained or scored.

    Also the seeds of which only a run that starts from another, itself among ``runs``, has need.
    """
    known = {run.id: run for run in runs}
    left = {
        (run.id, seed): None
        for run in known.values()
        for seed in run.seeds
        if not is_done(run, seed, results)
    }
    steps = list(left)
    while steps:
        name, seed = steps.pop()
        if _is_trained(known[name], seed, results):
            continue
        for parent in known[name].parents.values():
            before = (parent, seed)
            if before in left or parent not in known:
                continue
            if not _is_trained(known[parent], seed, results):
                left[before] = None
                steps.append(before)
    return [(known[name], seed) for name, seed in left]


def archives_needed(
    suite: Suite, runs: Iterable[Run] | None = None, bounds: Iterable[str] | None = None
) -> list[str]:
    """Every archive that data sets and weights come from, each once (default: of the suite)."""
    names: dict[str, None] = {}
    if runs is None:
        runs, bounds = wanted(suite, ())
    for run in runs:
        for dataset in run.datasets:
            names.update(dict.fromkeys(suite.archives_of(dataset)))
        weights = run.backbone or run.released
        if weights and "archive" in suite.backbones[weights]:
            names[suite.backbones[weights]["archive"]] = None
    by_hand = {bound["dataset"] for bound in suite.bounds if "labels" in bound}
    for dataset in (name for name in bounds or () if name not in by_hand):
        names.update(dict.fromkeys(suite.archives_of(dataset)))
    return list(names)


def _absent(names: Iterable[str], data_dir: Path) -> list[str]:
    folder = data_dir / "archives"
    return [n for n in names if not (folder / f"{n}.json").exists() and not (folder / n).exists()]


# ------------------------------------------------------------------------------------ what it costs


def hours(run: Run, results: Path, gpu: bool) -> tuple[float | None, bool]:
    """Hours of training for one seed, and whether ``results`` has them from such a device.

    Without a measurement they follow from the net's forward cost and the assumed rate of a GPU or
    of two CPU cores; None where the cost is not known either.
    """
    recipe = run.config["recipe"]
    if recipe is None:
        return 0.0, False
    for seed in run.seeds:
        path = run.directory(results, seed) / "train.json"
        if path.exists():
            record = read_object(path, "config_hash", "seconds")
            device = lookup(record, ("provenance", "device", "type"))
            if record["config_hash"] == run.hash and device in (None, "cuda" if gpu else "cpu"):
                return record["seconds"] / 3600, True
    if run.gflop is None:
        return None, False
    tflops = ASSUMED_GPU[recipe["precision"]] if gpu else ASSUMED_CPU
    images = recipe["images"] / recipe["patch_keep"]
    return images * PASSES * run.gflop / (tflops * 1e3) / 3600, False


def cost(suite: Suite, results: Path, data_dir: Path) -> str:
    """One sentence about what is left of the suite: trainings, hours, gigabytes."""
    total, measured, without = 0.0, 0, 0
    left = unfinished(suite.runs.values(), results)
    for run, _ in left:
        each, known = hours(run, results, suite.gpu)
        total += each or 0.0
        measured += known
        without += each is None
    device = "one GPU" if suite.gpu else "two CPU cores"
    trained = sum(run.config["recipe"] is not None for run, _ in left)
    text = _count(trained, "training")
    if again := len(left) - trained:
        text += f" and {again} more to score,"
    text += f" for {_count(len(suite.runs), 'run')}"
    guessed = len(left) - measured - without
    if measured or guessed:
        time = f"{total:.1f} hours" if total >= 1 else f"{60 * total:.0f} minutes"
        text += f": about {time} of training on {device}"
    if guessed:
        recipes = [run.config["recipe"] for run, _ in left]
        kinds = {recipe["precision"] for recipe in recipes if recipe} or {"fp32"}
        rates = sorted({ASSUMED_GPU[kind] if suite.gpu else ASSUMED_CPU for kind in kinds})
        text += f" (estimated at {' and '.join(f'{rate:g}' for rate in rates)} TFLOP/s"
        text += f", {measured} from what was measured)" if measured else ")"
    if without:
        text += f", {_count(without, 'training')} without an estimate"
    missing = _absent(archives_needed(suite), data_dir)
    sizes = [suite.archives[name].get("size") for name in missing]
    text += f"; {sum(s for s in sizes if s) / 1e9:.1f} GB in {_count(len(missing), 'archive')}"
    text += " to download"
    if None in sizes:
        text += f" ({sizes.count(None)} of unknown size)"
    return f"{text}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def plan(suite: Suite, results: Path, data_dir: Path) -> str:
    """The runs of a suite, one a line, with seeds, hours and what they start from."""
    lines = [f"{suite.title} ({suite.path})", ""]
    for run in suite.runs.values():
        each, measured = hours(run, results, suite.gpu)
        time = "?" if each is None else f"{each * len(run.seeds):.2f}"
        start = " and ".join(run.parents.values()) or run.backbone or run.released or "random"
        left = len(unfinished([run], results))
        mark = "done" if not left else "measured" if measured else ""
        lines.append(
            f"{run.id:40s} {len(run.seeds)} seed(s) {time:>7s} h {mark:8s} from {start}; "
            f"tables: {', '.join(dict.fromkeys(row.table for row in run.rows)) or 'other runs'}"
        )
    for bound in suite.bounds:
        labels = f" from {bound['labels']}" if "labels" in bound else ""
        lines.append(f"{bound['dataset'] + '/bounds':40s} upper bounds on {bound['split']}{labels}")
    if suite.classifier:
        lines.append(f"{'classifier':40s} times of {suite.classifier['net']}, of section 3.1")
    lines.append("")
    if suite.runs:
        lines.append(
            "Targets: results/DATASET/RUN/seedN/metrics.json, and the names of the tables."
        )
    lines.append(f"To do: {cost(suite, results, data_dir)}")
    archives = archives_needed(suite)
    if archives:
        lines += [f"Archives: {', '.join(archives)}"]
    return "\n".join(lines)


# ----------------------------------------------------------------------------- whether it can start


def preflight(
    suite: Suite,
    device: str,
    mirror: str | None,
    data_dir: Path,
    results: Path = Path("results"),
    targets: Sequence[str] = (),
    subsets: bool = False,
) -> None:
    """UserError where this machine cannot start: no GPU, no way to the archives, no disk.

    Args:
        targets: words of a Snakemake command (``wanted``); what is finished needs nothing.
        subsets: whether the mirror is declared to hold subsets; what came before from it undeclared
            is then a problem.
    """
    if problem := device_problem(device):
        raise UserError(f"{problem}.")
    runs, bounds = wanted(suite, targets)
    left = unfinished(runs, results)
    asked = archives_needed(suite, runs, bounds)
    bounds = [name for name in bounds if not (results / name / "bounds.json").exists()]
    missing = _absent(archives_needed(suite, [run for run, _ in left], bounds), data_dir)
    problems = [*_device_problems(suite, device, bool(left))]
    for name in dict.fromkeys(name for run, _ in left for name in run.datasets):
        path = suite.datasets[name].get("path")
        if path and not (ROOT / at_home(path)).is_dir():
            problems += [f"data set {name}: path {path} is no folder"]
    if subsets:
        sidecars = [data_dir / "archives" / f"{name}.json" for name in asked]
        problems += [said for sidecar in sidecars if (said := undeclared(sidecar, mirror))]
    if missing:
        problems += _source_problems(suite, missing, mirror) or _disk_problems(
            suite, missing, mirror, data_dir
        )
    if problems:
        demo = (
            ""
            if suite.name == "demo"
            else (
                " To see the harness work without a GPU and without data: make demo (or: snakemake "
                "--cores all --config suite=demo)."
            )
        )
        raise UserError(
            f"the suite {suite.name!r} cannot run here: {'; '.join(problems)}. To do in all: "
            f"{cost(suite, results, data_dir)}{demo}"
        )


def device_problem(device: str) -> str:
    """What is wrong with a device's name; empty where nothing is."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        return ""
    return f"device={device} is not one of auto, cpu, cuda, cuda:N"


def _device_problems(suite: Suite, device: str, needed: bool) -> list[str]:
    if device.startswith("cuda") and needed and not gpu_count():
        print(
            f"note: no NVIDIA GPU is visible here; with device={device} each job must find one",
            file=sys.stderr,
        )
    if device == "auto" and suite.gpu and needed and not gpu_count():
        return [
            "no NVIDIA GPU is visible (device=cuda where the jobs find one, as on a cluster; "
            "device=cpu tries without one, for weeks)"
        ]
    return []


def _is_url(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _source_problems(suite: Suite, missing: Sequence[str], mirror: str | None) -> list[str]:
    if mirror and not _is_url(mirror):
        folder = at_home(mirror)
        if not folder.is_dir():
            return [f"mirror={mirror}: no such folder"]
        lacks = [name for name in missing if not (folder / name).exists()]
        return [f"the mirror {mirror} lacks {', '.join(lacks)}"] if lacks else []
    if mirror:
        urls = [f"{mirror.rstrip('/')}/{quote(missing[0])}"]
    else:
        urls = [url for name in missing for url in suite.archives[name].get("urls") or ()]
    one_a_host = {urlsplit(url).netloc: url for url in reversed(urls)}
    if not one_a_host or any_answers(list(one_a_host.values())):
        return []
    hosts = ", ".join(reversed(one_a_host))
    return [
        f"no server answers that has the archives ({hosts}): offline? A folder or server with them "
        "is given by --config mirror=..., an archive of one's own is put into "
        f"{'the mirror' if mirror else 'data/archives'}"
    ]


def any_answers(urls: Sequence[str]) -> bool:
    """Whether one of the servers answers, be it with a refusal, within ``PROBE_SECONDS``."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            # A proxy answers for a server that it cannot reach, with a status of its own.
            answers.put(requests.head(url, timeout=PROBE_SECONDS).status_code < 500)
        except requests.RequestException:
            answers.put(False)

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    try:
        return any(answers.get(timeout=PROBE_SECONDS) for _ in urls)
    except queue.Empty:
        return False


def _disk_problems(
    suite: Suite, missing: Sequence[str], mirror: str | None, data_dir: Path
) -> list[str]:
    if mirror and not _is_url(mirror):
        sizes = [(at_home(mirror) / name).stat().st_size for name in missing]
    else:
        sizes = [suite.archives[name].get("size") or 0 for name in missing]
    absolute = data_dir.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    need, free = DISK_FACTOR * sum(sizes), shutil.disk_usage(existing).free
    if free >= need:
        return []
    return [
        f"{existing} has {free / 1e9:.1f} GB free, archives and data sets take about "
        f"{need / 1e9:.1f} GB"
    ]
