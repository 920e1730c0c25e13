"""Our side of a claim: what the runs that fill its rows measured, and how sure that is."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fcn.files import lookup
from fcn.report.bootstrap import Bootstrap, mean_of_seeds
from fcn.report.claims import Test, Value
from fcn.report.curves import SMOOTH, LossCurve, level_at, loss_curve, mean_loss, reached
from fcn.report.printed import Printed
from fcn.report.results import (
    Results,
    RunResult,
    SeedResult,
    finite,
    is_time,
    mean_and_std,
    shown,
)
from fcn.report.spread import Spread, between_seeds
from fcn.report.tables import feeding
from fcn.spec import Row

# One inference time, measured in several ways; a measure must lie on one side in all of them.
TIMED: tuple[tuple[str, ...], ...] = (
    ("timing", "protocols", "paper", "mean_ms"),
    ("timing", "protocols", "paper", "median_ms"),
    ("timing", "protocols", "synchronised", "mean_ms"),
    ("timing", "protocols", "synchronised", "median_ms"),
)
FAR = 300.0  # of a logarithm: its exponential, squared, is still a number


@dataclass
class Sample:
    """A value as measured; ``draws`` (DRAWS,) where it has a spread that is known.

    ``images``: the draws by the test images alone. ``undecided``: why its spread cannot be computed
    here. ``spread``: that between seeds, and ``lineage`` the trainings behind it; ``seeds``: how
    many were scored. ``ways``: what each way of ``TIMED`` found, of an inference time.
    """

    point: float
    draws: np.ndarray | None = None
    images: np.ndarray | None = None
    runs: list[RunResult] = field(default_factory=list)
    undecided: str = ""
    spread: Spread | None = None
    lineage: list[str] = field(default_factory=list)
    seeds: int = 0
    ways: dict[tuple[str, ...], float] = field(default_factory=dict)


def _counts(row: Row, value: Value) -> bool:
    """Does a run that fills ``row`` count for a value of a claim?"""
    return (
        (row.table, row.row) == (value.table, value.row)
        and row.decides
        and (not row.against or set(value.against) <= set(row.against))
    )


def scored_on(run: RunResult) -> tuple[str, str]:
    """The data set and split that a run is scored on."""
    test = run.run.config["test"]
    return test["dataset"], test["split"]


@dataclass
class Samples:
    """What can be measured of ``results`` for the values of a claim's tests.

    ``compare``: whether the runs are on the paper's data. ``assumed``: what is known beforehand of
    the spread between seeds there.
    """

    printed: Printed
    results: Results
    compare: bool
    bootstrap: Bootstrap
    assumed: Spread
    _feeding: dict[str, dict[str, list[RunResult]]] = field(default_factory=dict)
    _curves: dict[tuple[Path, str], LossCurve | str] = field(default_factory=dict)
    _spreads: dict[tuple[object, ...], tuple[Spread | None, set[str]]] = field(default_factory=dict)

    def entries(self, value: Value) -> list[RunResult]:
        """The runs that fill the row of a value and decide claims there, in the suite's order."""
        table = str(value.table)
        if table not in self._feeding:
            self._feeding[table] = feeding(self.results, table)
        fed = self._feeding[table].get(str(value.row), [])
        return [run for run in fed if any(_counts(row, value) for row in run.run.rows)]

    def runs(self, value: Value) -> list[RunResult]:
        """Those of them with a result."""
        return [run for run in self.entries(value) if run.counted]

    def without_run(self, value: Value) -> str:
        """Why no run counts for a value: it has no result yet, decides no claim, or is none."""
        if entries := self.entries(value):
            return "; ".join(dict.fromkeys(run.status.text for run in entries))
        fed = self._feeding[str(value.table)].get(str(value.row), [])
        here = (value.table, value.row)
        rows = [row for run in fed for row in run.run.rows if (row.table, row.row) == here]
        undecided = not all(row.decides for row in rows)
        return "the run here decides no claim, see its note" if undecided else "no run"

    def of(self, test: Test, letters: set[str]) -> dict[str, Sample] | str:
        """A sample for each of ``letters``, or why there is none.

        Where several runs fill a row, those of one test set are taken together: the first set, in
        the suite's order, that has them all. Of seeds, those that all runs have are compared: the
        same order of training images, or the very weights that another run scores again. Of times,
        those of one device.
        """
        fixed: dict[str, Sample] = {}
        choices: dict[str, list[tuple[RunResult, list[float]]]] = {}
        if self.of_the_paper(test) and not self.compare:
            return "needs the paper's own data"
        window = self.window(test)
        values = {letter: v for letter, v in test.values.items() if letter in letters}
        for letter, value in values.items():
            sample = self.fixed(value)
            if sample is not None:
                fixed[letter] = sample
            elif value.row is None:
                return f"{value.name}: not measured"
            else:
                runs = self.runs(value)
                measured = [(run, self.measured(value, run, window)) for run in runs]
                known = [(run, found) for run, found in measured if found]
                if not known:
                    why = "not measured" if runs else self.without_run(value)
                    return f"“{value.name}”: {why}"
                choices[letter] = known
        sets = [[scored_on(run) for run, _ in known] for known in choices.values()]
        common = [one for one in sets[0] if all(one in other for other in sets)] if sets else []
        chosen = {
            letter: next((run for run, _ in known if scored_on(run) in common[:1]), known[0][0])
            for letter, known in choices.items()
        }
        times = {
            letter: origin for letter in chosen if (origin := self.time_of(test.values[letter]))
        }
        if times:
            alike = self.on_one_device(times, chosen)
            if not alike:
                return "timed on different devices"
            chosen |= alike
        seeds = [self.having(test.values[letter], run) for letter, run in chosen.items()]
        shared = set.intersection(*seeds) if seeds else set()
        samples = dict(fixed)
        for letter, run in chosen.items():
            value = test.values[letter]
            part = replace(run, seeds=[seed for seed in run.seeds if seed.seed in shared])
            if not self.measured(value, part, window):  # of a seed that the others lack
                part = run
            samples[letter] = self.sample(value, part, self.measured(value, part, window))
        subset = any(run.subset for run in chosen.values()) or (
            any(value.bounds for value in values.values()) and self.results.subset_bounds
        )
        if self.of_the_paper(test) and subset:
            return "needs the paper's own data, these are subsets"
        return {letter: samples[letter] for letter in values}

    def time_of(self, value: Value) -> tuple[str, ...]:
        """Where a value stands that is a time, ``()`` if it is none."""
        if value.axis == "seconds":
            return ("train", "seconds")
        origin = () if value.axis or value.loss else self.place(value)[0]
        return origin if is_time(origin) else ()

    @staticmethod
    def on_one_device(
        times: dict[str, tuple[str, ...]], runs: dict[str, RunResult]
    ) -> dict[str, RunResult]:
        """The runs behind ``times``, with the seeds of one device: that which timed most.

        {} where no device timed every run.
        """
        devices: dict[str, dict[str, list[SeedResult]]] = {}
        for letter, origin in times.items():
            of = devices.setdefault(letter, {})
            for seed in runs[letter].counted:
                if seed.number(origin) is not None:
                    of.setdefault(seed.device(origin), []).append(seed)
        common = set.intersection(*(set(of) for of in devices.values()))
        if not common:
            return {}
        most = max(sorted(common), key=lambda name: min(len(of[name]) for of in devices.values()))
        return {letter: replace(runs[letter], seeds=of[most]) for letter, of in devices.items()}

    @staticmethod
    def of_the_paper(test: Test) -> bool:
        """Is a number of the paper set against ours, or a property of its data tested?"""
        values = test.values.values()
        return any(value.paper for value in values) or all(value.bounds for value in values)

    def fixed(self, value: Value) -> Sample | None:
        """A value that belongs to no run."""
        point = None
        if value.paper:
            point = value.paper.number
        elif value.bounds:
            point = self.bound(value.bounds)
        elif value.classifier:
            point = self.results.number(("classifier", value.classifier))
        else:
            row = next(r for r in self.printed.tables[str(value.table)].rows if r.name == value.row)
            column = self.printed.column(value)
            if column and row.sources:
                point = self.results.number(tuple(row.sources.get(column.key, "").split(".")))
            elif column and column.origin[:1] == ("server",):
                for entry in self.results.server:
                    if (entry["table"], entry["row"]) == (value.table, value.row):
                        latest = finite(entry.get(column.origin[1]))
                        point = point if latest is None else latest
        return None if point is None else Sample(point)

    def bound(self, factor: str) -> float | None:
        table = next(t for t in self.printed.tables.values() if t.kind == "bounds")
        column = table.columns[0]
        given = [bounds["methods"] for _, bounds in self.results.bounds if bounds.get("methods")]
        methods: dict[str, Any] = given[0] if given else {}
        if factor != "distance":
            values = [finite(lookup(of, (factor,))) for of in methods.values()]
            known = [value * column.scale for value in values if value is not None]
            return min(known) if known and len(known) == len(values) else None
        distances = []
        for of in methods.values():
            apart = []
            for row in table.rows:
                value = finite(lookup(of, (row.name,)))
                for printed in self.printed.cell(table, row.name, column).values():
                    apart.append(np.inf if value is None else abs(value * column.scale - printed))
            distances.append(max(apart))
        return finite(min(distances, default=None))

    def place(self, value: Value) -> tuple[tuple[str, ...], float, str]:
        """Where a value of a run stands: dotted path, factor to the column's unit, average."""
        column = self.printed.column(value)
        if column is None:
            return value.origin, 1.0, "all"
        return column.origin, column.scale, column.average

    def measured(self, value: Value, run: RunResult, window: float) -> list[float]:
        """A value of a run, for each counted seed that has it."""
        if value.loss or value.axis:
            return self.of_curves(value, run, window)
        origin, scale, rule = self.place(value)
        if origin[:1] == ("architecture",):
            fact = finite(lookup(self.results.described.get(run.run.id), origin[1:]))
            return [] if fact is None else [fact]
        return [found * scale for found in run.values(origin, rule)]

    def having(self, value: Value, run: RunResult) -> set[int]:
        """The counted seeds that can be asked for a value."""
        if value.loss or value.axis:
            axis = value.axis or "update"
            return {seed.seed for seed in run.counted if self.curve(run, seed, axis)}
        origin, _, rule = self.place(value)
        if origin[:1] == ("architecture",):
            return {seed.seed for seed in run.counted}
        return {seed.seed for seed in run.counted if seed.number(origin, rule) is not None}

    def curve(self, run: RunResult, seed: SeedResult, axis: str) -> LossCurve | None:
        """The loss curve of a seed; why there is none is told once, where it was trained."""
        path = seed.directory / "loss.csv"
        if (path, axis) not in self._curves:
            found = self._curves[path, axis] = loss_curve(run, seed, axis)
            if isinstance(found, str) and seed.train:
                name = shown(path, self.results.folder)
                self.bootstrap.problems.append(f"{name}: {found}, so no claim is tested on it.")
        found = self._curves[path, axis]
        return found if isinstance(found, LossCurve) else None

    def sample(self, value: Value, run: RunResult, values: list[float]) -> Sample:
        """What was measured, with its spread over test images and seeds."""
        point, _ = mean_and_std(values)
        assert point is not None
        origin, scale, rule = self.place(value)
        seeds = [seed.seed for seed in run.counted]
        if value.loss or value.axis:
            if len(values) < len(seeds):
                return Sample(
                    point, runs=[run], undecided="the curve of a seed never reaches that loss"
                )
            return self.of_seeds_alone(run, values, seeds, "loss curve")
        if origin == ("train", "loss") or (origin[:1] != ("timing",) and is_time(origin)):
            what = "loss" if origin[1] == "loss" else "time"
            return self.of_seeds_alone(run, values, seeds, what)
        if origin in TIMED:
            found = {way: run.values(way) for way in TIMED}
            ways = {way: float(np.mean(times)) for way, times in found.items() if times}
            return Sample(point, runs=[run], ways=ways)
        if origin[:1] != ("metrics",):
            return Sample(point, runs=[run])  # a count: no seed changes it
        draws = self.bootstrap.draws(run, origin, rule)
        if draws is None:
            why = "no counts per image for this mean, so no interval"
            return Sample(point, runs=[run], undecided=why)
        images = draws * scale
        spread, lineage = self.spread(value, run)
        if spread is None:
            return Sample(point, runs=[run], undecided="no run here has two seeds")
        draws = images + spread.draws(lineage, seeds)
        return Sample(point, draws, images, [run], "", spread, lineage, len(seeds))

    @staticmethod
    def of_seeds_alone(run: RunResult, values: list[float], seeds: list[int], what: str) -> Sample:
        """A positive quantity of a training, with the spread of its logarithm over the seeds."""
        if min(values) <= 0:
            why = f"a {what} that is not positive"
            return Sample(float(np.mean(values)), runs=[run], undecided=why)
        logs = np.log(values)
        point = float(np.exp(logs.mean()))
        if len(values) < 2:
            why = f"one seed tells nothing of another's {what}"
            return Sample(point, runs=[run], undecided=why)
        away = mean_of_seeds(list(logs), seeds) - logs.mean()
        return Sample(point, point * np.exp(np.clip(away, -FAR, FAR)), runs=[run])

    def spread(self, value: Value, run: RunResult) -> tuple[Spread | None, list[str]]:
        """What seeds do to a column on the test set of a run, and the trainings behind the run.

        On the paper's own data together with what ``claims.yaml`` assumes of them. The trainings
        begin at the first that was scored on these images too.
        """
        origin, scale, rule = self.place(value)
        assumed = self.assumed if self.compare and not run.subset else None
        key = (scored_on(run), origin, rule, assumed is None)
        if key not in self._spreads:
            scores: dict[str, dict[int, float]] = {}
            for other in self.results.runs.values():
                own = self.results.weights_of(other) == other.run.id
                if own and scored_on(other) == scored_on(run):
                    found = {seed.seed: seed.number(origin, rule) for seed in other.counted}
                    known = {s: number * scale for s, number in found.items() if number is not None}
                    if known:
                        scores[other.run.id] = known
            lineages = {id: self.results.lineage(id, set(scores)) for id in scores}
            self._spreads[key] = between_seeds(scores, lineages, assumed), set(scores)
        spread, scored = self._spreads[key]
        return spread, self.results.lineage(self.results.weights_of(run), scored)

    def window(self, test: Test) -> float:
        """Images whose losses are averaged before a level counts as reached, in every run of it."""
        images = [0.0]
        for value in test.values.values():
            for row in (value.row, value.of) if value.axis else ():
                for run in self.runs(Value(table=value.table, row=row)):
                    curves = (self.curve(run, seed, "update") for seed in run.counted)
                    images += [SMOOTH * curve.images for curve in curves if curve]
        return max(images)

    def of_curves(self, value: Value, run: RunResult, window: float) -> list[float]:
        values = []
        for seed in run.counted:
            point = None
            curve = self.curve(run, seed, value.axis or "update")
            if curve and value.loss:
                point = mean_loss(curve.x, curve.loss, *value.loss)
            elif curve:
                level = self.level(value, seed.seed, window)
                if level is not None:
                    point = reached(curve.x, curve.loss, level, curve.rows(window))
            if point is not None:
                values.append(point)
        return values

    def level(self, value: Value, seed: int, window: float) -> float | None:
        """The loss to be reached, from the same seed of the other run, or its first."""
        others = self.runs(Value(table=value.table, row=value.of))
        for other in others[:1]:
            found = [s for s in other.counted if s.seed == seed] or other.counted
            curve = self.curve(other, found[0], "update")
            return level_at(curve.x, curve.loss, value.at, curve.rows(window)) if curve else None
        return None
