"""Per-pixel losses (section 4.3; Caffe's SoftmaxWithLoss with ignore_label)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn.data.labels import VOID


def pixel_losses(
    scores: Tensor, truth: Tensor, kind: str, class_weights: Tensor | None = None
) -> Tensor:
    """(N, H, W) float32 losses, 0 where the truth is void.

    Args:
        scores: (N, C, H, W).
        truth: (N, H, W) uint8 class indices, void 255.
        kind: ``softmax``, multinomial logistic loss; ``sigmoid``, the sum over classes of
            one-against-all logistic losses (PAMI section 4.4).
        class_weights: (C,) factor of a pixel's loss by its true class (class balancing).
    """
    scores = scores.float()
    target = truth.long()
    if kind == "softmax":
        return F.cross_entropy(scores, target, class_weights, ignore_index=VOID, reduction="none")
    if kind != "sigmoid":
        raise ValueError(f"no loss {kind!r}")
    valid = target != VOID
    one_hot = F.one_hot(torch.where(valid, target, 0), scores.shape[1]).permute(0, 3, 1, 2)
    losses = F.binary_cross_entropy_with_logits(scores, one_hot.float(), reduction="none")
    weights = valid.float()
    if class_weights is not None:
        weights = weights * class_weights[torch.where(valid, target, 0)]
    return losses.sum(1) * weights


def batch_loss(
    scores: Tensor,
    truth: Tensor,
    kind: str,
    normalize: bool,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is optimised, and what is reported.

    Returns:
        the sum over images of their losses, each summed over its valid pixels and, with
        ``normalize``, divided by their number (Caffe's ``normalize``); the sum of all pixel losses;
        the number of valid pixels. None of them waits for the device.
    """
    losses = pixel_losses(scores, truth, kind, class_weights).flatten(1).sum(1)
    valid = (truth != VOID).flatten(1).sum(1)
    objective = (losses / valid.clamp(min=1) if normalize else losses).sum()
    return objective, losses.detach().sum(), valid.sum()
