"""The four metrics of the paper (section 5), from one confusion matrix over a whole data set."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Fractions; None where a value is 0/0. ``per_class_iu`` is in the order of the classes."""

    pixel_accuracy: float | None
    mean_accuracy: float | None
    mean_iu: float | None
    frequency_weighted_iu: float | None
    per_class_iu: list[float | None]


def confusion(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Count pixels by class: entry (i, j) is n_ij, pixels of class i predicted as class j.

    As ``fast_hist`` in the authors' score.py: pixels whose truth is not in 0..classes-1 (void) are
    dropped, whatever was predicted there.

    Args:
        truth, prediction: integer tensors of one shape and device.
        classes: number of classes.

    Returns:
        int64 (classes, classes) on the same device; the host does not wait for a GPU.

    Raises:
        ValueError: shapes or dtypes do not fit, or (checked on the CPU only, where it costs no
            synchronisation) a prediction outside 0..classes-1 counts.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {tuple(truth.shape)} and prediction {tuple(prediction.shape)}")
    if truth.is_floating_point() or prediction.is_floating_point():
        raise ValueError("labels are integers")
    t, p = truth.reshape(-1).long(), prediction.reshape(-1).long()
    counted = (t >= 0) & (t < classes)
    if t.device.type == "cpu" and bool((((p < 0) | (p >= classes)) & counted).any()):
        raise ValueError(f"a prediction is not in 0..{classes - 1}")
    # Void goes to one bin beyond the end: selecting pixels, or bincount, would make a GPU wait.
    index = torch.where(counted, classes * t + p, classes * classes)
    counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=t.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts[:-1].view(classes, classes)


class ConfusionMatrix:
    """The confusion matrix of a data set, image by image, and each image's counts."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.classes = classes
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self._counts: list[Tensor] = []  # per image int64 (4, classes), on the device

    def update(self, truth: Tensor, prediction: Tensor) -> None:
        """Add one image (H, W) or a batch of them (N, H, W); see ``confusion``."""
        if truth.ndim == 3:
            for one, other in zip(truth, prediction, strict=True):
                self.update(one, other)
            return
        image = confusion(truth, prediction, self.classes).to(self.matrix.device)
        self.matrix += image
        parts = [image.diagonal(), image.sum(1), image.sum(0), image[1:].sum(0)]
        self._counts.append(torch.stack(parts))

    def per_image(self) -> dict[str, np.ndarray]:
        """Pixels of each class, int64 (images, classes), void left out.

        ``true_positive``, ``truth`` and ``predicted``: their sums over any set of images give that
        set's metrics (``scores_of_counts``). ``predicted_on_objects``: predicted where the truth is
        not the first class, which stands for ``predicted`` in a mean over object pixels alone.
        """
        if self._counts:
            counts = torch.stack(self._counts).cpu().numpy()
        else:
            counts = np.zeros((0, 4, self.classes), np.int64)
        names = ("true_positive", "truth", "predicted", "predicted_on_objects")
        return {name: counts[:, i] for i, name in enumerate(names)}

    def scores(self) -> Scores:
        return scores(self.matrix)


def scores(confusion: Tensor | np.ndarray) -> Scores:
    """The metrics of a confusion matrix (classes, classes) with the truth in the rows."""
    n = confusion.cpu().numpy() if isinstance(confusion, Tensor) else np.asarray(confusion)
    return scores_of_counts(np.diagonal(n), n.sum(1), n.sum(0))


def scores_of_counts(
    true_positive: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
) -> Scores:
    """The metrics from pixel counts per class, each (classes,), in float64.

    With n_ii true positives, t_i pixels of class i in the truth and p_i predicted ones:

    * pixel accuracy: sum n_ii / sum t_i
    * mean accuracy: mean over classes of n_ii / t_i
    * mean IU: mean over classes of n_ii / (t_i + p_i - n_ii)
    * frequency-weighted IU: (sum t_i)^-1 sum t_i n_ii / (t_i + p_i - n_ii)

    Corner cases are those of the authors' score.py: means skip classes where the value is 0/0. So a
    class that is neither in the truth nor predicted is left out, but one that is predicted without
    being in the truth counts in mean IU, as 0. The paper leaves that one out too on SIFT Flow
    (footnote of its table): the report computes this mean beside (``fcn.report.averages``).
    """
    hit, present, claimed = (np.asarray(x, np.float64) for x in (true_positive, truth, predicted))
    pixels = present.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hit / present
        iu = hit / (present + claimed - hit)
    in_truth = present > 0
    if not pixels:
        pixel_accuracy = weighted = None
    else:
        pixel_accuracy = float(hit.sum() / pixels)
        weighted = float((present[in_truth] * iu[in_truth]).sum() / pixels)
    return Scores(
        pixel_accuracy,
        _mean(accuracy),
        _mean(iu),
        weighted,
        [None if np.isnan(value) else float(value) for value in iu],
    )


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
