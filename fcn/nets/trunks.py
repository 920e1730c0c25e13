"""Backbones as trunks: the classifiers of section 4.1, convolutionalised, in Caffe's layer names.

A trunk is a Sequential whose children keep the names of the Caffe layers (``conv1_1``, ``pool4``,
``inception_3a/1x1``), so that released weights load by name. Poolings round sizes up, as Caffe's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.nets.conv import ConvReLU
from fcn.nets.geometry import Geometry, cells_after, through
from fcn.nets.norm import LocalResponseNorm
from fcn.options import NET_OPTIONS

CHANNELS = {"image": 3, "depth": 1, "hha": 3}  # of each input
# The authors' names: what a layer of a late fusion ends in (nyud-fcn32s-color-hha), and what is
# said of the first layer of an early fusion (nyud-fcn32s-color-d: conv1_1_bgrd).
STREAMS = {"image": "color", "depth": "depth", "hha": "hha"}
JOINED = {"image": "bgr", "depth": "d", "hha": "hha"}


class Branches(nn.Module):
    """Parallel paths joined along the channels (an inception module)."""

    def __init__(self, *branches: nn.Sequential) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Layers:
    """Collects named layers into a Sequential and follows the number of channels.

    ``mark`` goes behind the name of the first layer, ``suffix`` behind every name.
    """

    def __init__(self, channels: int, width: float = 1.0, mark: str = "", suffix: str = "") -> None:
        self.sequential = nn.Sequential()
        self.channels = channels
        self.width = width
        self.mark = mark
        self.suffix = suffix

    def _scaled(self, channels: int, groups: int = 1) -> int:
        """Channels of a slimmer net: at least 4, a multiple of 4 and of the groups."""
        if self.width == 1.0:
            return channels
        unit = 4 * groups
        return max(unit, round(channels * self.width / unit) * unit)

    def add(self, name: str, module: nn.Module) -> "Layers":
        mark = "" if len(self.sequential) else self.mark
        self.sequential.add_module(name + mark + self.suffix, module)
        return self

    def conv(
        self, name: str, out: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1
    ) -> "Layers":
        """A convolution and the rectifier that follows each in these nets."""
        out = self._scaled(out, groups)
        self.add(name, ConvReLU(self.channels, out, kernel, stride, pad, groups=groups))
        self.channels = out
        return self

    def pool(self, name: str, kernel: int, stride: int, pad: int = 0) -> "Layers":
        return self.add(name, nn.MaxPool2d(kernel, stride, pad, ceil_mode=True))

    def norm(self, name: str) -> "Layers":
        return self.add(name, LocalResponseNorm(self.channels))


class Trunk(nn.Module):
    """A backbone that ends before its classifier.

    ``layers``: the named Sequential. ``taps``: channels of the feature maps a score layer may read,
    by layer name. ``top``: the last of them. ``mark`` and ``suffix``: what the names of the first
    layer and of all layers have more than the backbone's; ``taps`` and ``top`` are without it.
    """

    def __init__(self, layers: Layers, taps: dict[str, int], classifier_pool: int = 0) -> None:
        super().__init__()
        self.layers = layers.sequential
        self.mark, self.suffix = layers.mark, layers.suffix
        self.taps = taps
        self.top = next(reversed(taps))
        self.classifier_pool = classifier_pool  # kernel of the average pool before the classifier

    @property
    def trunks(self) -> list["Trunk"]:
        """Itself alone; ``Streams`` has several."""
        return [self]

    @property
    def first(self) -> str:
        """Name of the first layer, a convolution."""
        return next(name for name, _ in self.layers.named_children())

    def name_in_backbone(self, name: str) -> str:
        """What the classifier calls the layer ``name``."""
        plain = name.removesuffix(self.suffix)
        return plain.removesuffix(self.mark) if name == self.first else plain

    def features(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, by their names without the suffix of a stream."""
        return [(n.removesuffix(self.suffix), layer) for n, layer in self.layers.named_children()]

    def end_at(self, top: str) -> None:
        """Drop the layers after ``top``: a truncated net ends there."""
        names = [name for name, _ in self.layers.named_children()]
        for name in names[names.index(top + self.suffix) + 1 :]:
            delattr(self.layers, name)

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Features by name without suffix, (N, C, h, w) each; stops after the last one wanted."""
        features: dict[str, Tensor] = {}
        for name, layer in self.features():
            x = layer(x)
            if name in wanted:
                features[name] = x
                if len(features) == len(wanted):
                    break
        return features


class Streams(nn.Module):
    """A trunk of its own for each of several inputs (late fusion), alike in all but weights."""

    def __init__(self, trunks: list[Trunk], channels: list[int]) -> None:
        super().__init__()
        self.streams = nn.ModuleDict({trunk.suffix: trunk for trunk in trunks})
        self.channels = channels

    @property
    def trunks(self) -> list[Trunk]:
        """In the order of the inputs."""
        return [trunk for trunk in self.streams.values() if isinstance(trunk, Trunk)]

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Features by name and suffix; ``x`` is (N, sum of channels, H, W)."""
        return {
            name + trunk.suffix: feature
            for trunk, part in zip(self.trunks, x.split(self.channels, dim=1), strict=True)
            for name, feature in trunk(part, wanted).items()
        }


