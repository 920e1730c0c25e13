"""Our side of the report: what every run left on disk, and what is missing or broken.

Nothing here raises for a bad result: a broken file becomes a sentence that the page shows where the
number would stand.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fcn.errors import UserError
from fcn.files import lookup, read_json
from fcn.report.averages import METRICS, of_confusion

if TYPE_CHECKING:
    from fcn.spec import Run, Suite


def shown(path: Path, results: Path) -> str:
    """A path as the page prints it: from the folder that holds ``results``."""
    try:
        return path.resolve().relative_to(results.resolve().parent).as_posix()
    except ValueError:
        return path.name


def finite(value: Any) -> float | None:
    """A finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _read(path: Path, results: Path, needs: dict[str, type]) -> tuple[dict[str, Any], str | None]:
    """A JSON object and None, or an empty dict and what is wrong (None when the file is absent)."""
    if not path.exists():
        return {}, None
    name = shown(path, results)
    try:
        value = read_json(path)
    except (UserError, OSError) as error:
        return {}, str(error).replace(str(path), name)
    if not isinstance(value, dict):
        return {}, f"{name}: not a JSON object; delete it and run the stage that writes it again."
    for key, kind in needs.items():
        if not isinstance(value.get(key), kind):
            return {}, f"{name}: {key} is missing or not a {kind.__name__}."
    for key in ("notes", "random_layers"):
        if not isinstance(value.get(key), list | None):
            return {}, f"{name}: {key} is not a list."
    for key, kind in (("code", dict), ("device", dict), ("packages", dict), ("archives", list)):
        part = lookup(value, ("provenance", key))
        entries = part if isinstance(part, list) else []
        if not isinstance(part, kind | None) or not all(isinstance(e, dict) for e in entries):
            return {}, f"{name}: provenance.{key} does not have the form of docs/architecture.md."
    return value, None


def _wrong_metric(metrics: dict[str, Any]) -> str | None:
    """Which metric is not that of the confusion matrix beside it, in words; None if none is."""
    for task, of in metrics["tasks"].items():
        if not isinstance(of, dict) or "confusion" not in of:
            continue
        for metric in METRICS:
            counted = of_confusion(metric, of["confusion"], "all")
            told = finite(of.get(metric))
            if counted is None and told is None:
                continue
            if counted is None or told is None or abs(counted - told) > 1e-6:
                return f"{metric} of {task} is not that of its confusion matrix"
    return None


def read_curve(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """A ``loss.csv`` or ``validation.csv``; None when absent, UserError when it cannot be read."""
    if not path.exists():
        return None
    try:
        frame = pd.read_csv(path)
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        return frame.astype(dict.fromkeys(columns, np.float64))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}).") from None


@dataclass
class SeedResult:
    """The files of one run at one seed; an empty dict is an absent or broken file.

    ``stages``: the training with all those that it goes on from: ``seconds``, and the one device
    of them all; empty where not every one of them is known.
    """

    seed: int
    directory: Path
    target: str
    metrics: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    broken: bool = False
    stale: bool = False
    log: str | None = None
    unfinished: bool = False
    diverged: dict[str, Any] = field(default_factory=dict)

    @property
    def any(self) -> dict[str, Any]:
        """Whichever file there is, for its config and provenance."""
        return self.metrics or self.train or self.timing

    @property
    def failure(self) -> str:
        """How it failed, in a few words."""
        if not self.diverged:
            return "failed"
        return f"diverged at update {self.diverged['update']} of {self.diverged['updates']}"

    @property
    def stop(self) -> str:
        """How it ended without a result, and the log that says so where there is one."""
        if self.diverged or not self.unfinished:
            log = f": see log {self.log}" if self.log else ""
            return f"seed {self.seed} {self.failure}{log}"
        return f"no result yet: running, or stopped without a word; log {self.log}"

    @property
    def codes(self) -> list[dict[str, Any]]:
        """The code of each file here that names one: version, commit, dirty."""
        files = (self.train, self.metrics, self.timing, self.diverged)
        found = [lookup(file, ("provenance", "code")) for file in files]
        return [code for code in found if code]

    @property
    def provenance(self) -> dict[str, Any]:
        value = self.any.get("provenance")
        return value if isinstance(value, dict) else {}

    def device(self, origin: tuple[str, ...]) -> str:
        """On which device the value at a path was made: its name, empty where it is unknown."""
        name = lookup(self._files(), (*origin[:1], "provenance", "device", "name"))
        if not name and origin[:2] == ("timing", "protocols"):
            name = lookup(self.timing, (*origin[1:3], "device"))
        return str(name or "")

    def number(self, origin: tuple[str, ...], average: str = "all") -> float | None:
        """The value at a column's dotted path, in the unit of the file.

        Under another ``average`` a metric is computed from the confusion matrix beside it.
        """
        if average != "all" and origin[:1] == ("metrics",):
            confusion = lookup(self.metrics, (*origin[1:-1], "confusion"))
            return of_confusion(origin[-1], confusion, average)
        return finite(lookup(self._files() | {"config": self.any.get("config", {})}, origin))

    def _files(self) -> dict[str, Any]:
        names = ("metrics", "timing", "train", "stages")
        return {name: getattr(self, name) for name in names}


