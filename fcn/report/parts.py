"""One part of a claim's measure decided: by its interval, by ways of timing, or by divergence."""

from dataclasses import dataclass

import numpy as np

from fcn.report.bootstrap import interval
from fcn.report.claims import Number, Part, Test
from fcn.report.samples import Sample

ACROSS = "the interval crosses the tolerance"
MOST_SEEDS = 50  # that anybody would train for one answer
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


def _points(samples: dict[str, Sample]) -> dict[str, Number]:
    return {letter: sample.point for letter, sample in samples.items()}


def decide_part(test: Test, part: Part, samples: dict[str, Sample]) -> PartView:
    """By the interval of its draws, where it has some; inconclusive where it cannot be measured."""
    own = {letter: samples[letter] for letter in sorted(part.letters)}
    point = float(part(_points(own)))
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
    why = ACROSS if whole == "inconclusive" else ""
    if why and (needed := _seeds_needed(test, part, own, draws)):
        why += f"; at this value about {needed} seeds would decide"
    return PartView(whole, why, low, high)


def _seeds_needed(
    test: Test, part: Part, samples: dict[str, Sample], draws: np.ndarray
) -> int | None:
    """With how many seeds the interval would lie on one side, about the same point.

    What trainings differ by shrinks with the root of their number, what test images do stays. None
    where no number that anybody would run is enough.
    """
    seeds = min((s.seeds for s in samples.values() if s.seeds), default=0)
    if not seeds:
        return None
    images = {k: s.point if s.images is None else s.images for k, s in samples.items()}
    point, of_images = float(part(_points(samples))), part.signed(images)
    if not np.isfinite(of_images).all():
        return None
    (low, high), (first, last) = interval(draws), interval(np.broadcast_to(of_images, draws.shape))
    fixed = ((last - first) / 2) ** 2
    moves = max(0.0, ((high - low) / 2) ** 2 - fixed)
    bounds = [b for b in (test.expect.low, test.expect.high) if np.isfinite(b)]
    room = min((abs(point - bound) for bound in bounds), default=0.0) ** 2 - fixed
    needed = seeds * moves / room if room > 0 else np.inf
    return int(np.ceil(needed)) if seeds < needed <= MOST_SEEDS else None


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
