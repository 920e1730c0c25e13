"""The harness itself: starts of processes, the DAG's own time, and work of the paper's size.

What the paper's archives would give is imitated in a temporary folder: results of every run with
made-up numbers, SBD's count of images as links to one generated image. Nothing of it is kept.
"""

import io
import os
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import psutil
from PIL import Image
from scipy.io import savemat

from fcn.data.hha import Camera, hha
from fcn.data.prepare import prepare
from fcn.data.scenes import scene
from fcn.errors import UserError
from fcn.files import digest, write_json
from fcn.nets import build
from fcn.schema import CONFIG, ROOT, protocol, read_yaml
from fcn.spec import Run, Suite
from fcn.suites import load_suite
from fcn.weights.named import named_tensors, save

POLL_SECONDS = 0.05
GIGABYTE = 10**9
SBD = {"train": 8498, "val": 2857}  # images of its lists (Hariharan et al. 2011)
LOGGED = 20  # updates between two rows of loss.csv
TEST_IMAGES: int = protocol("test_sets")["voc2011"]["images"]
TEST_SET = "voc2012test"


def measured(command: list[str], cwd: Path = ROOT) -> dict[str, Any]:
    """Seconds (wall, processor), status, output, and the most memory that a command held.

    Memory (bytes) is of all its processes together: proportional (shared pages count once) on
    Linux, elsewhere resident.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    peak = 0
    with (
        TemporaryFile("w+") as output,  # a pipe would fill up
        subprocess.Popen(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT) as child,
    ):
        first = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, sum(_memory(p) for p in _family(first)))
            try:
                child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "status": child.returncode,
        "output": said,
        "peak_bytes": peak,
    }


def _family(first: psutil.Process) -> list[psutil.Process]:
    try:
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:  # it has ended
        return 0


def _row(
    what: str, found: dict[str, Any], seconds: float | None, memory: float | None
) -> dict[str, Any]:
    """One measurement beside its goals; a command that failed has met none."""
    fine = found["status"] == 0
    return {
        "what": what,
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "peak_bytes": found["peak_bytes"],
        "status": found["status"],
        "goal_seconds": seconds,
        "goal_bytes": memory,
        "met": fine
        and (seconds is None or found["seconds"] < seconds)
        and (memory is None or found["peak_bytes"] < memory),
        "said": "" if fine else found["output"].strip()[-300:],
    }


def harness(images: dict[str, int] | None = None, seeds: int = 6) -> list[dict[str, Any]]:
    """``snakemake -n`` on the finished paper, its report with more seeds, SBD prepared, HHA.

    Args:
        images: of SBD's lists (default: as many as it has).
        seeds: of every run in the report; the plan of the finished suite has three at most.
    """
    images = images or SBD
    rows = []
    with TemporaryDirectory(prefix="fcn-bench-") as scratch:
        tree = Path(scratch) / "tree"
        count = finished_tree(tree, load_suite("paper", seeds))
        python = [sys.executable, "-m"]
        looked = min(3, seeds)
        look = measured(
            [*python, "snakemake", "-n", "--cores", "2", "--config", f"seeds={looked}"], tree
        )
        if look["status"] == 0 and "Nothing to be done" not in look["output"]:
            look["status"] = 1
        what = f"snakemake -n, the paper's suite finished, {looked} seeds"
        rows.append(_row(what, look, 5.0, None))
        report = measured([*python, "fcn", "report", "--seeds", str(seeds)], tree)
        what = f"report of {count} trainings and their scores, {TEST_IMAGES} images each"
        rows.append(_row(what, report, 20.0, GIGABYTE))
        data = Path(scratch) / "data"
        imitated_sbd(data, images)
        command = [*python, "fcn", "prepare", "sbd", "--data-dir", str(data), "--threads", "2"]
        what = f"prepare SBD, {sum(images.values()):,} images, 2 processes"
        rows.append(_row(what, measured(command), None, 2 * GIGABYTE))
    what = "HHA of a depth image of 640x480, on one core"
    rows.append(_row(what, _hha(), 0.5, None))
    return rows


def processes(
    suite: Suite, run: Run, images: int = 1456, labelled: int = 4
) -> list[dict[str, Any]]:
    """Stages that the demo lacks, each in a process of its own on generated input.

    ``extract`` of an archive with so many test images of VOC 2012 (their number), ``submission``
    of ``labelled`` of them and ``predict`` of one, by the net of ``run`` with random weights. The
    archives of ``fetch`` are on other machines: its memory is in the logs of a tree that has them.
    """
    rows = []
    with TemporaryDirectory(prefix="fcn-bench-") as scratch:
        data, results, out = (Path(scratch) / name for name in ("data", "results", "out"))
        test_set = read_yaml(CONFIG / "datasets.yaml")[TEST_SET]
        image = imitated_test(data, test_set, images, labelled)
        classes = read_yaml(CONFIG / "datasets.yaml")["voc2012"]["classes"]
        weights = imitated_training(run, classes, results)
        fcn = [sys.executable, "-m", "fcn"]
        folders = ["--data-dir", str(data)]
        on = ["--device", "cpu", "--threads", "2"]

        def add(stage: str, what: str, arguments: list[str]) -> None:
            found = measured([*fcn, stage, *arguments])
            rows.append({"stage": stage, **_row(what, found, None, None)})

        add("extract", f"an archive of {images:,} images", [*test_set["archives"], *folders])
        prepare(TEST_SET, test_set, data)
        what = f"{labelled} images by {run.title}"
        options = ["--suite", suite.name, *folders, "--results", str(results), *on]
        add("submission", what, [run.id, *options])
        options = ["--net", "auto", "--weights", str(weights), "--out", str(out), *on]
        add("predict", f"an image of 500x375 by {run.title}", [*options, str(image)])
    return rows


def _hha(images: int = 5) -> dict[str, Any]:
    """As ``measured``, without memory: processor seconds of an image, the mean over scenes."""
    size = (480, 480), (640, 640)
    depths = [scene(0, "bench", i, size).depth for i in range(images)]
    started = time.process_time()
    for depth in depths:
        hha(depth, None, Camera(518.9, 519.5, (640 + 1) / 2, (480 + 1) / 2))
    seconds = (time.process_time() - started) / images
    return {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "status": 0,
        "output": "",
        "peak_bytes": None,
    }


# ------------------------------------------------------------------------------------- imitations


def finished_tree(place: Path, suite: Suite) -> int:
    """A tree in which ``suite`` has run, with made-up numbers; returns how many results it has.

    Images, weights and predictions are empty files: the report leaves its examples out.
    """
    place.mkdir(parents=True)
    for name in ("Snakefile", "config", "fcn", "profiles", "workflow"):
        (place / name).symlink_to(ROOT / name)
    generator = np.random.default_rng(0)
    curves: dict[int, str] = {}
    count = 0
    for run in suite.runs.values():
        classes = _classes(suite, run)
        for seed in run.seeds:
            _result(place / "results", run, seed, classes, generator, curves)
            count += 1
    for sidecar in _sidecars(suite):
        write_json(place / sidecar, {})
    for name in ("architecture", "classifier"):
        write_json(place / "results" / f"{name}.json", {"nets": {}})
    for suffix in ("html", "csv", "md", "tex"):
        target = place / "reports" / f"tables.{suffix}"
        target.parent.mkdir(exist_ok=True)
        target.touch()
    now = time.time()
    for folder in ("data", "results", "reports"):
        for path in (place / folder).rglob("*.*"):  # none is newer than what is made of it
            os.utime(path, (now, now))
    return count


def _classes(suite: Suite, run: Run) -> dict[str, list[str]]:
    classes = suite.datasets[run.dataset]["classes"]
    return {task: classes[task] if isinstance(classes, dict) else classes for task in run.labels}


def _sidecars(suite: Suite) -> Iterator[str]:
    for name in suite.archives:
        yield f"data/archives/{name}.json"
        yield f"data/extracted/{name}.json"
    for name in suite.datasets:
        yield f"data/prepared/{name}/dataset.json"
    for name in suite.backbones:
        yield f"data/backbones/{name}/backbone.json"
    for bound in suite.bounds:
        yield f"results/{bound['dataset']}/bounds.json"


def _result(
    results: Path,
    run: Run,
    seed: int,
    classes: dict[str, list[str]],
    generator: np.random.Generator,
    curves: dict[int, str],
) -> None:
    folder = run.directory(results, seed)
    folder.mkdir(parents=True)
    origin = {
        "code": {"version": "0", "commit": None, "dirty": None},
        "packages": {},
        "device": {"type": "cuda", "name": "none", "count": 1},
        "archives": [],
        "seed": seed,
    }
    common = {
        "run": run.id,
        "dataset": run.dataset,
        "seed": seed,
        "config": run.config,
        "config_hash": run.hash,
        "provenance": origin,
    }
    tasks, counts = {}, {}
    for task, names in classes.items():
        n = len(names)
        each = generator.integers(0, 30, (TEST_IMAGES, n, n))
        each[:, range(n), range(n)] *= n
        truth, predicted = each.sum(2), each.sum(1)
        right = each[:, range(n), range(n)]
        counts[f"{task}_true_positive"], counts[f"{task}_truth"] = right, truth
        counts[f"{task}_predicted"] = predicted
        matrix = each.sum(0)
        iu = right.sum(0) / (truth.sum(0) + predicted.sum(0) - right.sum(0))
        tasks[task] = {
            "pixel_accuracy": float(right.sum() / matrix.sum()),
            "mean_accuracy": float(np.mean(right.sum(0) / truth.sum(0))),
            "mean_iu": float(iu.mean()),
            "frequency_weighted_iu": float((truth.sum(0) * iu).sum() / truth.sum()),
            "per_class_iu": dict(zip(names, iu.tolist(), strict=True)),
            "confusion": matrix.tolist(),
        }
    metrics = {**common, "split": run.split, "images": TEST_IMAGES, "subset": False}
    write_json(folder / "metrics.json", {**metrics, "tasks": tasks, "seconds": 60.0})
    ids = np.array([f"{i:06d}" for i in range(TEST_IMAGES)])
    np.savez_compressed(folder / "per_image.npz", ids=ids, **counts)  # type: ignore[arg-type]
    recipe = run.config["recipe"]
    updates = recipe["images"] // recipe["batch"] if recipe else 0
    speed = {"updates": updates, "images": updates, "seconds": 1e3, "images_per_second": 1.0}
    train = {**speed, "loss": 1.0, "weights_sha256": "0" * 64, "peak_memory_bytes": 1}
    write_json(folder / "train.json", {**common, **train})
    if updates not in curves:
        lines = [
            f"{u},{u},{u / 10},{1 + 100 / (100 + u)},0.001"
            for u in range(LOGGED, updates + 1, LOGGED)
        ]
        curves[updates] = "\n".join(["update,images,seconds,loss,learning_rate", *lines, ""])
    (folder / "loss.csv").write_text(curves[updates])
    (folder / "validation.csv").write_text(
        "update,images,seconds,pixel_accuracy,mean_accuracy,mean_iu,frequency_weighted_iu\n"
    )
    for name in ("model.safetensors", "predictions.json.gz"):
        (folder / name).touch()
    if run.time and seed == run.seeds[0]:
        write_json(folder / "timing.json", {**common, "input": [500, 500], "protocols": {}})


def generated_image() -> Image.Image:
    """500x375 pixels of smooth noise."""
    small = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((500, 375))


def imitated_sbd(data: Path, images: dict[str, int]) -> None:
    """An extracted SBD of so many images, all of them links to one generated image and label."""
    root = data / "extracted" / "benchmark.tgz" / "benchmark_RELEASE" / "dataset"
    generator = np.random.default_rng(1)
    for folder in ("img", "cls"):
        (root / folder).mkdir(parents=True)
    generated_image().save(root / "image.jpg")
    label = np.repeat(np.repeat(generator.integers(0, 21, (15, 20)), 25, 0), 25, 1)
    savemat(
        root / "label.mat", {"GTcls": {"Segmentation": label.astype(np.uint8)}}, do_compression=True
    )
    number = 0
    for split, count in images.items():
        ids = [f"2008_{number + i:06d}" for i in range(count)]
        number += count
        (root / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
        for id in ids:
            (root / "img" / f"{id}.jpg").hardlink_to(root / "image.jpg")
            (root / "cls" / f"{id}.mat").hardlink_to(root / "label.mat")
    archive = {"name": "benchmark.tgz", "sha256": None, "size": 0, "subset": True}
    write_json(data / "extracted" / "benchmark.tgz.json", {"archive": archive, "members": 0})


def imitated_test(data: Path, definition: dict[str, Any], images: int, listed: int) -> Path:
    """VOC's test images as a fetched archive, all of them one generated image, which is returned.

    The list of the archive has ``listed`` of them.
    """
    (name,) = definition["archives"]
    archive = data / "archives" / name
    archive.parent.mkdir(parents=True)
    image, ids = data / "image.jpg", [f"2008_{i:06d}" for i in range(images)]
    generated_image().save(image)
    text = "".join(f"{id}\n" for id in ids[:listed]).encode()
    with tarfile.open(archive, "w") as tar:
        for id in ids:
            tar.add(image, f"{definition['root']}/JPEGImages/{id}.jpg")
        member = tarfile.TarInfo(f"{definition['root']}/ImageSets/Segmentation/test.txt")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    facts = {"size": archive.stat().st_size, "sha256": digest(archive)}
    about = {"name": name, "url": "generated", "subset": True, "verified_by": "nothing"}
    write_json(archive.with_name(f"{name}.json"), about | facts)
    return image


def imitated_training(run: Run, classes: list[str], results: Path) -> Path:
    """What a training leaves, with random weights; returns their file."""
    folder = run.directory(results, run.seeds[0])
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    net = build(run.config["net"], {"semantic": len(classes)})
    about = {"net": run.config["net"], "classes": {"semantic": classes}, "run": run.id}
    save(weights, named_tensors(net), about | {"input": run.config["input"], "labels": run.labels})
    trained = {"config_hash": run.hash, "weights_sha256": digest(weights), "subset": True}
    write_json(folder / "train.json", trained | {"provenance": {"archives": []}})
    return weights


# ------------------------------------------------------------------------------- the DAG's own time


def process_start(trials: int = 5) -> float:
    """Seconds until a training's process has imported what it needs; the median."""
    samples = []
    for _ in range(trials):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fcn.__main__, fcn.train"], check=True)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


