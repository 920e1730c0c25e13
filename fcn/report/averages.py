"""The four metrics under other averages than the authors' code's, from counts that are on disk.

``fcn.metrics`` scores a run; here its counts are read again, by numpy alone and for many resampled
test sets at once.
"""

from typing import Any

import numpy as np

AVERAGES = {
    "all": "every class that is in the truth or predicted (the authors' score.py)",
    "present": "the classes that are in the truth (the papers on SIFT Flow)",
    "without_background": "every class but the first; its pixels count where another is predicted",
    "objects": "only pixels whose truth is not the first class, and every class but the first",
}
METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the counted entries; NaN where there is none."""
    return np.where(counted, values, 0.0).sum(-1) / counted.sum(-1)


def average(
    metric: str, hit: np.ndarray, truth: np.ndarray, predicted: np.ndarray, rule: str = "all"
) -> np.ndarray:
    """A metric (a fraction) from pixel counts per class.

    Args:
        metric: one of ``METRICS``, defined as in ``fcn.metrics.scores_of_counts``.
        hit, truth, predicted: true positives and pixels of each class in the truth and in the
            prediction, (..., classes); for ``objects`` counted on those pixels only.
        rule: one of ``AVERAGES``.

    Returns:
        float64 (...), NaN where it is 0/0.
    """
    hit, truth, predicted = (np.asarray(x, np.float64) for x in (hit, truth, predicted))
    if rule in ("without_background", "objects"):
        hit, truth, predicted = hit[..., 1:], truth[..., 1:], predicted[..., 1:]
    present = truth > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "pixel_accuracy":
            return hit.sum(-1) / truth.sum(-1)
        if metric == "mean_accuracy":
            return _mean(hit / truth, present)
        union = truth + predicted - hit
        iu = hit / union
        if metric == "mean_iu":
            return _mean(iu, present if rule == "present" else union > 0)
        if metric != "frequency_weighted_iu":
            raise ValueError(f"no metric {metric!r}")
        return (np.where(present, iu, 0.0) * truth).sum(-1) / truth.sum(-1)


def of_confusion(metric: str, confusion: Any, rule: str) -> float | None:
    """A metric from a confusion matrix (classes, classes), truth in the rows.

    Returns:
        a fraction; None where it is 0/0 or ``confusion`` is no square matrix of counts.
    """
    try:
        counts = np.array(confusion, np.float64)
    except (TypeError, ValueError):
        return None
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not np.isfinite(counts).all():
        return None
    if rule == "objects":
        counts[:1] = 0
    value = float(average(metric, np.diagonal(counts), counts.sum(1), counts.sum(0), rule))
    return value if np.isfinite(value) else None
