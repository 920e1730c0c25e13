"""What a suite costs, and whether this machine can start it. No PyTorch: this must answer at once."""

import os
import shutil
from pathlib import Path

import requests

from fcn.errors import UserError
from fcn.files import read_json
from fcn.spec import Run, Suite

# A training step costs about three forward passes (forward, gradients of features and of weights).
PASSES = 3
# Sustained rate that estimates assume until a run has been measured: a guess, said to be one.
ASSUMED_TFLOPS = 50.0


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use, without PyTorch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def archives_needed(suite: Suite) -> list[str]:
    """Every archive that the suite's data sets and weights come from, each once."""
    names: dict[str, None] = {}
    for run in suite.runs.values():
        for part in ("train", "test"):
            if run.config[part]:
                names.update(dict.fromkeys(suite.archives_of(run.config[part]["dataset"])))
        weights = run.backbone or run.released
        if weights and "archive" in suite.backbones[weights]:
            names[suite.backbones[weights]["archive"]] = None
    for bound in suite.bounds:
        names.update(dict.fromkeys(suite.archives_of(bound["dataset"])))
    return list(names)


def hours(run: Run, results: Path) -> tuple[float | None, bool]:
    """Hours of training for one seed, and whether they were measured here."""
    recipe = run.config["recipe"]
    if recipe is None:
        return 0.0, True
    for seed in run.seeds:
        path = run.directory(results, seed) / "train.json"
        if path.exists():
            return read_json(path)["seconds"] / 3600, True
    if run.gflop is None:
        return None, False
    images = recipe["images"] / recipe["patch_keep"]
    return images * PASSES * run.gflop / (ASSUMED_TFLOPS * 1e3) / 3600, False


def cost(suite: Suite, results: Path, data_dir: Path) -> str:
    """One sentence: hours, gigabytes."""
    total, unknown = 0.0, 0
    for run in suite.runs.values():
        each, _ = hours(run, results)
        if each is None:
            unknown += 1
        else:
            total += each * len(run.seeds)
    missing = [n for n in archives_needed(suite) if not (data_dir / "archives" / f"{n}.json").exists()]
    sizes = [suite.archives[name].get("size") for name in missing]
    known = sum(size for size in sizes if size)
    jobs = sum(len(run.seeds) for run in suite.runs.values())
    text = (
        f"{len(suite.runs)} runs, {jobs} trainings: about {total:.1f} hours on one device "
        f"(estimated at {ASSUMED_TFLOPS:.0f} TFLOP/s where nothing was measured)"
    )
    if unknown:
        text += f", {unknown} runs without an estimate"
    text += f"; {known / 1e9:.1f} GB in {len(missing)} archives to download"
    if None in sizes:
        text += f" ({sizes.count(None)} of unknown size)"
    return text + "."


def plan(suite: Suite, results: Path, data_dir: Path) -> str:
    """The runs of a suite, one a line, with seeds, hours and what they start from."""
    lines = [f"{suite.title} ({suite.path})", ""]
    for run in suite.runs.values():
        each, measured = hours(run, results)
        time = "?" if each is None else f"{each * len(run.seeds):.2f}"
        start = run.parent or run.backbone or run.released or "random"
        mark = " measured" if measured and each else ""
        lines.append(
            f"{run.id:44s} {len(run.seeds)} seed(s) {time:>7s} h{mark:9s} from {start}; "
            f"tables: {', '.join(dict.fromkeys(r.table for r in run.rows)) or 'other runs'}"
        )
    lines += ["", cost(suite, results, data_dir)]
    archives = archives_needed(suite)
    if archives:
        lines += ["Archives: " + ", ".join(archives)]
    return "\n".join(lines)


def preflight(suite: Suite, device: str, mirror: str | None, data_dir: Path) -> None:
    """UserError where the suite cannot run here: no GPU, no way to its archives, no disk."""
    problems = []
    if suite.gpu and device != "cpu" and not gpu_count():
        problems.append(
            "no NVIDIA GPU is visible (device=cpu would try without one, for weeks)"
        )
    missing = [n for n in archives_needed(suite) if not (data_dir / "archives" / f"{n}.json").exists()]
    if missing and mirror and not mirror.startswith(("http://", "https://")):
        absent = [name for name in missing if not (Path(mirror) / name).exists()]
        if absent:
            problems.append(f"the mirror {mirror} lacks {', '.join(absent)}")
    elif missing:
        first = missing[0]
        urls = [f"{mirror.rstrip('/')}/{first}"] if mirror else suite.archives[first]["urls"]
        if not any(_answers(url) for url in urls):
            problems.append(
                f"none of the hosts of {first} answers (offline? give a folder or server that has "
                "the archives with --config mirror=...)"
            )
    if missing:
        existing = next(p for p in (data_dir.absolute(), *data_dir.absolute().parents) if p.exists())
        need = 3 * sum(suite.archives[name].get("size") or 0 for name in missing)
        free = shutil.disk_usage(existing).free
        if free < need and not (mirror and not problems):
            problems.append(
                f"{existing} has {free / 1e9:.0f} GB free, archives and data sets take about "
                f"{need / 1e9:.0f} GB"
            )
    if problems:
        raise UserError(
            f"the suite {suite.name!r} cannot run here: {'; '.join(problems)}. It costs "
            f"{cost(suite, Path('results'), data_dir)} To see the harness work without GPU and data: "
            "make demo (snakemake --cores all --config suite=demo)."
        )


def _answers(url: str) -> bool:
    try:
        requests.head(url, timeout=5, allow_redirects=True)
    except requests.RequestException:
        return False
    return True
