"""How far trainings that differ in their seed lie apart, from all runs that were scored alike.

Few seeds of one run say little of their spread; those of sixty runs together say it well. Scores
on one test set are taken as the sum of what is the run's, what is the seed's (it fixes the order of
the training images, for every run), and a normal rest of one deviation for all: the two-way
analysis of variance, with the seeds as its blocks. In a difference of runs with the same seeds
what is the seed's cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fcn.report.bootstrap import DRAWS, generator


@dataclass(frozen=True)
class Spread:
    """Standard deviations between seeds of one score, in its unit.

    own: of what is neither the run's nor the seed's; common: of what a seed does to every run;
    freedom: degrees of freedom of ``own``, infinite where it is assumed.
    """

    own: float
    common: float = 0.0
    freedom: float = np.inf

    def draws(self, weights: str, seeds: Sequence[int]) -> np.ndarray:
        """Draws (DRAWS,) of how far a mean over ``seeds`` lies from that over all seeds.

        Student's t of ``freedom``. A function of the name of the ``weights`` and of the seeds:
        runs that score the same weights are moved alike, and so are runs by a common seed.
        """
        numbers = [str(seed) for seed in seeds]
        alone = generator("training", weights, *numbers).standard_normal(DRAWS) * self.own
        shared = generator("seeds", *numbers).standard_normal(DRAWS) * self.common
        draws = (alone + shared) / np.sqrt(len(seeds))
        if np.isfinite(self.freedom):
            squares = generator("freedom").chisquare(self.freedom, DRAWS)
            draws *= np.sqrt(self.freedom / squares)
        return draws


def between_seeds(scores: Mapping[str, Mapping[int, float]]) -> Spread | None:
    """The spread of ``scores``, run to seed to score; None where no run has two seeds."""
    several = {run: of_seed for run, of_seed in scores.items() if len(of_seed) > 1}
    if not several:
        return None
    numbers = sorted({seed for of_seed in several.values() for seed in of_seed})
    rows, values = [], []
    for i, of_seed in enumerate(several.values()):
        for seed, value in of_seed.items():
            row = np.zeros(len(several) + len(numbers))
            row[i] = row[len(several) + numbers.index(seed)] = 1
            rows.append(row)
            values.append(value)
    design, found = np.array(rows), np.array(values)
    within = sum(float(np.var(list(v.values()))) * len(v) for v in several.values())
    of_runs = len(found) - len(several)  # degrees of freedom
    fit, _, rank, _ = np.linalg.lstsq(design, found, rcond=None)
    freedom = len(found) - int(rank)
    if freedom < 1:  # a single run: nothing tells its seeds' part from its own
        return Spread(float(np.sqrt(within / of_runs)), 0.0, of_runs)
    own = float(((found - design @ fit) ** 2).sum()) / freedom
    return Spread(float(np.sqrt(own)), float(np.sqrt(max(0.0, within / of_runs - own))), freedom)
