"""How nearly a larger zero canvas is the same problem (recipe option ``canvas``), by experiment.

Images of many sizes in the corner of one canvas share shapes and kernels. What surrounds an image
changes, though: tight padding repeats its border's scores, reference padding ends after 100 zeros.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.bench.cases import evenly, mean_iu, trained
from fcn.data.dataset import SegmentationSet
from fcn.data.labels import VOID
from fcn.data.stream import AugmentedSet
from fcn.device import autocast
from fcn.inputs import clear_outside, preprocess
from fcn.loss import batch_loss
from fcn.metrics import ConfusionMatrix
from fcn.nets import FCN
from fcn.nets.padded import for_inference

SIDE, GRADIENTS = 512, 20


def canvas(
    weights: Path,
    prepared: Path,
    split: str,
    images: int | None,
    device: torch.device,
    gradients: int = GRADIENTS,
    side: int = SIDE,
) -> dict[str, Any]:
    """Trained weights on images at their own size and on the canvas, both in fp32.

    Labels are read inside the image alone. The loss is the mean over its pixels of the multinomial
    logistic loss, without dropout; a gradient's difference is that of the whole net's, in norms.

    Args:
        images: at even distances in the split, for the labels; None: all of it.
        gradients: so many of them, for loss and gradient.
        side: the sides of the canvas are multiples of it.
    """
    net, about = trained(weights)
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    dataset = SegmentationSet(prepared, split)
    chosen = evenly(len(dataset), images)
    native, larger = (AugmentedSet(dataset, np.array(chosen), 0, canvas=c) for c in (1, side))

    def read(images: AugmentedSet, position: int) -> tuple[Tensor, Tensor]:
        item = images[position]
        x = preprocess(item["image"][None], about["input"], device)
        if "extent" in item:
            clear_outside(x, item["extent"][None])
        return x, item["semantic"][None].to(device)

    fast = for_inference(net)
    counts = [ConfusionMatrix(len(about["classes"]["semantic"]), device) for _ in "ab"]
    same = pixels = 0
    with torch.inference_mode(), autocast("fp32", device):
        for position in range(len(chosen)):
            x, truth = read(native, position)
            alone = _labels(fast, x)
            within = _labels(fast, read(larger, position)[0])[:, : x.shape[2], : x.shape[3]]
            counts[0].update(truth, alone)
            counts[1].update(truth, within)
            same += int((alone == within).sum())
            pixels += alone.numel()
    losses, steps = [], []
    with autocast("fp32", device):
        for position in evenly(len(chosen), gradients):
            pair = [read(images, position) for images in (native, larger)]
            if (pair[0][1] == VOID).all():
                continue  # nothing is learned from it
            (loss, gradient), (other, moved) = (_gradient(net, *each) for each in pair)
            losses.append(abs(other - loss) / loss)
            steps.append(
                _norm(a - b for a, b in zip(gradient, moved, strict=True)) / _norm(gradient)
            )
    return {
        "net": about.get("run", about["net"]["architecture"]),
        "seed": about.get("seed"),
        "dataset": dataset.info["title"],
        "split": split,
        "padding": about["net"]["padding"],
        "side": side,
        "images": len(chosen),
        "pixels": pixels,
        "agreement": same / pixels,
        "mean_iu": [mean_iu(matrix, dataset) for matrix in counts],
        "gradients": len(losses),
        "loss": _spread(losses),
        "gradient": _spread(steps),
    }


def _labels(net: FCN, x: Tensor) -> Tensor:
    return net(x)["semantic"].max(1).indices.to(torch.uint8)


def _gradient(net: FCN, x: Tensor, truth: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    loss = batch_loss(net(x)["semantic"], truth, "softmax", normalize=True)[0]
    return float(loss.detach()), torch.autograd.grad(loss, learned, materialize_grads=True)


def _norm(gradient: Any) -> float:
    return math.hypot(*(float(part.norm()) for part in gradient))


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": statistics.median(values), "largest": max(values)} if values else None