_STAMP = re.compile(r"^\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]$", re.MULTILINE)


def dag(folder: Path) -> dict[str, Any]:
    """Of a finished Snakemake run: its wall time, its jobs' time and memory, and idle time.

    ``folder``: a working tree with logs/**/*.tsv and .snakemake/log. ``snakemake_share`` is the
    share of the wall time in which no job ran; ``stages``: jobs, seconds and the largest resident
    set (bytes) of each.
    """
    logs = sorted((folder / ".snakemake" / "log").glob("*.log"))
    stages = _stages(folder / "logs")
    if not logs or not stages:
        raise UserError(
            f"--demo {folder}: no Snakemake log with measured jobs; run the demo there."
        )
    text = max(logs, key=lambda path: path.stat().st_size).read_text(encoding="utf-8")
    cores = (
        int(m.group(1)) if (m := re.search(r"^Provided cores: (\d+)", text, re.MULTILINE)) else 1
    )
    began = re.search(r"^  Date: (.+)$", text, re.MULTILINE)
    stamps = [datetime.strptime(s, "%a %b %d %H:%M:%S %Y") for s in _STAMP.findall(text)]
    if began is None or len(stamps) < 2:
        raise UserError(f"--demo {folder}: its Snakemake log has no times.")
    first = datetime.strptime(began.group(1), "%Y-%m-%d %H:%M:%S")
    wall = (stamps[-1] - first).total_seconds()
    done = sum(stage["seconds"] for stage in stages)
    return {
        "wall_seconds": wall,
        "cores": cores,
        "jobs": sum(stage["jobs"] for stage in stages),
        "job_seconds": done,
        "busy": min(1.0, done / (wall * cores)),
        "snakemake_share": _idle_share(text, first, stamps[-1]),
        "stages": stages,
    }


