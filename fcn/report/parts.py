"""One part of a claim's measure decided: by its interval, by ways of timing, or by divergence."""

from dataclasses import dataclass

import numpy as np

from fcn.report.bootstrap import interval
from fcn.report.claims import Part, Test
from fcn.report.samples import Sample

ACROSS = "the interval crosses the tolerance"
WAYS = "ways of timing it lie on both sides of the tolerance"


@dataclass(frozen=True)
class PartView:
    """A part of a measure as decided; without ``low`` and ``high`` where it has no interval."""

    verdict: str
    reason: str
    low: float | None = None
    high: float | None = None


def of_diverged(test: Test, part: Part, failed: list[str]) -> str:
    """The verdict of a part with a run that diverged, empty where none did."""
    found = {test.diverged[letter] for letter in failed if letter in part.letters}
    return "not reproduced" if "not reproduced" in found else "reproduced" if found else ""


def decide_part(test: Test, part: Part, samples: dict[str, Sample]) -> PartView:
    """By the interval of its draws, where it has some; inconclusive where it cannot be measured."""
    own = {letter: samples[letter] for letter in sorted(part.letters)}
    point = float(part({letter: sample.point for letter, sample in own.items()}))
    if not np.isfinite(point):
        return PartView("inconclusive", "not a finite number")
    if undecided := next((s.undecided for s in own.values() if s.undecided), ""):
        return PartView("inconclusive", undecided)
    if all(sample.draws is None for sample in own.values()):
        return _by_ways(test, part, own, point)
    draws = part.signed({k: s.point if s.draws is None else s.draws for k, s in own.items()})
    if not np.isfinite(draws).all():
        return PartView("inconclusive", "undefined on some resampled images")
    low, high = interval(draws)
    if part.absolute:
        ends = abs(low), abs(high)
        low, high = 0.0 if low < 0 < high else min(ends), max(ends)
    whole = test.expect.verdict(low, high)
    # Scores near 0 moved by more than they are: their ratio is then that of the moves.
    if not low <= point <= high and whole != test.expect.verdict(point, point):
        outside = "what was found lies outside of its interval: seeds differ by more"
        return PartView("inconclusive", outside, low, high)
    return PartView(
        whole, _why_open(test, own, low, high) if whole == "inconclusive" else "", low, high
    )


def _why_open(test: Test, samples: dict[str, Sample], low: float, high: float) -> str:
    """Why an interval decides nothing; where it is too wide to lie within, how many seeds would."""
    room = test.expect.high - test.expect.low
    seeds = min((s.seeds for s in samples.values() if s.seeds), default=0)
    if not seeds or not np.isfinite(room) or high - low < room:
        return ACROSS
    needed = int(np.ceil(seeds * ((high - low) / room) ** 2))
    return f"the interval is wider than the tolerance: about {needed} seeds would be needed"


def _by_ways(test: Test, part: Part, samples: dict[str, Sample], point: float) -> PartView:
    """A part without draws: by its point or, of inference times, by all that were measured."""
    timed = [set(sample.ways) for sample in samples.values() if sample.ways]
    common = set.intersection(*timed) if timed else set()
    if len(common) < 2:
        return PartView(test.expect.verdict(point, point), ACROSS)
    found = [
        float(part({k: s.ways.get(way, s.point) for k, s in samples.items()})) for way in common
    ]
    low, high = min(found), max(found)
    verdict = test.expect.verdict(low, high)
    return PartView(verdict, WAYS if verdict == "inconclusive" else "", low, high)
