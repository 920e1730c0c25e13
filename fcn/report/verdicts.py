"""The claims decided: each test measured on whatever runs fill its rows, with an interval."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fcn.errors import UserError
from fcn.files import lookup
from fcn.report.bootstrap import Bootstrap, interval, mean_of_seeds
from fcn.report.claims import Claim, Part, Test, Value
from fcn.report.paper import Column, Paper, Table
from fcn.report.results import (
    Results,
    RunResult,
    SeedResult,
    finite,
    is_time,
    mean_and_std,
    read_curve,
)
from fcn.report.spread import Spread, between_seeds
from fcn.report.tables import MINUS, feeding, number, signed

VERDICTS = (
    "reproduced",
    "reproduced in part",
    "not reproduced",
    "inconclusive",
    "by test",
    "not run",
)
ANY = ""  # label of a number that belongs to every text
# Rows of loss.csv, 20 updates each, that are averaged before a level counts as reached: of the run
# with the largest batch. The others are averaged over as many images (whole ones, where patches are
# sampled): over fewer, a curve would fall below a level sooner by its noise alone.
SMOOTH = 3
FAR = 300.0  # of a logarithm: its exponential, squared, is still a number


@dataclass
class Sample:
    """A value as measured; ``draws`` (DRAWS,) where it has a spread that is known.

    ``undecided``: why its spread cannot be computed here. ``spread``: that between seeds, and
    ``lineage`` the trainings behind it; ``seeds``: how many were scored.
    """

    point: float
    draws: np.ndarray | None = None
    runs: list[RunResult] = field(default_factory=list)
    undecided: str = ""
    spread: Spread | None = None
    lineage: list[str] = field(default_factory=list)
    seeds: int = 0


@dataclass
class TestView:
    """A test as decided. ``low`` and ``high`` are None where the measure has no interval."""

    __test__ = False  # for pytest

    test: Test
    verdict: str
    reason: str
    paper: list[tuple[str, str]]
    point: float | None = None
    low: float | None = None
    high: float | None = None
    values: list[tuple[str, str, RunResult | None]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def text(self, value: float) -> str:
        """A value of the measure as the page prints it."""
        if self.test.unit == "points":
            digits = 1
            while value and digits < 4 and not round(value, digits):
                digits += 1  # on which side of 0 it is decides
            return signed(value, digits) if self.is_difference else number(value, digits)
        return number(value, 2 if abs(value) >= 0.1 else 4)

    @property
    def formula(self) -> str:
        """The measure with the names of its rows."""
        names = {letter: value.name for letter, value in self.test.values.items()}
        return self.test.measure.named(names)

    @property
    def is_difference(self) -> bool:
        return "-" in self.test.measure.text

    @property
    def ours(self) -> str:
        if self.point is None:
            return ""
        text = self.text(self.point)
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self.text(self.low)}, {self.text(self.high)}]"

    @property
    def expected(self) -> str:
        expect = self.test.expect
        if np.isinf(expect.high):
            return f"> {self._plain(expect.low)}"
        if np.isinf(expect.low):
            return f"< {self._plain(expect.high)}"
        return f"{self._plain(expect.low)} to {self._plain(expect.high)}"

    def _plain(self, value: float) -> str:
        unit = " points" if self.test.unit == "points" else ""
        return f"{value:g}".replace("-", MINUS) + unit


ONE_SEED = "one seed"
ACROSS = "the interval crosses the tolerance"


@dataclass
class ClaimView:
    """A claim with its verdict and tests; ``printed``: the papers' own figures, (label, text)."""

    claim: Claim
    verdict: str
    tests: list[TestView]
    printed: list[tuple[str, str]]

    @property
    def slug(self) -> str:
        return f"claim-{self.claim.id}"

    @property
    def one_seed(self) -> bool:
        """Whether a test that decided it rests on a single training of a run."""
        return any(ONE_SEED in test.marks for test in self.tests if test.verdict != "not run")


