"""How far trainings that differ in their seed lie apart, from all runs that were scored alike.

Few seeds of one run say little of their spread; those of sixty runs together say it well. Scores
on one test set are taken as sums of normal deviations: what a seed does to every run (it fixes the
order of the training images), what each training from a classifier or from nothing adds to it, and
where a run goes on from another's weights, the deviation of those weights, what the seed does to
all that go on from them, and what each of these adds: a stage of a trained net moves far less than
a training. What two runs have in common cancels in their difference. A run that plainly varies more
than the others of its kind is judged by its own seeds, and the others without it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

import numpy as np
from scipy import stats

from fcn.report.bootstrap import DRAWS, generator

Scores = Mapping[str, Mapping[int, float]]  # run, seed, score
OUTLYING = 0.01  # chance that any run at all is taken for one that varies more, where none does


@dataclass(frozen=True)
class Deviation:
    """A standard deviation, and of how many degrees of freedom (infinite: it is known)."""

    size: float
    freedom: float = np.inf

    def with_assumed(self, assumed: "Deviation") -> "Deviation":
        """Both variances, weighted by how well each is known.

        One that is not estimated, of no or infinite freedom, adds nothing to what is assumed.
        """
        if not self.freedom or not np.isfinite(self.freedom) or not np.isfinite(assumed.freedom):
            return assumed
        freedom = self.freedom + assumed.freedom
        squares = self.freedom * self.size**2 + assumed.freedom * assumed.size**2
        return Deviation(float(np.sqrt(squares / freedom)), freedom)

    def draws(self, *parts: str, seeds: Sequence[int] = (0,)) -> np.ndarray:
        """Draws (DRAWS,) of Student's t: the mean of one deviation of each seed.

        A function of ``parts`` (whose it is) and the seeds.
        """
        normal = [generator("deviation", *parts, str(n)).standard_normal(DRAWS) for n in seeds]
        draws: np.ndarray = np.mean(normal, axis=0) * self.size
        if np.isfinite(self.freedom):
            squares = generator("freedom", repr(self)).chisquare(self.freedom, DRAWS)
            draws *= np.sqrt(self.freedom / squares)
        return draws


@dataclass(frozen=True)
class Spread:
    """Deviations between seeds of one score, in its unit.

    common: what a seed does to every run; training: what one that starts from a classifier or from
    nothing adds; family: what a seed does to all runs that go on from the same run's weights;
    stage: what each of these adds. own: of runs that vary more, in place of ``training`` or, where
    they go on from another, of ``family`` and ``stage``.
    """

    common: Deviation
    training: Deviation
    family: Deviation
    stage: Deviation
    own: Mapping[str, Deviation] = field(default_factory=dict)

    def draws(self, lineage: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Draws (DRAWS,) of how far a mean over ``seeds`` lies from that over all seeds.

        ``lineage``: the trainings behind the weights, the first one first. Runs are moved alike by
        what they have in common: seeds, also where each has others besides, the weights that they
        go on from, or the same weights.
        """
        terms = {("common",): self.common, **self._terms(lineage)}
        moved = [deviation.draws(*term, seeds=seeds) for term, deviation in terms.items()]
        return np.sum(moved, axis=0)

    def apart(self, lineages: Sequence[Sequence[str]]) -> float:
        """Deviation of one training of a run, apart from what all the runs have in common."""
        terms = [self._terms(lineage) for lineage in lineages]
        shared = set.intersection(*map(set, terms)) if len(terms) > 1 else set()
        squares = (
            sum(deviation.size**2 for term, deviation in of_run.items() if term not in shared)
            for of_run in terms
        )
        return float(np.sqrt(max(squares)))

    def _terms(self, lineage: Sequence[str]) -> dict[tuple[str, ...], Deviation]:
        """What adds up behind a run, by its kind and whose it is."""
        terms: dict[tuple[str, ...], Deviation] = {
            ("training", lineage[0]): self.own.get(lineage[0], self.training)
        }
        for parent, run in pairwise(lineage):
            if run not in self.own:
                terms["family", parent] = self.family
            terms["stage", run] = self.own.get(run, self.stage)
        return terms


@dataclass(frozen=True)
class _Sums:
    """What runs add to the two-way analysis of variance, with the seeds as its blocks.

    About the mean of each run over its seeds: the products of the columns that stand for the seeds
    with each other and with the scores, the squares of the scores, and their degrees of freedom.
    """

    products: np.ndarray
    moments: np.ndarray
    squares: float
    freedom: int

    @staticmethod
    def of(of_seed: Mapping[int, float], numbers: Sequence[int]) -> "_Sums":
        columns = np.array([[float(seed == number) for number in numbers] for seed in of_seed])
        values = np.array(list(of_seed.values()))
        columns, values = columns - columns.mean(axis=0), values - values.mean()
        freedom = len(values) - 1
        return _Sums(columns.T @ columns, columns.T @ values, float(values @ values), freedom)

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.products + other.products,
            self.moments + other.moments,
            self.squares + other.squares,
            self.freedom + other.freedom,
        )

    def __sub__(self, other: "_Sums") -> "_Sums":
        return self + _Sums(-other.products, -other.moments, -other.squares, -other.freedom)

    def rest(self) -> tuple[float, int]:
        """Squares that remain when each seed moves all runs alike, and their freedom."""
        effects, _, rank, _ = np.linalg.lstsq(self.products, self.moments, rcond=1e-9)
        left = self.freedom - int(rank)
        rest = self.squares - float(self.moments @ effects)
        # A difference of sums: what is left of equal ones is rounding, and no spread to judge by.
        return (rest, left) if left and rest > 1e-12 * self.squares else (0.0, left)


