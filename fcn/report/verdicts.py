"""The claims decided: each test measured on whatever runs fill its rows, with an interval."""

from dataclasses import dataclass, field

import numpy as np

from fcn.report.bootstrap import Bootstrap
from fcn.report.claims import Claim, Test, Value
from fcn.report.paper import Paper, PaperNumber, Table
from fcn.report.parts import decide_part, of_diverged
from fcn.report.printed import Printed
from fcn.report.results import Results, RunResult
from fcn.report.samples import Sample, Samples, scored_on
from fcn.report.spread import Spread
from fcn.report.tables import MINUS, number, signed

VERDICTS = (
    "reproduced",
    "reproduced as far as run",
    "not reproduced",
    "inconclusive",
    "by test",
    "not run",
)


@dataclass
class TestView:
    """A test as decided. ``low`` and ``high`` are None where the measure has no interval."""

    __test__ = False  # for pytest

    test: Test
    verdict: str
    reason: str
    printed: list[tuple[float, str]]
    point: float | None = None
    low: float | None = None
    high: float | None = None
    values: list[tuple[str, str, RunResult | None]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def text(self, value: float) -> str:
        """A value of the measure as the page prints it."""
        points = self.test.unit == "points"
        digits = 1 if points else 2 if abs(value) >= 0.1 else 4
        decide = {self.test.expect.low, self.test.expect.high} | ({0.0} if points else set())
        while digits < 4 and round(value, digits) in decide - {value}:
            digits += 1  # on which side of a bound it is decides
        return signed(value, digits) if points and self.is_difference else number(value, digits)

    @property
    def paper(self) -> list[tuple[str, str]]:
        """The papers' measures as the page prints them, each with its texts."""
        return [(self.text(point), labels) for point, labels in self.printed]

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


AXES = {"update": "updates", "images": "images", "seconds": "s"}
UNITS = {
    "train.seconds": "s",
    "stages.seconds": "s",
    "architecture.parameters": "parameters",
    "timing.protocols.paper.mean_ms": "ms",
}
COUNTS = ("updates", "images", "parameters")  # have no decimals
ONE_SEED = "one seed"


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
        whole = self.verdict
        deciding = ("not reproduced",) if whole == "not reproduced" else ("reproduced",)
        return whole != "inconclusive" and any(
            ONE_SEED in test.marks for test in self.tests if test.verdict in deciding
        )


@dataclass(frozen=True)
class _Decider:
    printed: Printed
    ours: Samples

    def divergence(self, value: Value) -> str:
        """That every training of a row's run which ended diverged, as a sentence; else empty."""
        for run in self.ours.entries(value):
            ended = [seed for seed in run.seeds if seed.diverged or seed.metrics]
            if ended and all(seed.diverged for seed in ended):
                how: dict[str, list[str]] = {}
                for seed in ended:
                    how.setdefault(seed.failure, []).append(str(seed.seed))
                told = [
                    f"{failure} (seed{'s' * (len(of) > 1)} {', '.join(of)})"
                    for failure, of in how.items()
                ]
                return f"“{value.name}” {', '.join(told)}"
        return ""

    def decide(self, test: Test) -> TestView:
        view = TestView(test, "not run", "", [])
        alike: dict[str, list[tuple[float, str]]] = {}
        for label, point in self.printed.measures(test):
            alike.setdefault(view.text(point), []).append((point, label))
        for same in alike.values():
            view.printed.append((same[0][0], " = ".join(label for _, label in same)))
        view.tables = list(dict.fromkeys(v.table for v in test.values.values() if v.table))

        told = {letter: self.divergence(test.values[letter]) for letter in test.diverged}
        failed = [letter for letter, sentence in told.items() if sentence]
        of_failed = [of_diverged(test, part, failed) for part in test.measure.parts]
        parts = [p for p, known in zip(test.measure.parts, of_failed, strict=True) if not known]
        decided = [known for known in of_failed if known]
        view.reason = "; ".join(told[letter] for letter in failed)
        if decided:
            view.marks = self.marks_of_diverged(test, failed)
            verdict = test.expect.of_parts(test.measure.choice, decided)
            if not parts or verdict == test.expect.of_parts(
                test.measure.choice, [*decided, *["inconclusive"] * len(parts)]
            ):
                view.verdict = verdict
                return view

        samples = self.ours.of(test, set().union(*(part.letters for part in parts)))
        if isinstance(samples, str):
            view.reason = samples
            return view
        points = {letter: sample.point for letter, sample in samples.items()}
        for letter, sample in samples.items():
            run = sample.runs[0] if sample.runs else None
            shown = self.with_unit(test.values[letter], sample.point)
            view.values.append((test.values[letter].name, shown, run))
        alone = view.marks  # of what a divergence decided
        marks = self.marks(test, samples)
        counts = [m for m in marks if m == ONE_SEED or m.endswith(" seeds")] if alone else []
        view.marks = alone + [mark for mark in marks if mark not in counts]
        found = [decide_part(test, part, samples) for part in parts]
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

    def marks_of_diverged(self, test: Test, failed: list[str]) -> list[str]:
        """Of a verdict by divergence: whether a single training of a run is behind it."""
        ended = [
            sum(bool(seed.diverged or seed.metrics) for seed in run.seeds)
            for letter in failed
            for run in self.ours.entries(test.values[letter])
        ]
        return [ONE_SEED] if 1 in ended else []

    def with_unit(self, value: Value, point: float) -> str:
        """A value as the page prints it."""
        if value.axis:
            unit = AXES[value.axis]
        elif value.paper:
            unit = value.paper.unit
        elif value.bounds:
            unit = "points" if value.bounds == "distance" else "%"
        elif value.row and (column := self.printed.column(value)):
            unit = column.unit
        else:
            unit = UNITS.get(".".join(value.origin), "")
        counted = unit in COUNTS or value.classifier == "cells"
        digits = 0 if counted else 1 if abs(point) >= 1 else 3
        return number(point, digits) + (f"\u00a0{unit}" if unit else "")

    def marks(self, test: Test, samples: dict[str, Sample]) -> list[str]:
        """What a reader must know of what is behind a measure."""
        runs = list({r.run.id: r for s in samples.values() for r in s.runs}.values())
        drawn = [s for s in samples.values() if s.draws is not None]
        marks = []
        trained = [  # an inference time is measured once, whatever the seeds
            run
            for letter, sample in samples.items()
            for run in sample.runs
            if self.ours.time_of(test.values[letter])[:1] != ("timing",)
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
        first = [(s.lineage[0], s.spread) for s in drawn if s.lineage and s.spread]
        odd = dict.fromkeys(run for run, spread in first if run in spread.own)
        marks += [f"{run} varies more than other runs: judged by its own seeds" for run in odd]
        bounds = any(test.values[letter].bounds for letter in samples)
        if any(run.subset for run in runs) or (bounds and self.ours.results.subset_bounds):
            marks.append("subset")
        if any(run.stale for run in runs):
            marks.append("stale")
        if len(drawn) > 1 and len({scored_on(run) for run in runs}) > 1:
            marks.append("different test images")
        for run in runs:
            gone = [s.seed for s in self.ours.results.runs[run.run.id].seeds if s.diverged]
            marks += [f"seed {seed} of {run.run.id} diverged" for seed in gone]
        return marks


def _whole(tests: list[TestView]) -> str:
    """The verdict of a claim from those of its tests."""
    ran = [test.verdict for test in tests if test.verdict != "not run"]
    if not ran:
        return "not run"
    for worst in ("not reproduced", "inconclusive"):
        if worst in ran:
            return worst
    return "reproduced" if len(ran) == len(tests) else "reproduced as far as run"


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
    printed = Printed({table.id: table for table in tables}, paper)
    decider = _Decider(printed, Samples(printed, results, compare, bootstrap, spread))
    views = []
    for claim in claims:
        tests = [decider.decide(test) for test in claim.tests]
        _mark_repeated(tests)
        figures = [
            (label, f"{one.method}, {one.metric}: {_printed(one)}") for label, one in claim.printed
        ]
        verdict = "by test" if claim.by_test else _whole(tests)
        views.append(ClaimView(claim, verdict, tests, figures))
    return views, list(dict.fromkeys(bootstrap.problems))  # a file may be read for two means


def _mark_repeated(tests: list[TestView]) -> None:
    """Say where two texts' rows are filled by the same runs: that is one test, not two."""
    seen = set()
    for view in tests:
        test = view.test
        places = [(v.column, v.origin, v.loss, v.axis, v.at) for v in test.values.values()]
        runs = [run.run.id if run else name for name, _, run in view.values]
        key = str((test.measure.text, test.expect.low, test.expect.high, places, runs))
        if runs and key in seen:
            view.marks.append("the same runs as above")
        seen.add(key)


def _printed(one: PaperNumber) -> str:
    """A number of the papers and its unit, which it may say to be one."""
    value, unit = one.value.replace("-", MINUS), one.unit
    return f"{value} {unit.removesuffix('s') if value == '1' else unit}"


def any_decided(views: list[ClaimView]) -> bool:
    """Whether a run here says anything of any claim."""
    return any(view.verdict not in ("by test", "not run") for view in views)


def on_one_seed(views: list[ClaimView]) -> dict[str, int]:
    """How many claims of a verdict rest on a single training of a run."""
    found = {
        verdict: sum(v.verdict == verdict and v.one_seed for v in views) for verdict in VERDICTS
    }
    return {verdict: n for verdict, n in found.items() if n}


def counts(views: list[ClaimView]) -> list[tuple[str, int]]:
    """How many claims have each verdict, in the order of ``VERDICTS``; none of none."""
    found = [(verdict, sum(v.verdict == verdict for v in views)) for verdict in VERDICTS]
    return [(verdict, n) for verdict, n in found if n]