@dataclass
class _Decider:
    tables: dict[str, Table]
    paper: Paper
    results: Results
    compare: bool
    bootstrap: Bootstrap
    assumed: Spread
    _feeding: dict[str, dict[str, list[RunResult]]] = field(default_factory=dict)
    _spreads: dict[tuple[object, ...], tuple[Spread | None, set[str]]] = field(default_factory=dict)

    # ------------------------------------------------------------------ the papers' side

    def printed(self, test: Test) -> list[tuple[str, float]]:
        """(label, measure) for each text that prints every value of a test."""
        sides = [self.printed_value(value) for value in test.values.values()]
        of_texts = [side for side in sides if ANY not in side]
        found = []
        for label in of_texts[0] if of_texts else ():
            values = [side.get(label, side.get(ANY)) for side in sides]
            known = {k: v for k, v in zip(test.values, values, strict=True) if v is not None}
            if len(known) == len(values):
                found.append((label, float(test.measure(known))))
        return found

    def printed_value(self, value: Value) -> dict[str, float]:
        """A value in the papers by the label of the text, under ``ANY`` where it stands in all."""
        if value.paper:
            return {ANY: value.paper.number}
        if value.bounds:
            if value.bounds == "distance":
                return {}
            table = next(t for t in self.tables.values() if t.kind == "bounds")
            return self.cell(table, value.bounds, table.columns[0])
        if value.classifier:
            return {} if value.printed is None else {ANY: value.printed}
        table = self.tables[str(value.table)]
        if value.loss or value.axis:
            point = self.printed_curve(value)
            return {} if point is None else {"Figure 5": point}
        column = self.column(value)
        return {} if column is None else self.cell(table, str(value.row), column)

    def cell(self, table: Table, name: str, column: Column) -> dict[str, float]:
        row = next(row for row in table.rows if row.name == name)
        found: dict[str, float] = {}
        for read in table.reads:
            printed = self.paper.printed(read, row, column)
            if printed:
                found[read.label] = printed.number
        return found

    def printed_curve(self, value: Value) -> float | None:
        if self.tables[str(value.table)].kind != "figure5" or value.axis == "seconds":
            return None

        def panel(name: str, side: str) -> tuple[np.ndarray, np.ndarray]:
            curves = self.paper.figure5
            part = curves[(curves.series == name) & (curves.panel == side)]
            return part.x.to_numpy(float), part.loss.to_numpy(float)

        x, y = panel(str(value.row), "left")
        if value.loss:
            return _mean_loss(x, y, *value.loss)
        level = _level(*panel(str(value.of), "left"), value.at, SMOOTH)
        x, y = panel(str(value.row), "left" if value.axis == "update" else "right")
        return None if level is None else _reached(x, y, level, SMOOTH)

    # ------------------------------------------------------------------ our side

    def entries(self, value: Value) -> list[RunResult]:
        """The runs that fill the row of a value, in the suite's order."""
        table = str(value.table)
        if table not in self._feeding:
            self._feeding[table] = feeding(self.results, table)
        return self._feeding[table].get(str(value.row), [])

    def runs(self, value: Value) -> list[RunResult]:
        """Those of them with a result."""
        return [run for run in self.entries(value) if run.counted]

    def column(self, value: Value) -> Column | None:
        columns = self.tables[str(value.table)].columns
        return next((column for column in columns if column.key == value.column), None)

    def samples(self, test: Test, letters: set[str]) -> dict[str, Sample] | str:
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
                    return f"“{value.name}”: {'not measured' if runs else 'no run'}"
                choices[letter] = known
        sets = [[_test_set(run) for run, _ in known] for known in choices.values()]
        common = [one for one in sets[0] if all(one in other for other in sets)] if sets else []
        chosen = {
            letter: next((run for run, _ in known if _test_set(run) in common[:1]), known[0][0])
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
        seeds = [{seed.seed for seed in run.counted} for run in chosen.values()]
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
        origin = () if value.axis or value.loss else self.column_of(value)[0]
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
        """Is a number of the paper set against ours?"""
        return any(value.paper or value.bounds == "distance" for value in test.values.values())

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
            row = next(r for r in self.tables[str(value.table)].rows if r.name == value.row)
            column = self.column(value)
            if column and row.sources:
                point = self.results.number(tuple(row.sources.get(column.key, "").split(".")))
            elif column and column.origin[:1] == ("server",):
                for entry in self.results.server:
                    if (entry["table"], entry["row"]) == (value.table, value.row):
                        latest = finite(entry.get(column.origin[1]))
                        point = point if latest is None else latest
        return None if point is None else Sample(point)

    def bound(self, factor: str) -> float | None:
        table = next(t for t in self.tables.values() if t.kind == "bounds")
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
                for printed in self.cell(table, row.name, column).values():
                    apart.append(np.inf if value is None else abs(value * column.scale - printed))
            distances.append(max(apart))
        return finite(min(distances, default=None))

    def column_of(self, value: Value) -> tuple[tuple[str, ...], float, str]:
        """Where a value of a run stands: dotted path, factor to the column's unit, average."""
        column = self.column(value)
        if column is None:
            return value.origin, 1.0, "all"
        return column.origin, column.scale, column.average

    def measured(self, value: Value, run: RunResult, window: float) -> list[float]:
        """A value of a run, for each counted seed that has it."""
        if value.loss or value.axis:
            return self.of_curves(value, run, window)
        origin, scale, rule = self.column_of(value)
        if origin[:1] == ("architecture",):
            fact = finite(lookup(self.results.described.get(run.run.id), origin[1:]))
            return [] if fact is None else [fact]
        return [found * scale for found in run.values(origin, rule)]

    def sample(self, value: Value, run: RunResult, values: list[float]) -> Sample:
        """What was measured, with its spread over test images and seeds."""
        point, _ = mean_and_std(values)
        assert point is not None
        origin, scale, rule = self.column_of(value)
        seeds = [seed.seed for seed in run.counted]
        if value.loss or value.axis:
            if len(values) < len(seeds):
                return Sample(point, None, [run], "the curve of a seed never reaches that loss")
            return self.of_seeds_alone(run, values, seeds, "loss curve")
        if origin[:1] == ("train",) and is_time(origin):
            return self.of_seeds_alone(run, values, seeds, "time")
        if origin[:1] != ("metrics",):
            return Sample(point, None, [run])  # a mean of trials, a count: no seed changes it
        draws = self.bootstrap.draws(run, origin, rule)
        if draws is None:
            return Sample(point, None, [run], "no counts per image for this mean, so no interval")
        draws = draws * scale
        spread, lineage = self.spread(value, run)
        if spread is None:
            return Sample(point, None, [run], "no run here has two seeds")
        draws = draws + spread.draws(lineage, seeds)
        return Sample(point, draws, [run], "", spread, lineage, len(seeds))

    @staticmethod
    def of_seeds_alone(run: RunResult, values: list[float], seeds: list[int], what: str) -> Sample:
        """A positive quantity of a training, with the spread of its logarithm over the seeds."""
        if min(values) <= 0:
            return Sample(float(np.mean(values)), None, [run], f"a {what} that is not positive")
        logs = np.log(values)
        point = float(np.exp(logs.mean()))
        if len(values) < 2:
            return Sample(point, None, [run], f"one seed tells nothing of another's {what}")
        away = mean_of_seeds(list(logs), seeds) - logs.mean()
        return Sample(point, point * np.exp(np.clip(away, -FAR, FAR)), [run])

    def spread(self, value: Value, run: RunResult) -> tuple[Spread | None, list[str]]:
        """What seeds do to a column on the test set of a run, and the trainings behind the run.

        Where no run there has two seeds, what ``claims.yaml`` assumes for the paper's own data. The
        trainings begin at the first that was scored on these images too.
        """
        origin, scale, rule = self.column_of(value)
        key = (_test_set(run), origin, rule)
        if key not in self._spreads:
            scores: dict[str, dict[int, float]] = {}
            for other in self.results.runs.values():
                own = self.results.weights_of(other) == other.run.id
                if own and _test_set(other) == _test_set(run):
                    found = {seed.seed: seed.number(origin, rule) for seed in other.counted}
                    known = {s: number * scale for s, number in found.items() if number is not None}
                    if known:
                        scores[other.run.id] = known
            lineages = {id: self.results.lineage(id, set(scores)) for id in scores}
            self._spreads[key] = between_seeds(scores, lineages), set(scores)
        spread, scored = self._spreads[key]
        if spread is None and self.compare and not run.subset:
            spread = self.assumed
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
                point = _mean_loss(curve.x, curve.loss, *value.loss)
            elif curve:
                level = self.level(value, seed.seed, window)
                if level is not None:
                    point = _reached(curve.x, curve.loss, level, curve.rows(window))
            if point is not None:
                values.append(point)
        return values

    def level(self, value: Value, seed: int, window: float) -> float | None:
        """The loss to be reached, from the same seed of the other run, or its first."""
        others = self.runs(Value(table=value.table, row=value.of))
        for other in others[:1]:
            found = [s for s in other.counted if s.seed == seed] or other.counted
            curve = self.curve(other, found[0], "update")
            return _level(curve.x, curve.loss, value.at, curve.rows(window)) if curve else None
        return None

    def curve(self, run: RunResult, seed: SeedResult, axis: str) -> "_Curve | None":
        try:
            frame = read_curve(seed.directory / "loss.csv", (axis, "images", "loss"))
        except UserError:
            return None  # the page's own curves tell it
        if frame is None or not len(frame):
            return None
        keep = np.isfinite(frame["loss"].to_numpy())
        kept = (run.run.config["recipe"] or {}).get("patch_keep", 1)
        images = float(frame["images"].iloc[0] * kept)
        return _Curve(frame[axis].to_numpy()[keep], frame["loss"].to_numpy()[keep], images)

    # ------------------------------------------------------------------ verdicts

    def divergence(self, value: Value) -> str:
        """That every training of a row's run which ended diverged, as a sentence; else empty."""
        for run in self.entries(value):
            ended = [seed for seed in run.seeds if seed.diverged or seed.metrics]
            if ended and all(seed.diverged for seed in ended):
                numbers = ", ".join(str(seed.seed) for seed in ended)
                seeds = "seed" if len(ended) == 1 else "seeds"
                return f"“{value.name}” {ended[0].failure} ({seeds} {numbers})"
        return ""

    def decide(self, test: Test) -> TestView:
        paper: dict[str, list[str]] = {}
        view = TestView(test, "not run", "", [])
        for label, point in self.printed(test):
            paper.setdefault(view.text(point), []).append(label)
        view.paper = [(text, " = ".join(labels)) for text, labels in paper.items()]
        view.tables = list(dict.fromkeys(v.table for v in test.values.values() if v.table))

        told = {letter: self.divergence(test.values[letter]) for letter in test.diverged}
        failed = [letter for letter, sentence in told.items() if sentence]
        of_failed = [_of_diverged(test, part, failed) for part in test.measure.parts]
        parts = [p for p, known in zip(test.measure.parts, of_failed, strict=True) if not known]
        decided = [known for known in of_failed if known]
        view.reason = "; ".join(told[letter] for letter in failed)
        if decided:
            verdict = test.expect.of_parts(test.measure.choice, decided)
            if not parts or verdict == test.expect.of_parts(
                test.measure.choice, [*decided, *["inconclusive"] * len(parts)]
            ):
                view.verdict = verdict
                return view

        samples = self.samples(test, set().union(*(part.letters for part in parts)))
        if isinstance(samples, str):
            view.reason = samples
            return view
        points = {letter: sample.point for letter, sample in samples.items()}
        for letter, sample in samples.items():
            shown_value = number(sample.point, 1 if abs(sample.point) >= 1 else 3)
            run = sample.runs[0] if sample.runs else None
            view.values.append((test.values[letter].name, shown_value, run))
        view.marks = self.marks(test, samples)
        found = [_decide_part(test, part, samples) for part in parts]
        choose = test.measure.choose
        point = float(choose([part(points) for part in parts]))
        view.point = point if np.isfinite(point) else None
        ends = [(p.low, p.high) for p in found if p.low is not None and p.high is not None]
        if len(ends) == len(found):
            lows, highs = zip(*ends, strict=True)
            view.low, view.high = float(choose(lows)), float(choose(highs))
        view.verdict = test.expect.of_parts(
            test.measure.choice, [*decided, *(part.verdict for part in found)]
        )
        if view.verdict == "inconclusive":
            view.reason = next(part.reason for part in found if part.reason)
        return view

    def marks(self, test: Test, samples: dict[str, Sample]) -> list[str]:
        """What a reader must know of what is behind a measure."""
        runs = list({r.run.id: r for s in samples.values() for r in s.runs}.values())
        drawn = [s for s in samples.values() if s.draws is not None]
        marks = []
        trained = [  # an inference time is measured once, whatever the seeds
            run
            for letter, sample in samples.items()
            for run in sample.runs
            if self.time_of(test.values[letter])[:1] != ("timing",)
        ]
        seeds = min((len(run.counted) for run in trained), default=0)
        if seeds:
            marks.append(ONE_SEED if seeds == 1 else f"{seeds} seeds")
        if alone := [s for s in drawn if s.seeds == 1 and s.spread]:  # it is of other runs then
            lineages = [s.lineage for s in drawn if s.lineage]
            # What two scores have in common cancels in their difference, not in their ratio.
            together = [[one] for one in lineages] if "/" in test.measure.text else [lineages]
            apart = max(s.spread.apart(of) for s in alone if s.spread for of in together)
            marks.append(f"seeds taken to differ by {apart:.1f} points")
        bounds = any(test.values[letter].bounds for letter in samples)
        if any(run.subset for run in runs) or (bounds and self.results.subset_bounds):
            marks.append("subset")
        if any(run.stale for run in runs):
            marks.append("stale")
        if len(drawn) > 1 and len({_test_set(run) for run in runs}) > 1:
            marks.append("different test images")
        for run in runs:
            gone = [s.seed for s in self.results.runs[run.run.id].seeds if s.diverged]
            marks += [f"seed {seed} of {run.run.id} diverged" for seed in gone]
        return marks


@dataclass(frozen=True)
class _PartView:
    """A part of a measure as decided; without ``low`` and ``high`` where it has no interval."""

    verdict: str
    reason: str
    low: float | None = None
    high: float | None = None


def _of_diverged(test: Test, part: Part, failed: list[str]) -> str:
    """The verdict of a part with a run that diverged, empty where none did."""
    found = {test.diverged[letter] for letter in failed if letter in part.letters}
    return "not reproduced" if "not reproduced" in found else "reproduced" if found else ""


def _decide_part(test: Test, part: Part, samples: dict[str, Sample]) -> _PartView:
    own = {letter: samples[letter] for letter in sorted(part.letters)}
    point = float(part({letter: sample.point for letter, sample in own.items()}))
    if not np.isfinite(point):
        return _PartView("inconclusive", "not a finite number")
    if undecided := next((s.undecided for s in own.values() if s.undecided), ""):
        return _PartView("inconclusive", undecided)
    if all(sample.draws is None for sample in own.values()):
        return _PartView(test.expect.verdict(point, point), ACROSS)
    draws = part.signed({k: s.point if s.draws is None else s.draws for k, s in own.items()})
    if not np.isfinite(draws).all():
        return _PartView("inconclusive", "undefined on some resampled images")
    low, high = interval(draws)
    if part.absolute:
        ends = abs(low), abs(high)
        low, high = 0.0 if low < 0 < high else min(ends), max(ends)
    whole = test.expect.verdict(low, high)
    # Scores near 0 moved by more than they are: their ratio is then that of the moves.
    if not low <= point <= high and whole != test.expect.verdict(point, point):
        outside = "what was found lies outside of its interval: seeds differ by more"
        return _PartView("inconclusive", outside, low, high)
    return _PartView(whole, ACROSS if whole == "inconclusive" else "", low, high)


@dataclass(frozen=True)
class _Curve:
    """A loss curve along an axis; ``images``: whole ones of which a row of it is the mean."""

    x: np.ndarray
    loss: np.ndarray
    images: float

    def rows(self, window: float) -> int:
        """How many rows hold ``window`` images."""
        return max(1, round(window / max(1.0, self.images)))


def _test_set(run: RunResult) -> tuple[str, str]:
    test = run.run.config["test"]
    return test["dataset"], test["split"]


def _smooth(x: np.ndarray, y: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Running means: the middle of ``rows`` rows, and their loss."""
    mean = np.ones(rows) / rows
    return np.convolve(x, mean, "valid"), np.convolve(y, mean, "valid")


def _mean_loss(x: np.ndarray, y: np.ndarray, start: float, end: float) -> float | None:
    """Mean of ``y`` between two shares of the last ``x``."""
    if not len(x):
        return None
    part = y[(x >= start * x[-1]) & (x <= end * x[-1])]
    return float(part.mean()) if len(part) else None


def _level(x: np.ndarray, y: np.ndarray, share: float, rows: int) -> float | None:
    """The loss, averaged over ``rows`` and interpolated, at a share of the last update."""
    if len(x) < rows:
        return None
    return float(np.interp(share * x[-1], *_smooth(x, y, rows)))


def _reached(x: np.ndarray, y: np.ndarray, level: float, rows: int) -> float | None:
    """Where the loss, averaged over ``rows``, first falls to the level; None for never.

    Between two rows along a straight line: on the grid of the rows alone two curves would reach
    a level at once whose distance is less.
    """
    if len(x) < rows:
        return None
    x, y = _smooth(x, y, rows)
    below = np.flatnonzero(y <= level)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(x[0])
    return float(np.interp(-level, [-y[i - 1], -y[i]], [x[i - 1], x[i]]))


def _whole(tests: list[TestView]) -> str:
    """The verdict of a claim from those of its tests."""
    ran = [test.verdict for test in tests if test.verdict != "not run"]
    if not ran:
        return "not run"
    for worst in ("not reproduced", "inconclusive"):
        if worst in ran:
            return worst
    return "reproduced" if len(ran) == len(tests) else "reproduced in part"


def decide(
    claims: list[Claim],
    tables: list[Table],
    paper: Paper,
    results: Results,
    compare: bool,
    spread: Spread,
) -> tuple[list[ClaimView], list[str]]:
    """Decide every claim from the results that exist.

    A test holds when the whole interval of its measure lies within its tolerance, fails when the
    whole interval lies outside, and is inconclusive between; of a least or greatest value each part
    is decided so. Test images are drawn again, with the
    same draw for every run that was scored on them (a paired bootstrap). To it comes what trainings
    differ by, from the seeds of all runs on these test images; where none has two, a test is
    inconclusive.

    Args:
        compare: whether the runs are on the paper's data; if not, tests that need a number of the
            paper are left out.
        spread: what is assumed of seeds on the paper's own data where no run has two.

    Returns:
        a view for each claim, and the files that could not be used, as sentences.
    """
    bootstrap = Bootstrap(results)
    decider = _Decider({t.id: t for t in tables}, paper, results, compare, bootstrap, spread)
    views = []
    for claim in claims:
        tests = [decider.decide(test) for test in claim.tests]
        printed = [
            (label, f"{one.value} {one.unit}: {one.method}, {one.metric}")
            for label, one in claim.printed
        ]
        verdict = "by test" if claim.by_test else _whole(tests)
        views.append(ClaimView(claim, verdict, tests, printed))
    return views, list(dict.fromkeys(bootstrap.problems))  # a file may be read for two means


def counts(views: list[ClaimView]) -> list[tuple[str, int]]:
    """How many claims have each verdict, in the order of ``VERDICTS``; none of none."""
    found = [(verdict, sum(v.verdict == verdict for v in views)) for verdict in VERDICTS]
    return [(verdict, n) for verdict, n in found if n]
