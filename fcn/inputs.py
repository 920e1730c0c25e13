"""From stored pixels to what a net reads: order, mean, scale; inputs joined; pixels hidden."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fcn.data.labels import VOID
from fcn.spec import Run

WHITE = 255


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, C, 1, 1), copied to the device once: a copy in the training loop would make it wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def preprocess(image: Tensor, convention: dict[str, Any], device: torch.device) -> Tensor:
    """One input in the order, mean and scale that the weights expect (paper's section on inputs).

    Args:
        image: (N, C, H, W); uint8 RGB of an image, HHA as stored, or float32 depth.
        convention: ``order`` bgr, rgb or file (as stored), ``mean`` and ``std`` of each channel in
            that order; with ``log`` the natural logarithm is taken first, and 0, a hole of a raw
            depth map, which has none, becomes the mean.

    Returns:
        (N, C, H, W) float32, channels last.
    """
    image = image.to(device, non_blocking=True)
    if convention["order"] == "bgr":
        image = image.flip(1)
    mean = _channels(tuple(convention["mean"]), device)
    if convention.get("log"):
        x = torch.where(image > 0, image.clamp(min=1e-6).log() - mean, 0.0)
    else:
        x = image.float() - mean
    if any(value != 1 for value in convention["std"]):
        x = x.div_(_channels(tuple(convention["std"]), device))
    return x.contiguous(memory_format=torch.channels_last)


def input_names(run: Run) -> list[str]:
    """What the net of ``run`` reads, in the order of its channels."""
    return list(run.config["net"].get("inputs", ["image"]))


def net_input(batch: dict[str, Any], run: Run, device: torch.device, phase: str) -> Tensor:
    """The (N, C, H, W) float32 tensor that the net of ``run`` reads from a batch of its data set.

    Inputs are joined along the channels. What lies outside an image's ``extent`` on its canvas is
    0, as what the nets pad with. With a mask (PAMI Table 8) the hidden pixels are 0 too, the mean
    colour; with ``both`` hidden the image is white objects on black. Void pixels, the borders of
    objects, count as objects.

    Args:
        phase: ``train`` or ``test``, which the masks may tell apart.
    """
    conventions = {"image": run.config["input"], **run.config.get("inputs", {})}
    hidden = run.config.get("mask", {}).get(phase, "none")
    objects = (batch["semantic"] != 0)[:, None] if hidden != "none" else None
    parts = []
    for name in input_names(run):
        values = batch[name]
        if hidden == "both":
            assert objects is not None
            values = (objects * WHITE).to(values.dtype).expand_as(values)
        x = preprocess(values, conventions[name], device)
        if objects is not None and hidden in ("foreground", "background"):
            kept = ~objects if hidden == "foreground" else objects
            x = x * kept.to(device, non_blocking=True)
        parts.append(x)
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if "extent" in batch:
        clear_outside(joined, batch["extent"])
    return joined.contiguous(memory_format=torch.channels_last)


def clear_outside(x: Tensor, extents: Tensor) -> None:
    """Set what lies outside of images on their canvas to 0, the mean colour.

    Args:
        x: (N, C, H, W), changed in place.
        extents: (N, 2) height and width of each image.
    """
    for pixels, (height, width) in zip(x, extents.tolist(), strict=True):
        pixels[:, height:] = 0
        pixels[:, :, width:] = 0


def class_weights(counts: Tensor) -> Tensor:
    """(C,) float32 weights of inverse frequency: a class's weight times its share of the pixels is
    the same for all, and the mean over the pixels is 1. A class without pixels has weight 0.

    Args:
        counts: (C,) pixels of each class in the training split.
    """
    present = counts > 0
    shares = counts.double() / counts.sum()
    inverse = torch.where(present, 1 / shares.clamp(min=1e-12), 0.0)
    return (inverse / present.sum()).float()


def count_pixels(labels: Any, classes: int) -> Tensor:
    """(classes,) int64 pixels of each class over label maps (H, W) uint8, void left out."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for label in labels:
        counts += torch.bincount(label[label != VOID].flatten().long(), minlength=classes)
    return counts