def is_time(origin: tuple[str, ...]) -> bool:
    """Does the device decide the value at a path? Such values of two devices make no mean."""
    return origin[:1] == ("timing",) or origin[:2] in (
        ("train", "seconds"),
        ("train", "images_per_second"),
        ("stages", "seconds"),
    )


@dataclass(frozen=True)
class Status:
    """How a run stands, as a sentence.

    ``kind``: done, partial, stale, failed, unfinished, broken, missing or none.
    """

    kind: str
    text: str


@dataclass
class RunResult:
    """A run of the suite and what its seeds left."""

    run: "Run"
    seeds: list[SeedResult]

    @property
    def slug(self) -> str:
        """Anchor of the run's provenance block."""
        return "run-" + re.sub(r"[^a-z0-9]+", "-", self.run.id.lower())

    @property
    def counted(self) -> list[SeedResult]:
        """The seeds that the numbers come from: current ones, or stale ones if there are none."""
        scored = [seed for seed in self.seeds if seed.metrics]
        return [seed for seed in scored if not seed.stale] or scored

    @property
    def stale(self) -> bool:
        return bool(self.counted) and self.counted[0].stale

    @property
    def subset(self) -> bool:
        """Made from a subset of an archive or of the images."""
        return any(is_subset(seed) for seed in self.counted)

    @property
    def status(self) -> Status:
        broken = [seed for seed in self.seeds if seed.broken]
        stopped = [seed for seed in self.seeds if seed.log or seed.diverged]
        counted = [seed.seed for seed in self.counted]
        why = [f"{problem}" for seed in broken for problem in seed.problems[:1]]
        why += list(dict.fromkeys(seed.stop for seed in stopped))
        if not counted:
            if why:
                failed = any(seed.diverged or not seed.unfinished for seed in stopped)
                kind = "broken" if broken else "failed" if failed else "unfinished"
                return Status(kind, "; ".join(why))
            trained = [seed for seed in self.seeds if seed.train]
            return Status("missing", "trained, not evaluated" if trained else "not run")
        if len(counted) < len(self.seeds):
            seeds = ", ".join(map(str, counted))
            why.insert(0, f"{len(counted)} of {len(self.seeds)} seeds: {seeds}")
        if self.stale:
            why.insert(0, "from an earlier configuration")
        if why:
            return Status("stale" if self.stale else "partial", "; ".join(why))
        return Status("done", "done")

    def measured(self, origin: tuple[str, ...], average: str = "all") -> list[SeedResult]:
        """The counted seeds that have a value; of a time those of one device, which made most."""
        found = [seed for seed in self.counted if seed.number(origin, average) is not None]
        if not is_time(origin) or not found:
            return found
        devices = [seed.device(origin) for seed in found]
        most = max(devices, key=devices.count)
        return [seed for seed, name in zip(found, devices, strict=True) if name == most]

    def values(self, origin: tuple[str, ...], average: str = "all") -> list[float]:
        """One value for each of the ``measured`` seeds."""
        numbers = (seed.number(origin, average) for seed in self.measured(origin, average))
        return [number for number in numbers if number is not None]

    def first(self, *path: str) -> Any:
        """A value from the first counted seed: ``first('train', 'images')``."""
        for seed in self.counted or self.seeds:
            value = lookup({"metrics": seed.metrics, "train": seed.train}, path)
            if value is not None:
                return value
        return None


