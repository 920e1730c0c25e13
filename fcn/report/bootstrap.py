"""How sure a score is: the same test images drawn again, for every run with the same weights.

Two runs that were scored on the same images get the same resampled images: the bootstrap of their
difference is paired. What trainings differ by comes on top (``fcn.report.spread``).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn.files import lookup
from fcn.report.averages import METRICS, average
from fcn.report.results import Results, RunResult, SeedResult, shown

DRAWS = 10_000
BLOCK = 1000  # draws that are made together
LEVEL = 95  # percent of the draws that an interval holds


def generator(*parts: str) -> np.random.Generator:
    """Random numbers that depend on ``parts`` alone."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def image_weights(ids: Sequence[str]) -> np.ndarray:
    """How often each image stands in each resampled test set, float32 (DRAWS, images).

    A function of the ids alone: runs scored on the same images are resampled together.
    """
    n, random = len(ids), generator("images", *ids)
    weights = np.empty((DRAWS, n), np.float32)
    for start in range(0, DRAWS, BLOCK):  # the draws themselves would take more memory
        drawn = random.integers(n, size=(BLOCK, n)) + n * np.arange(BLOCK)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=BLOCK * n)
        weights[start : start + BLOCK] = counts.reshape(BLOCK, n)
    return weights


def _matrix(confusion: Any) -> np.ndarray:
    """A confusion matrix as an array; an empty one where it is none."""
    try:
        matrix = np.array(confusion, np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros((0, 0))
    return matrix if matrix.ndim == 2 else np.zeros((0, 0))


def mean_of_seeds(values: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """Draws (DRAWS,) of the mean of ``values``, one for each of at least two ``seeds``.

    Around the mean of the n values lies Student's t of n - 1 degrees of freedom with their sample
    standard deviation over sqrt(n). It is made of factors of the single seeds that are drawn by
    their numbers alone: what moves two runs alike at the same seed cancels in their difference.
    """
    n = len(values)
    random = generator("factors", *map(str, seeds))
    factors = random.standard_normal((n, DRAWS))
    factors -= factors.mean(0)  # their sum over values v_i: normal, of variance (n - 1) s^2
    factors /= np.sqrt(n * random.chisquare(n - 1, DRAWS))
    return np.mean(values) + (factors * np.array(values)[:, None]).sum(0)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The central ``LEVEL`` percent, and on either side two standard errors of that quantile more.

    An end that few draws decide would lie on this or that side of a tolerance by their chance.
    """
    tail = (1 - LEVEL / 100) / 2
    tail = max(0.0, tail - 2 * float(np.sqrt(tail * (1 - tail) / len(draws))))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


@dataclass
class Bootstrap:
    """Draws of the runs' metrics; weights of a test set are made once."""

    results: Results
    problems: list[str] = field(default_factory=list)
    _weights: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    _truth: dict[tuple[tuple[str, ...], bytes], np.ndarray] = field(default_factory=dict)
    _drawn: dict[tuple[str, ...], np.ndarray | None] = field(default_factory=dict)

    def read(
        self, seed: SeedResult, task: str, objects: bool
    ) -> tuple[tuple[str, ...], list[np.ndarray]] | None:
        """The images, and true positives, truth and predicted of each, (images, classes) each.

        With ``objects`` the predicted pixels are those whose truth is not the first class; files of
        earlier versions lack them. None without a ``per_image.npz`` that has the counts, can be
        read and agrees with ``metrics.json``; the last two are problems that are told.
        """
        path = seed.directory / "per_image.npz"
        if not path.exists():
            return None
        name = shown(path, self.results.folder)
        third = "predicted_on_objects" if objects else "predicted"
        try:
            with np.load(path) as file:
                if objects and f"{task}_{third}" not in file:
                    return None
                ids = tuple(map(str, file["ids"]))
                counts = [
                    np.asarray(file[f"{task}_{part}"], np.float64)
                    for part in ("true_positive", "truth", third)
                ]
        except (
            Exception
        ):  # a wrong byte may be one of zip, of zlib or of a header in Python's syntax
            self.problems.append(f"{name}: cannot be read, so no interval is made from it.")
            return None
        confusion = _matrix(lookup(seed.metrics, ("tasks", task, "confusion")))
        claimed = confusion[1:] if objects else confusion
        totals = (confusion.diagonal(), confusion.sum(1), claimed.sum(0))
        if not all(
            part.shape == (len(ids), len(total)) and np.array_equal(part.sum(0), total)
            for part, total in zip(counts, totals, strict=True)
        ):
            self.problems.append(
                f"{name}: its counts are not those of metrics.json, so no interval is made from it."
            )
            return None
        return ids, counts

    def resampled(self, ids: tuple[str, ...], counts: np.ndarray) -> np.ndarray:
        """Sums (DRAWS, columns) of ``counts`` (images, columns) over the resampled test sets.

        In float32, to 1e-7: a test set of a thousand images is a product of millions of numbers.
        """
        if ids not in self._weights:
            self._weights[ids] = image_weights(ids)
        return (self._weights[ids] @ counts.astype(np.float32)).astype(np.float64)

    def of_seed(self, seed: SeedResult, task: str, metric: str, rule: str) -> np.ndarray | None:
        """Draws (DRAWS,) of one result's metric; None where ``read`` has nothing."""
        key = (str(seed.directory), task, metric, rule)
        if key not in self._drawn:
            self._drawn[key] = None
            if found := self.read(seed, task, rule == "objects"):
                ids, counts = found
                own, truth = np.concatenate((counts[0], counts[2]), axis=1), counts[1]
                hit, predicted = np.split(self.resampled(ids, own), 2, axis=1)
                same = (ids, truth.tobytes())
                if same not in self._truth:  # of all runs on these images, but for a few
                    self._truth = {
                        **dict(list(self._truth.items())[-7:]),
                        same: self.resampled(ids, truth),
                    }
                truth = self._truth[same]
                self._drawn[key] = average(metric, hit, truth, predicted, rule)
        return self._drawn[key]

    def draws(self, result: RunResult, origin: tuple[str, ...], rule: str) -> np.ndarray | None:
        """Draws (DRAWS,) of a column's mean over seeds, in the unit of the file.

        Over the test images alone. None where the column is no metric of a confusion matrix, or
        where a counted seed lacks the counts per image that its average needs.
        """
        metric = origin[-1] if origin else ""
        if origin[:2] != ("metrics", "tasks") or metric not in METRICS:
            return None
        draws = [self.of_seed(seed, origin[2], metric, rule) for seed in result.counted]
        known = [of_seed for of_seed in draws if of_seed is not None]
        return np.mean(known, axis=0) if known and len(known) == len(draws) else None