def _fc6_padding(layers: Layers, kernel: int, dilation: int) -> int:
    """The least, in cells, with which the upsampled scores cover images of every size.

    0 for the classifiers' own kernels. After a pool5 of stride 1 the 100 pixels of the reference
    padding do not hold what is as wide as before on a map of half the stride.
    """
    fc6 = through(Geometry(), layers.sequential).window(kernel, 1, 0, dilation)
    stride = int(fc6.stride)
    sides = range(1, stride + 1)  # whatever happens at the far border repeats with the stride
    before = [cells_after(side, layers.sequential) - dilation * (kernel - 1) for side in sides]
    reach = stride - 1  # of the bilinear kernel, beyond the centre of its cell
    padding = 0
    while True:
        start = fc6.start - padding * stride
        if start <= reach and all(
            cells + 2 * padding > 0
            and start + stride * (cells + 2 * padding - 1) + reach >= side - 1
            for side, cells in zip(sides, before, strict=True)
        ):
            return padding
        padding += 1


def _fully_connected(
    layers: Layers, net: dict[str, Any], kernel: int, pad: int | None
) -> dict[str, int]:
    """fc6 and fc7 as convolutions (section 3.1); what is scored comes after the second dropout.

    ``pad`` of fc6; None is the least that the reference padding leaves to be added.
    """
    dilation, hidden = net["fc6_dilation"], net["hidden"]
    if pad is None:
        pad = _fc6_padding(layers, kernel, dilation)
    for name, size, padding, spacing in (("fc6", kernel, pad, dilation), ("fc7", 1, 0, 1)):
        layers.add(name, ConvReLU(layers.channels, hidden, size, 1, padding, dilation=spacing))
        layers.add(name.replace("fc", "drop"), nn.Dropout(net["dropout"]))
        layers.channels = hidden
    return {"drop7": hidden}


def _vgg(blocks: tuple[int, ...], net: dict[str, Any], layers: Layers, pad: int | None) -> Trunk:
    taps: dict[str, int] = {}
    for block, (convolutions, out) in enumerate(
        zip(blocks, (64, 128, 256, 512, 512), strict=True), start=1
    ):
        for i in range(1, convolutions + 1):
            first = block == 1 and i == 1
            layers.conv(f"conv{block}_{i}", out, 3, pad=pad if first and pad is not None else 1)
        layers.pool(f"pool{block}", 2, net["pool5_stride"] if block == 5 else 2)
        taps[f"pool{block}"] = layers.channels
    kernel = net["fc6_kernel"] or 7
    same = net["fc6_dilation"] * (kernel - 1) // 2
    taps |= _fully_connected(layers, net, kernel, same if pad is None else None)
    return Trunk(layers, taps)


def _alexnet(variant: str, net: dict[str, Any], layers: Layers, pad: int | None) -> Trunk:
    """``caffenet``: pool before norm, the paper's net. ``bvlc``: norm before pool. ``owt``:
    torchvision's one-tower net, without groups and normalisation."""
    one_tower = variant == "owt"
    first, second = (64, 192) if one_tower else (96, 256)
    third, fourth = (384, 256) if one_tower else (384, 384)
    groups = 1 if one_tower else 2
    own_pad = 2 if one_tower else 5  # Caffe's has none; 5 keeps the borders when nothing is padded

    def pool_and_norm(i: int) -> None:
        if variant == "bvlc":
            layers.norm(f"norm{i}")
        layers.pool(f"pool{i}", 3, 2)
        taps[f"pool{i}"] = layers.channels
        if variant == "caffenet":
            layers.norm(f"norm{i}")

    taps: dict[str, int] = {}
    layers.conv("conv1", first, 11, 4, own_pad if pad is None else pad)
    pool_and_norm(1)
    layers.conv("conv2", second, 5, pad=2, groups=groups)
    pool_and_norm(2)
    layers.conv("conv3", third, 3, pad=1)
    layers.conv("conv4", fourth, 3, pad=1, groups=groups)
    layers.conv("conv5", 256, 3, pad=1, groups=groups)
    layers.pool("pool5", 3, net["pool5_stride"])
    taps["pool5"] = layers.channels
    kernel = net["fc6_kernel"] or 6
    same = net["fc6_dilation"] * kernel // 2
    taps |= _fully_connected(layers, net, kernel, same if pad is None else None)
    return Trunk(layers, taps)