def is_subset(seed: SeedResult) -> bool:
    """Does anything that this result used come from a subset of an archive or of the images?"""
    archives = seed.provenance.get("archives") or []
    return bool(seed.metrics.get("subset")) or any(archive.get("subset") for archive in archives)


def mean_and_std(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); no spread from one value, nothing from none."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def find_log(results: Path, run_id: str, seed: int, after: float) -> Path | None:
    """The newest log of a run and seed written after ``after`` (seconds since 1970), or None.

    Logs lie beside ``results``: ``logs/train/DATASET/RUN/seedK.log``, ``logs/evaluate/...``.
    """
    logs = results.parent / "logs"
    paths = [logs / stage / run_id / f"seed{seed}.log" for stage in ("train", "evaluate")]
    found = [path for path in paths if path.exists() and path.stat().st_mtime > after]
    if not found:
        return None
    return max(found, key=lambda path: (path.stat().st_mtime, path.as_posix()))


def unfinished(log: Path) -> bool:
    """Does a log end in a progress bar, or is it empty: is there no word of a failure?

    A stage that fails ends its log with a sentence or a traceback; one that runs, or that was
    killed, leaves its bar.
    """
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 4096))
        end = handle.read().decode("utf-8", "replace")
    lines = [line for line in re.split(r"[\r\n]", end) if line.strip()]
    return not lines or re.search(r"\d+%\|", lines[-1]) is not None


def load_seed(run: "Run", seed: int, results: Path) -> SeedResult:
    """Read the JSON files of one run and seed."""
    directory = run.directory(results, seed)
    result = SeedResult(seed, directory, run.target(seed))
    kinds: dict[str, dict[str, type]] = {
        "metrics": {"tasks": dict, "config_hash": str, "images": int},
        "train": {},
        "timing": {"protocols": dict},
    }
    for name, needs in kinds.items():
        value, problem = _read(directory / f"{name}.json", results, needs)
        setattr(result, name, value)
        if problem:
            result.problems.append(problem)
            result.broken |= name == "metrics"
    if result.metrics and (wrong := _wrong_metric(result.metrics)):
        path = shown(directory / "metrics.json", results)
        result.metrics, result.broken = {}, True
        result.problems.append(f"{path}: {wrong}; make it again.")
    scored, trained = (of.get("weights_sha256") for of in (result.metrics, result.train))
    if scored and trained and scored != trained:
        path = shown(directory / "metrics.json", results)
        result.metrics = {}
        result.problems.append(f"{path}: scored other weights than train.json has; evaluate again.")
    if result.metrics:
        current = result.metrics["config_hash"]
        result.stale = current != run.hash
        timed = result.timing
        for name, value, other in (  # a time depends on less than a score
            ("train", result.train, result.train.get("config_hash", current) != current),
            ("timing", timed, timed.get("timed", run.timed) != run.timed),
        ):
            if value and other:
                path = shown(directory / f"{name}.json", results)
                result.problems.append(
                    f"{path}: made under another configuration than metrics.json."
                )
    if not result.metrics or result.stale:
        needs = {"config_hash": str, "update": int, "updates": int}
        diverged, problem = _read(directory / "diverged.json", results, needs)
        result.problems += [problem] if problem else []
        if diverged.get("config_hash") == run.hash:
            result.diverged = diverged
    if not result.broken and (not result.metrics or (result.stale and not result.train)):
        trained = directory / "train.json"
        after = trained.stat().st_mtime if result.train else 0.0
        log = find_log(results, run.id, seed, after)
        if log:
            result.log, result.unfinished = shown(log, results), unfinished(log)
    return result


def stages(runs: Mapping[str, RunResult], result: RunResult, seed: int) -> dict[str, Any]:
    """What all trainings behind a run at a seed took together, each counted once.

    {} unless each of them left its seconds, under the configuration of now and on one device.
    """
    wanted = [result]
    found: dict[str, dict[str, Any]] = {}
    while wanted:
        one = wanted.pop()
        train = next((of.train for of in one.seeds if of.seed == seed), {})
        found[one.run.id] = train if train.get("config_hash") == one.run.hash else {}
        wanted += [runs[parent] for parent in one.run.parents.values() if parent not in found]
    seconds = [finite(train.get("seconds")) for train in found.values()]
    devices = {str(lookup(of, ("provenance", "device", "name"))) for of in found.values()}
    known = [each for each in seconds if each is not None]
    if len(known) < len(seconds) or len(devices) > 1:
        return {}
    return {"seconds": sum(known), "provenance": {"device": {"name": devices.pop()}}}


