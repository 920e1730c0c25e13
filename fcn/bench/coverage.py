"""How often an interval of the verdicts holds the truth, on simulated suites where it is known.

    python -m fcn.bench.coverage reports/coverage.json

Scores are drawn as the estimate of the spread supposes (``fcn.report.spread``), or otherwise, and
the interval of a difference of two runs is made as for a verdict. Seeds alone differ: there are no
test images here. docs/deviations.md quotes the outcome.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcn.files import write_json
from fcn.progress import say
from fcn.provenance import code_version
from fcn.report.bootstrap import LEVEL, interval
from fcn.report.spread import OUTLYING, between_seeds

RUNS = 20  # of a suite in which all start anew
FAMILIES, CHILDREN = 4, 4  # of one with stages: runs that others go on from, and these
COMMON, FAMILY, STAGE = 1.0, 0.8, 0.2  # deviations, a training's own being 1
SUITES = 400

Suite = tuple[dict[str, np.ndarray], dict[str, list[str]]]  # a score for each seed; lineages
World = Callable[[np.random.Generator, int], Suite]


def anew(deviations: Sequence[float]) -> World:
    """Runs that start anew and differ in nothing but by chance, with a deviation of each."""

    def draw(random: np.random.Generator, seeds: int) -> Suite:
        moved = random.normal(0, COMMON, seeds)
        scores = {f"r{i}": moved + random.normal(0, own, seeds) for i, own in enumerate(deviations)}
        return scores, {run: [run] for run in scores}

    return draw


def staged(kept: float, of_first: float | None = None) -> World:
    """Runs, and such as go on from them and keep ``kept`` of their parent's deviation.

    Args:
        of_first: what the first of the latter keeps, where it is another.
    """

    def draw(random: np.random.Generator, seeds: int) -> Suite:
        moved = random.normal(0, COMMON, seeds)
        scores: dict[str, np.ndarray] = {}
        lineages: dict[str, list[str]] = {}
        for i in range(FAMILIES):
            own, parent = random.normal(0, 1, seeds), f"p{i}"
            family = random.normal(0, FAMILY, seeds)
            scores[parent], lineages[parent] = moved + own, [parent]
            for j in range(CHILDREN):
                child = f"{parent}c{j}"
                stays = of_first if child == "p0c0" and of_first is not None else kept
                scores[child] = moved + stays * own + family + random.normal(0, STAGE, seeds)
                lineages[child] = [parent, child]
        return scores, lineages

    return draw


def held(world: World, pair: tuple[str, str], seeds: int, tested: bool = True) -> dict[str, float]:
    """Over ``SUITES`` suites: percent of the intervals that hold 0, the truth; their median width.

    Args:
        tested: whether runs that vary more than the others are looked for.
    """
    random = np.random.default_rng(seeds)
    inside, widths = 0, []
    for number in range(SUITES):
        scores, lineages = world(random, seeds)
        # A draw is a function of the runs' names: no two suites may have one in common.
        named = {f"{number}{run}": dict(enumerate(of.tolist())) for run, of in scores.items()}
        behind = {f"{number}{run}": [f"{number}{r}" for r in of] for run, of in lineages.items()}
        found = between_seeds(named, behind, outlying=OUTLYING if tested else 0.0)
        assert found is not None
        one, other = (
            scores[run].mean() + found.draws(behind[f"{number}{run}"], range(seeds)) for run in pair
        )
        low, high = interval(one - other)
        inside += low <= 0 <= high
        widths.append(high - low)
    return {"held": 100 * inside / SUITES, "median_width": float(np.median(widths))}


def cases() -> list[tuple[str, World, tuple[str, str], bool]]:
    """What is simulated, in words; the two runs of the difference; with the F test or without."""
    alike, half = anew([1.0] * RUNS), anew([1.0, 0.3] * (RUNS // 2))
    found = [
        ("one deviation for all", alike, ("r0", "r1"), True),
        ("half of the runs vary by 0.3 of the others: two of the others", half, ("r0", "r2"), True),
        ("half of the runs vary by 0.3 of the others: two of these", half, ("r1", "r3"), True),
    ]
    for times in (4.0, 12.0):
        wild = anew([times] + [1.0] * (RUNS - 1))
        for tested in (True, False):
            how = f"one run varies {times:g} times as much" + ("" if tested else ", no F test")
            found += [
                (f"{how}: that one and another", wild, ("r0", "r1"), tested),
                (f"{how}: two others", wild, ("r1", "r2"), tested),
            ]
    for kept, of_first, how in (
        (1.0, None, "stages keep what their parent was"),
        (0.0, None, "stages forget what their parent was"),
        (1.0, 0.0, "one stage forgets what its parent was"),
    ):
        stages = staged(kept, of_first)
        found += [
            (f"{how}: that one and another of its parent", stages, ("p0c0", "p0c1"), True),
            (f"{how}: that one and another's", stages, ("p0c0", "p1c0"), True),
            (f"{how}: that one and its parent", stages, ("p0c0", "p0"), True),
        ]
    return found


def main(path: str) -> None:
    rows: list[dict[str, Any]] = []
    for name, world, pair, tested in cases():
        for seeds in (2, 3):
            rows.append({"case": name, "seeds": seeds, **held(world, pair, seeds, tested)})
            say(f"{name}, {seeds} seeds: {rows[-1]['held']:.0f} %, {rows[-1]['median_width']:.2f}")
    write_json(path, {"level": LEVEL, "suites": SUITES, "code": code_version(), "rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