# Output channels of the nine inception modules: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool
# projection (Szegedy et al. 2015, table 1).
_INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def _inception(layers: Layers, name: str, five: int) -> None:
    one, three_reduce, three, five_reduce, fifth, projection = _INCEPTION[name]

    def path() -> Layers:
        return Layers(layers.channels, layers.width, suffix=layers.suffix)

    prefix = f"inception_{name}"
    paths = (
        path().conv(f"{prefix}/1x1", one, 1),
        path().conv(f"{prefix}/3x3_reduce", three_reduce, 1).conv(f"{prefix}/3x3", three, 3, pad=1),
        path()
        .conv(f"{prefix}/5x5_reduce", five_reduce, 1)
        .conv(f"{prefix}/5x5", fifth, five, pad=five // 2),
        path().pool(f"{prefix}/pool", 3, 1, 1).conv(f"{prefix}/pool_proj", projection, 1),
    )
    layers.add(prefix, Branches(*(p.sequential for p in paths)))
    layers.channels = sum(p.channels for p in paths)


def _googlenet(variant: str, net: dict[str, Any], layers: Layers, pad: int | None) -> Trunk:
    """``bvlc``: the Caffe net. ``torchvision``: no normalisation, 3x3 for 5x5, a 2x2 fourth pool
    (its batch normalisation is folded into the convolutions)."""
    torchvision = variant == "torchvision"
    taps: dict[str, int] = {}
    layers.conv("conv1/7x7_s2", 64, 7, 2, 3 if pad is None else pad)
    layers.pool("pool1/3x3_s2", 3, 2)
    if not torchvision:
        layers.norm("pool1/norm1")
    layers.conv("conv2/3x3_reduce", 64, 1)
    layers.conv("conv2/3x3", 192, 3, pad=1)
    if not torchvision:
        layers.norm("conv2/norm2")
    layers.pool("pool2/3x3_s2", 3, 2)
    taps["pool2/3x3_s2"] = layers.channels
    for name in _INCEPTION:
        _inception(layers, name, 3 if torchvision else 5)
        taps[f"inception_{name}"] = layers.channels
        if name == "3b":
            layers.pool("pool3/3x3_s2", 3, 2)
            taps["pool3/3x3_s2"] = layers.channels
        if name == "4e":
            layers.pool("pool4/3x3_s2", 2 if torchvision else 3, 2)
            taps["pool4/3x3_s2"] = layers.channels
    if net["average_pool"]:
        kernel = 7
        layers.add("pool5/7x7_s1", nn.AvgPool2d(kernel, 1, kernel // 2, count_include_pad=False))
        taps["pool5/7x7_s1"] = layers.channels
    layers.add("pool5/drop_7x7_s1", nn.Dropout(net["dropout"]))
    taps["pool5/drop_7x7_s1"] = layers.channels
    return Trunk(layers, taps, classifier_pool=7)


TRUNKS: dict[str, Callable[[dict[str, Any], Layers, int | None], Trunk]] = {
    "alexnet": lambda net, layers, pad: _alexnet("caffenet", net, layers, pad),
    "alexnet-bvlc": lambda net, layers, pad: _alexnet("bvlc", net, layers, pad),
    "alexnet-owt": lambda net, layers, pad: _alexnet("owt", net, layers, pad),
    "vgg16": lambda net, layers, pad: _vgg((2, 2, 3, 3, 3), net, layers, pad),
    "vgg19": lambda net, layers, pad: _vgg((2, 2, 4, 4, 4), net, layers, pad),
    "googlenet": lambda net, layers, pad: _googlenet("bvlc", net, layers, pad),
    "googlenet-torchvision": lambda net, layers, pad: _googlenet("torchvision", net, layers, pad),
}


def build_trunk(net: dict[str, Any], channels: int, mark: str = "", suffix: str = "") -> Trunk:
    """The trunk of a resolved net configuration for an input of ``channels`` channels.

    ``mark`` goes behind the name of the first layer, ``suffix`` behind every name. UserError where
    architecture or padding is not known.
    """
    net = {**NET_OPTIONS, **net}
    pads = {"reference": 100, "tight": None}
    try:
        factory = TRUNKS[net["architecture"]]
        pad = pads[net["padding"]]
    except KeyError as error:
        raise UserError(
            f"net: {error} is not known; architectures: {', '.join(TRUNKS)}; "
            f"padding: {', '.join(pads)}."
        ) from None
    return factory(net, Layers(channels, net["width"], mark, suffix), pad)


def build_streams(net: dict[str, Any]) -> Trunk | Streams:
    """What reads a net's inputs: one trunk for their joined channels, or a trunk for each."""
    inputs = net["inputs"]
    unknown = [name for name in inputs if name not in CHANNELS]
    if unknown or not inputs:
        raise UserError(f"net: inputs are of {', '.join(CHANNELS)}, not {unknown or 'none'}.")
    channels = [CHANNELS[name] for name in inputs]
    if len(inputs) > 1 and net["fusion"] == "late":
        trunks = [
            build_trunk(net, n, suffix=STREAMS[name])
            for name, n in zip(inputs, channels, strict=True)
        ]
        return Streams(trunks, channels)
    mark = "_" + "".join(JOINED[name] for name in inputs) if len(inputs) > 1 else ""
    return build_trunk(net, sum(channels), mark=mark)
