"""A published record: the small files of a suite's results and its report, without images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn.errors import UserError
from fcn.files import atomic_dir, read_json
from fcn.report import render

if TYPE_CHECKING:
    from fcn.spec import Suite

FILES = (
    "train.json",
    "metrics.json",
    "per_image.npz",
    "timing.json",
    "loss.csv",
    "validation.csv",
    "diverged.json",
)


def publish(suite: "Suite", results: Path, data_dir: Path, out: Path) -> list[str]:
    """Write ``out``: the report, and ``results/`` with numbers, curves and provenance.

    ``per_image.npz`` is among them: the intervals of the claims are made from it.

    Weights, predictions and images of data sets are left out. Absolute paths in the recorded
    commands are cut to their last part: they say nothing to another reader.

    Returns:
        the published files, relative to ``out``.

    Raises:
        UserError: the suite has no result yet, or ``out`` holds anything but an earlier record.
    """
    out = out.resolve()
    _check_place(out, results.resolve())
    sources = [
        results / "architecture.json",
        *([results / "classifier.json"] if suite.classifier else []),
        *(results / b["dataset"] / "bounds.json" for b in suite.bounds),
    ]
    sources += [
        run.directory(results, seed) / name
        for run in suite.runs.values()
        for seed in run.seeds
        for name in FILES
    ]
    found = [path for path in sources if path.exists()]
    if not any(path.name in ("metrics.json", "bounds.json") for path in found):
        raise UserError(f"{results}: no run of the suite {suite.name!r} has been scored yet.")
    with atomic_dir(out) as folder:
        for path in found:
            target = folder / "results" / path.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                text = json.dumps(_without_places(read_json(path)), indent=1)
                target.write_text(text + "\n", encoding="utf-8")
            else:
                shutil.copyfile(path, target)
        shown = replace(suite, name=Path(suite.name).name)  # of a file, without its folder
        render(shown, folder / "results", data_dir, folder, images=False, place=out)
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _check_place(out: Path, results: Path) -> None:
    """UserError where replacing ``out`` would delete anything but an earlier record."""
    if out == results or out in results.parents or results in out.parents:
        raise UserError(f"--out {out}: the results ({results}), or in or above them; name another.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; name a folder.")
    record = (out / "tables.html").is_file() and (out / "results").is_dir()
    if out.is_dir() and any(out.iterdir()) and not record:
        raise UserError(f"--out {out}: holds something that is no earlier record; name another.")


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _cut(item) if key in ("command", "url") else _without_places(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return value


def _cut(command: Any) -> Any:
    if not isinstance(command, str):
        return command
    return " ".join(Path(w).name if w.startswith("/") else w for w in command.split(" "))