@dataclass
class Results:
    """Everything under ``results/`` that the suite names."""

    folder: Path
    runs: dict[str, RunResult]
    nets: dict[str, Any]
    bounds: list[tuple[dict[str, str], dict[str, Any]]]
    problems: list[str]
    described: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    server: list[dict[str, Any]] = field(default_factory=list)

    def number(self, origin: tuple[str, ...]) -> float | None:
        """The value at a dotted path that belongs to no run: ``classifier.forward_ms``."""
        return finite(lookup({"classifier": self.classifier}, origin))

    def weights_of(self, result: RunResult) -> str:
        """The run whose training made the weights that a run scores; the name of released ones."""
        run = result.run
        while run.config["recipe"] is None and set(run.parents) == {"run"}:
            run = self.runs[run.parents["run"]].run
        return run.released if run.released and run.config["recipe"] is None else run.id

    def lineage(self, weights: str, scored: set[str]) -> list[str]:
        """The trainings behind ``weights`` one after another, from the first that is ``scored``.

        Before a late fusion it begins with the names of the runs that its trunks come from, where
        all of them are scored: what goes on from the same trunks has them in common.
        """
        lineage = [weights]
        while lineage[0] in self.runs and (parents := self.runs[lineage[0]].run.parents):
            before = [self.weights_of(self.runs[parents[part]]) for part in sorted(parents)]
            if not scored.issuperset(before):
                break
            lineage.insert(0, " + ".join(before))
        return lineage

    @property
    def subset_bounds(self) -> bool:
        """Were the bounds computed from a subset of a data set?"""
        return any(bounds.get("subset") for _, bounds in self.bounds)

    @property
    def scored(self) -> list[SeedResult]:
        return [seed for run in self.runs.values() for seed in run.seeds if seed.any]


def _of_suite(
    suite: "Suite", path: Path, results: Path, needs: dict[str, type], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """``_read`` a file that suites share, if what it tells of ``wanted`` is this suite's.

    An older file may not tell all of it.
    """
    value, problem = _read(path, results, needs)
    for key, own in wanted.items():
        if value.get(key) not in (None, own):
            name = shown(path, results)
            again = f"make it again with {suite.command} {path.stem}"
            return {}, f"{name}: its {key} is not that of this suite, so it is left out; {again}."
    return value, problem


def load_results(suite: "Suite", folder: Path, server: list[dict[str, Any]]) -> Results:
    """Read what exists for every run of the suite; nothing is fatal.

    ``server``: the entries of config/server_scores.yaml.
    """
    runs = {
        id: RunResult(run, [load_seed(run, seed, folder) for seed in run.seeds])
        for id, run in suite.runs.items()
    }
    for result in runs.values():
        for of in result.seeds:
            of.stages = stages(runs, result, of.seed)
    problems = [text for run in runs.values() for seed in run.seeds for text in seed.problems]
    architecture, problem = _read(folder / "architecture.json", folder, {"nets": dict})
    problems += [problem] if problem else []
    classifier: dict[str, Any] = {}
    if suite.classifier:
        wanted = {**suite.classifier, "config": suite.resolved_net(suite.classifier["net"])}
        classifier, problem = _of_suite(suite, folder / "classifier.json", folder, {}, wanted)
        problems += [problem] if problem else []
    described = architecture.get("runs")
    bounds = []
    for entry in suite.bounds:
        path = folder / entry["dataset"] / "bounds.json"
        wanted = {"split": entry["split"]}
        value, problem = _of_suite(suite, path, folder, {"methods": dict}, wanted)
        problems += [problem] if problem else []
        bounds.append((dict(entry), value))
    return Results(
        folder,
        runs,
        architecture.get("nets", {}),
        bounds,
        problems,
        described if isinstance(described, dict) else {},
        classifier,
        server,
    )