def _sums(scores: Scores) -> dict[str, _Sums]:
    """Of each run with several seeds."""
    several = {run: of_seed for run, of_seed in scores.items() if len(of_seed) > 1}
    numbers = sorted({seed for of_seed in several.values() for seed in of_seed})
    return {run: _Sums.of(of_seed, numbers) for run, of_seed in several.items()}


def _within(scores: Scores) -> tuple[float, int, float, int]:
    """Sums of squares of ``scores`` and their degrees of freedom.

    Within runs (around the mean of each over its seeds), and of what then remains when each seed
    moves all runs alike.
    """
    found = list(_sums(scores).values())
    if not found:
        return 0.0, 0, 0.0, 0
    whole = reduce(_Sums.__add__, found)
    return whole.squares, whole.freedom, *whole.rest()


def _outlying(families: Iterable[Scores], chance: float) -> dict[str, Deviation]:
    """Runs whose scores vary more over the seeds than those of the others, with their deviation.

    By the ratio of variances (F test) beside all others, the most outlying first, at ``chance``
    for all runs together. A seed moves the runs of one family alike; of a family of two, nothing
    tells which.
    """
    found: dict[str, Deviation] = {}
    left = [_sums(family) for family in families]
    while True:
        wholes = [reduce(_Sums.__add__, family.values()) for family in left if family]
        squares = sum(whole.rest()[0] for whole in wholes)
        freedom = sum(whole.rest()[1] for whole in wholes)
        chances = {}
        for family, whole in zip(filter(None, left), wholes, strict=True):
            here = whole.rest()
            for run, sums in family.items() if len(family) > 2 else ():
                without = (whole - sums).rest()
                own, of_own = here[0] - without[0], here[1] - without[1]
                # In this order: of others that do not vary at all, 0 and not what rounding leaves.
                others, of_others = squares - here[0] + without[0], freedom - of_own
                if others > 0 and of_others and of_own > 0:
                    ratio = (own / of_own) / (others / of_others)
                    chances[run] = float(stats.f.sf(ratio, of_own, of_others))
        worst = min(chances, key=lambda run: chances[run], default="")
        if not worst or chances[worst] * len(chances) >= chance:
            return found
        sums = next(family.pop(worst) for family in left if worst in family)
        found[worst] = Deviation(float(np.sqrt(sums.squares / sums.freedom)), sums.freedom)


def between_seeds(
    scores: Scores,
    lineages: Mapping[str, Sequence[str]],
    assumed: Spread | None = None,
    outlying: float = OUTLYING,
) -> Spread | None:
    """The spread of ``scores``; where no run that starts anew has two seeds, what is assumed.

    ``lineages``: of each run, the trainings behind it that have scores, itself the last.
    ``assumed``: counts beside the scores for as much as it is known, but for what a seed does to
    every run.
    ``outlying``: chance that any run is taken for one that varies more where none does (0: never).
    """
    first = {run: scores[run] for run in scores if len(lineages[run]) == 1}
    own = _outlying([first], outlying)
    first = {run: of_seed for run, of_seed in first.items() if run not in own}
    within, of_runs, rest, freedom = _within(first)
    if not of_runs:
        return assumed
    if freedom < 1:  # a single run: nothing tells its seeds' part from its own
        training, common = Deviation(float(np.sqrt(within / of_runs)), of_runs), Deviation(0.0)
    else:
        apart = rest / freedom
        training = Deviation(float(np.sqrt(apart)), freedom)
        seeds = {seed for of_seed in first.values() if len(of_seed) > 1 for seed in of_seed}
        between = float(np.sqrt(max(0.0, within / of_runs - apart)))
        common = Deviation(between, len(seeds) - 1)
    families = _moves(scores, lineages)
    own |= _outlying(families, outlying)
    staged = _of_stages(
        [{run: moves for run, moves in f.items() if run not in own} for f in families]
    )
    if assumed is None:
        return Spread(common, training, *(staged or (Deviation(0.0), training)), own)
    family, stage = staged or (Deviation(0.0, 0), Deviation(0.0, 0))
    return Spread(
        common,
        training.with_assumed(assumed.training),
        family.with_assumed(assumed.family),
        stage.with_assumed(assumed.stage),
        own,
    )


def _moves(scores: Scores, lineages: Mapping[str, Sequence[str]]) -> list[Scores]:
    """How far a run's score lies from that of the run which it goes on from, at two seeds or more.

    Those that go on from the same run are one family.
    """
    families: dict[str, dict[str, dict[int, float]]] = defaultdict(dict)
    for run, lineage in lineages.items():
        if len(lineage) > 1 and lineage[-2] in scores:  # trunks of a late fusion have no score
            before = scores[lineage[-2]]
            moves = {seed: s - before[seed] for seed, s in scores[run].items() if seed in before}
            if len(moves) > 1:
                families[lineage[-2]][run] = moves
    return list(families.values())


def _of_stages(families: Sequence[Scores]) -> tuple[Deviation, Deviation] | None:
    """The deviations ``family`` and ``stage`` of moves; None where there are none."""
    families = [family for family in families if family]
    if not families:
        return None
    analyses = [_within(family) for family in families]
    # Runs of one family share what the seed did to it: each family counts as one.
    seeds = [len({seed for moves in f.values() for seed in moves}) - 1 for f in families]
    whole = sum(n * a[0] / a[1] for n, a in zip(seeds, analyses, strict=True)) / sum(seeds)
    freedom = sum(a[3] for a in analyses)
    if not freedom:  # families of one: nothing tells what is the family's
        return Deviation(0.0), Deviation(float(np.sqrt(whole)), sum(seeds))
    own = sum(a[2] for a in analyses) / freedom
    family = Deviation(float(np.sqrt(max(0.0, whole - own))), sum(seeds))
    return family, Deviation(float(np.sqrt(own)), freedom)
