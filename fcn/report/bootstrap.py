"""How sure a score is: the same test images drawn again, for every run with the same weights.

Two runs that were scored on the same images get the same resampled images: the bootstrap of their
difference is paired. What trainings differ by comes on top (``fcn.report.spread``).
"""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn.files import lookup
from fcn.report.averages import METRICS, average
from fcn.report.results import Results, RunResult, SeedResult, shown

DRAWS = 1000
Counts = tuple[np.ndarray, np.ndarray, np.ndarray]
LEVEL = 95  # percent of the draws that an interval holds


def generator(*parts: str) -> np.random.Generator:
    """Random numbers that depend on ``parts`` alone."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def image_weights(ids: Sequence[str]) -> np.ndarray:
    """How often each image stands in each resampled test set, float64 (DRAWS, images).

    A function of the ids alone: runs scored on the same images are resampled together.
    """
    n = len(ids)
    drawn = generator("images", *ids).integers(n, size=(DRAWS, n))
    drawn += n * np.arange(DRAWS)[:, None]
    return np.bincount(drawn.ravel(), minlength=DRAWS * n).reshape(DRAWS, n).astype(np.float64)


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
    """The central ``LEVEL`` percent of the draws."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


@dataclass
class Bootstrap:
    """Draws of the runs' metrics; weights of a test set are made once."""

    results: Results
    problems: list[str] = field(default_factory=list)
    _weights: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    _read: dict[tuple[str, str, bool], Counts | None] = field(default_factory=dict)

    def counts(self, seed: SeedResult, task: str, objects: bool = False) -> Counts | None:
        """True positives, truth, predicted: (DRAWS, classes) each, of the resampled test sets.

        With ``objects`` the predicted pixels are those whose truth is not the first class; files of
        earlier versions lack them. None without a ``per_image.npz`` that has the counts, can be
        read and agrees with ``metrics.json``; the last two are problems that are told.
        """
        path = seed.directory / "per_image.npz"
        key = (str(path), task, objects)
        if key in self._read:
            return self._read[key]
        self._read[key] = None
        if not path.exists():
            return None
        name = shown(path, self.results.folder)
        third = "predicted_on_objects" if objects else "predicted"
        try:
            with np.load(path) as file:
                if objects and f"{task}_{third}" not in file:
                    return None
                ids = tuple(map(str, file["ids"]))
                hit, truth, predicted = (
                    np.asarray(file[f"{task}_{part}"], np.float64)
                    for part in ("true_positive", "truth", third)
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            self.problems.append(f"{name}: cannot be read, so no interval is made from it.")
            return None
        confusion = _matrix(lookup(seed.metrics, ("tasks", task, "confusion")))
        claimed = confusion[1:] if objects else confusion
        totals = (confusion.diagonal(), confusion.sum(1), claimed.sum(0))
        if not all(
            part.shape == (len(ids), len(total)) and np.array_equal(part.sum(0), total)
            for part, total in zip((hit, truth, predicted), totals, strict=True)
        ):
            self.problems.append(
                f"{name}: its counts are not those of metrics.json, so no interval is made from it."
            )
            return None
        if ids not in self._weights:
            self._weights[ids] = image_weights(ids)
        drawn = self._weights[ids] @ np.concatenate((hit, truth, predicted), axis=1)
        classes = hit.shape[1]
        self._read[key] = (
            drawn[:, :classes],
            drawn[:, classes : 2 * classes],
            drawn[:, 2 * classes :],
        )
        return self._read[key]

    def draws(self, result: RunResult, origin: tuple[str, ...], rule: str) -> np.ndarray | None:
        """Draws (DRAWS,) of a column's mean over seeds, in the unit of the file.

        Over the test images alone. None where the column is no metric of a confusion matrix, or
        where a counted seed lacks the counts per image that its average needs.
        """
        metric = origin[-1] if origin else ""
        if origin[:2] != ("metrics", "tasks") or metric not in METRICS:
            return None
        counts = [self.counts(seed, origin[2], rule == "objects") for seed in result.counted]
        if not counts or any(of_seed is None for of_seed in counts):
            return None
        draws = [average(metric, *of_seed, rule) for of_seed in counts if of_seed]
        return np.asarray(np.mean(draws, axis=0))