def logged(folder: Path) -> dict[str, Any]:
    """Jobs, seconds and largest resident set of each stage whose logs a folder ``logs`` holds.

    ``tree``: the name of the working tree that the folder is of, not its place.
    """
    stages = _stages(folder)
    if not stages:
        raise UserError(
            f"--logs {folder}: no STAGE/*.tsv of measured jobs; give a tree's folder logs."
        )
    place = folder.resolve()
    return {"tree": (place.parent if place.name == "logs" else place).name, "stages": stages}


def _stages(logs: Path) -> list[dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for path in sorted(logs.rglob("*.tsv")):
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        if len(lines) < 2:
            continue
        record = dict(zip(lines[0], lines[1], strict=False))
        name = path.relative_to(logs).with_suffix("").parts[0]
        stage = stages.setdefault(name, {"stage": name, "jobs": 0, "seconds": 0.0, "peak_bytes": 0})
        stage["jobs"] += 1
        stage["seconds"] += float(record["s"])
        resident = record.get("max_rss", "NA")  # MiB; NA where a job was too short to be asked
        if resident not in ("NA", "-"):
            stage["peak_bytes"] = max(stage["peak_bytes"], int(float(resident) * 2**20))
    return sorted(stages.values(), key=lambda stage: -stage["seconds"])


def _idle_share(text: str, first: datetime, last: datetime) -> float:
    """Share of the wall time in which no job ran (starts and ends are logged to the second)."""
    running, idle, since = 0, 0.0, first
    moment = first
    for line in text.splitlines():
        stamp = _STAMP.match(line)
        if stamp:
            moment = datetime.strptime(stamp.group(1), "%a %b %d %H:%M:%S %Y")
        elif re.match(r"^(local)?(rule|checkpoint) \w+:$", line):
            if running == 0:
                idle += (moment - since).total_seconds()
            running += 1
        elif line.startswith(("Finished jobid:", "Error in rule")):
            running = max(0, running - 1)
            if running == 0:
                since = moment
    if running == 0:
        idle += (last - since).total_seconds()
    return idle / max((last - first).total_seconds(), 1.0)
