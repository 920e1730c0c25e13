"""Section 3.1: what a classifier costs run on every crop, and what it costs run as a net on the
whole image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.device import autocast
from fcn.errors import UserError
from fcn.files import write_json
from fcn.nets.conv import ConvReLU
from fcn.nets.geometry import cells_after
from fcn.nets.trunks import build_trunk
from fcn.provenance import Clock
from fcn.spec import Suite
from fcn.timing import measure

ILSVRC_CLASSES = 1000
WARMUP_GPU, TRIALS_GPU = 10, 50
WARMUP_CPU, TRIALS_CPU = 1, 5
BATCH_CPU = 16  # a CPU gains nothing from larger batches; a GPU gets all crops of the grid at once


def classifier_nets(
    net: dict[str, Any], crop: int, classes: int = ILSVRC_CLASSES
) -> tuple[nn.Sequential, nn.Sequential]:
    """A classifier twice, with the same weights: fully connected, and as convolutions.

    The first reads crops, (N, 3, crop, crop) -> (N, classes). The second reads images of any size,
    (N, 3, H, W) -> (N, classes, h, w), without padding before its first layer. On one crop they are
    equal; on an image, a cell differs from its crop where the crop's other layers pad.

    Args:
        net: a resolved net whose backbone ends in fc6 and fc7.
        crop: pixels a side of what one cell of the map sees.

    Raises:
        UserError: no fc6, or a crop that is not one cell.
    """
    trunk = build_trunk({**net, "padding": "reference"}, channels=3)
    layers = dict(trunk.layers.named_children())
    if "fc6" not in layers:
        raise UserError(
            f"classifier.net: {net['architecture']} has no fully connected layers; choose AlexNet "
            "or VGG."
        )
    if net.get("fc6_dilation", 1) != 1:
        raise UserError("classifier.net: its fc6 is dilated, no inner product of a classifier's.")
    first = next(layer for layer in layers.values() if isinstance(layer, nn.Conv2d))
    first.padding = (0, 0)
    cells = cells_after(crop, trunk.layers)
    if cells != 1:
        raise UserError(
            f"classifier.crop: {crop} pixels give {max(cells, 0)} cells a side, a classifier has 1."
        )
    layers["fc8"] = nn.Conv2d(trunk.taps[trunk.top], classes, 1)
    connected: list[nn.Module] = []
    for name, layer in layers.items():
        if name.startswith("fc"):
            assert isinstance(layer, nn.Conv2d)
            if name == "fc6":
                connected.append(nn.Flatten())
            connected.append(_fully_connected(layer))
            if isinstance(layer, ConvReLU):
                connected.append(nn.ReLU(inplace=True))
        else:
            connected.append(layer)
    return nn.Sequential(*connected).eval(), nn.Sequential(*layers.values()).eval()


def _fully_connected(layer: nn.Conv2d) -> nn.Linear:
    """The inner product that a convolution over all of its input is (section 3.1)."""
    linear = nn.Linear(layer.weight[0].numel(), layer.out_channels)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.flatten(1))
        assert layer.bias is not None and linear.bias is not None
        linear.bias.copy_(layer.bias)
    return linear


def forward_of(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """The forward pass alone, as inference does it."""

    def call() -> object:
        with torch.inference_mode():
            return net(x)

    return call


def backward_of(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """The backward pass alone: the gradients of all weights from those of the scores."""
    scores = net(x)
    above, weights = torch.ones_like(scores), list(net.parameters())
    return lambda: torch.autograd.grad(scores, weights, above, retain_graph=True)


def time_classifier(
    suite: Suite, *, device: torch.device, results: Path, trials: int | None = None
) -> dict[str, Any]:
    """Time the classifier that the suite names, on crops and on the whole image.

    Writes classifier.json: medians in ms of a forward and of a backward pass in fp32, for the whole
    image, per crop in a batch, and for one crop by itself; each trial between two points where the
    device is idle. ``speedup``: the time of a crop for every cell of the grid, over that of the
    whole image. Weights are random: they do not matter to the time.

    Raises:
        UserError: the suite names no classifier.
    """
    if suite.classifier is None:
        raise UserError(
            f"{suite.path}: no classifier is named; add classifier: {{net: .., crop: .., "
            "image: ..} (pixels a side)."
        )
    clock = Clock(device)
    cpu = device.type == "cpu"
    name, crop, image = (suite.classifier[key] for key in ("net", "crop", "image"))
    net = suite.resolved_net(name)
    torch.manual_seed(0)
    connected, convolutional = classifier_nets(net, crop)
    cells = cells_after(image, convolutional)
    if cells < 1:
        raise UserError(f"{suite.path}: classifier.image: {image} pixels are too few for {name}.")
    batch = min(cells**2, BATCH_CPU) if cpu else cells**2
    warmup = WARMUP_CPU if cpu else WARMUP_GPU
    trials = trials or (TRIALS_CPU if cpu else TRIALS_GPU)
    measurements: dict[str, dict[str, Any]] = {}
    with autocast("fp32", device):
        for what, model, shape in (
            ("fcn", convolutional, (1, 3, image, image)),
            ("batch", connected, (batch, 3, crop, crop)),
            ("single", connected, (1, 3, crop, crop)),
        ):
            model.to(device).to(memory_format=torch.channels_last)
            x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
            for way, prepare in (("forward", forward_of), ("backward", backward_of)):
                measurements[f"{what}_{way}"] = measure(prepare(model, x), device, warmup, trials)
    median = {key: found["median_ms"] for key, found in measurements.items()}
    per_crop = {
        f"{what}_{way}": median[f"{what}_{way}"] / (batch if what == "batch" else 1)
        for what in ("batch", "single")
        for way in ("forward", "backward")
    }
    result = {
        "net": name,
        "config": net,
        "crop": crop,
        "image": image,
        "grid": [cells, cells],
        "cells": cells**2,
        "batch": batch,
        "precision": "fp32",
        "device": str(device),
        "forward_ms": median["fcn_forward"],
        "per_crop_batched_ms": per_crop["batch_forward"],
        "per_crop_single_ms": per_crop["single_forward"],
        "backward_ms": median["fcn_backward"],
        "per_crop_batched_backward_ms": per_crop["batch_backward"],
        "per_crop_single_backward_ms": per_crop["single_backward"],
        "speedup": {
            way + mark: cells**2 * per_crop[f"{what}_{way}"] / median[f"fcn_{way}"]
            for way in ("forward", "backward")
            for what, mark in (("batch", ""), ("single", "_single"))
        },
        "measurements": measurements,
        "provenance": clock.provenance(precision="fp32", seed=0),
    }
    write_json(results / "classifier.json", result)
    return result
