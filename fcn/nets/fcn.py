"""Fully convolutional nets: a trunk, score layers, skips and upsampling (sections 3 and 4)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.nets.geometry import Geometry, bilinear_kernel_size, cells_after, through
from fcn.nets.trunks import CHANNELS, Trunk, build_streams
from fcn.nets.upsample import Upsample
from fcn.options import NET_OPTIONS

IMAGE = Geometry()
SUFFIXES = {"semantic": "_sem", "geometric": "_geo"}  # the authors' names in their SIFT Flow nets


class Scale(nn.Module):
    """Caffe's Scale layer with one fixed number (the at-once net, section 4.3 of PAMI)."""

    scale: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


class Head(nn.Module):
    """Score layers for one label set: score the top, upsample, add the skips, upsample to pixels.

    Layer names are the authors': ``score_fr``, ``upscore2``, ``score_pool4``, ``upscore_pool4``,
    ``upscore8``. Score layers of a late fusion carry the stream's suffix; with several heads all
    names carry the head's. Whatever is scored from several streams is added up before it goes on.

    Args:
        streams: suffix of each stream -> the factor of its scores; {"": 1} without late fusion.
    """

    def __init__(
        self,
        net: dict[str, Any],
        trunk: Trunk,
        geometries: dict[str, Geometry],
        classes: int,
        suffix: str,
        streams: dict[str, float],
    ) -> None:
        super().__init__()
        taps = trunk.taps
        self.top = top = net["top"] or trunk.top
        self.suffix = suffix
        self.streams = streams
        self.extend = 1 if net["padding"] == "tight" else 0
        self.maximum = net["skip_fusion"] == "max"
        self.null_background = net["null_background"]
        self.steps: list[tuple[str, str, int]] = []  # skip, name of its upsampling, crop offset
        learned = net["interpolation"] == "learned"
        scored = classes - self.null_background
        if scored < 1:
            raise UserError("net: null_background needs a class besides the background.")
        self.first = "score_fr" if top == trunk.top else f"score_{top}"
        self._add_score(self.first, taps[top], scored, net)
        geometry = geometries[top]
        below = ""
        for skip in net["skips"]:
            target = geometries[skip]
            factor = int(geometry.stride / target.stride)
            if factor < 2:
                raise UserError(
                    f"net: skip {skip} has stride {target.stride}, the map above it "
                    f"{geometry.stride}; list the skips from coarse to fine."
                )
            geometry = geometry.extended(self.extend)
            kernel = bilinear_kernel_size(geometry, factor, target)
            name = f"upscore_{below}" if below else f"upscore{factor}"
            self.add_module(name + suffix, Upsample(scored, kernel, factor, learned))
            up = geometry.upsampled(kernel, factor)
            if skip in net["scales"]:
                self.add_module(f"scale_{skip}{suffix}", Scale(net["scales"][skip]))
            self._add_score(f"score_{skip}", taps[skip], scored, net)
            # The skip is cropped to the upsampled map where it is larger (reference padding), the
            # upsampled map to the skip where that is larger (tight padding).
            offset = target.offset_of(up)
            self.steps.append((skip, name + suffix, offset))
            geometry = up if offset > 0 else target
            below = skip
        factor = int(geometry.stride)
        geometry = geometry.extended(self.extend)
        kernel = bilinear_kernel_size(geometry, factor, IMAGE)
        self.last = ("upscore" if not net["skips"] else f"upscore{factor}") + suffix
        if hasattr(self, self.last):  # FCN-2s begins and ends with a factor of 2
            self.last = f"upscore_{below}{suffix}"
        self.add_module(self.last, Upsample(scored, kernel, factor, learned=False))
        self.offset = geometry.upsampled(kernel, factor).offset_of(IMAGE)
        self.cells = geometries[top]
        if self.offset < 0:
            raise UserError(
                "net: the padding is too small for the upsampled map to cover the image."
            )

    def _add_score(self, name: str, channels: int, classes: int, net: dict[str, Any]) -> None:
        """A score layer for each stream."""
        for stream in self.streams:
            score = nn.Conv2d(channels, classes, 1)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]
            if net["score_init"] == "zero":
                nn.init.zeros_(score.weight)
            else:
                nn.init.normal_(score.weight, std=0.01)
            self.add_module(name + stream + self.suffix, score)

    @property
    def scores(self) -> list[str]:
        """Names of the score layers, without suffixes: of the top, then of the skips."""
        return [self.first, *(f"score_{skip}" for skip, _, _ in self.steps)]

    def _score(self, name: str, features: list[Tensor]) -> Tensor:
        """The streams' features scored, weighted and added up."""
        layers = dict(self.named_children())
        total: Tensor | None = None
        for (stream, factor), feature in zip(self.streams.items(), features, strict=True):
            scores = layers[name + stream + self.suffix](feature)
            if factor != 1:
                scores = scores * factor
            total = scores if total is None else total + scores
        assert total is not None
        return total

    def _extended(self, x: Tensor) -> Tensor:
        """Tight padding: scores beyond the border repeat the border's, as in image resizing."""
        return F.pad(x, (self.extend,) * 4, mode="replicate") if self.extend else x

    def score_top(self, features: dict[str, Tensor]) -> Tensor:
        """(N, scored classes, h, w): the scores at the cells of the top."""
        return self._score(self.first, [features[self.top + stream] for stream in self.streams])

    def with_background(self, scores: Tensor) -> Tensor:
        """Put the constant 0 of a null background (PAMI section 6.1) before the scored classes."""
        return F.pad(scores, (0, 0, 0, 0, 1, 0)) if self.null_background else scores

    def forward(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """(N, classes, H, W) scores at the image's own ``size``."""
        layers = dict(self.named_children())
        x = self.score_top(features)
        for skip, name, offset in self.steps:
            skipped = [features[skip + stream] for stream in self.streams]
            scale = layers.get(f"scale_{skip}{self.suffix}")
            if scale is not None:
                skipped = [scale(feature) for feature in skipped]
            up = layers[name]
            assert isinstance(up, Upsample)
            x = self._extended(x)
            if offset > 0:
                height, width = up.size(x.shape[2]), up.size(x.shape[3])
                skipped = [
                    feature[:, :, offset : offset + height, offset : offset + width]
                    for feature in skipped
                ]
                x = up(x, (0, 0), (height, width))
            else:
                x = up(x, (-offset, -offset), tuple(skipped[0].shape[2:]))
            scores = self._score(f"score_{skip}", skipped)
            x = torch.maximum(x, scores) if self.maximum else x + scores
        x = self._extended(x)
        return self.with_background(layers[self.last](x, (self.offset, self.offset), size))


def stream_factors(net: dict[str, Any], suffixes: list[str]) -> dict[str, float]:
    """Factor of each stream's scores; ``fusion_weights``, or their mean."""
    given = net["fusion_weights"]
    if given is None or len(suffixes) == 1:
        given = [1 / len(suffixes)] * len(suffixes)
    if len(given) != len(suffixes):
        raise UserError(
            f"net: fusion_weights {given} are one for each input of a late fusion; this net has "
            f"{len(suffixes)}."
        )
    return dict(zip(suffixes, map(float, given), strict=True))


class FCN(nn.Module):
    """A fully convolutional net for one or more inputs and one or more label sets.

    ``inputs``: names of what it reads; ``channels``: of all of them, in their order.
    """

    def __init__(self, net: dict[str, Any], classes: dict[str, int]) -> None:
        super().__init__()
        net = {**NET_OPTIONS, **net}
        self.trunk = build_streams(net)
        self.inputs = list(net["inputs"])
        self.channels = sum(CHANNELS[name] for name in self.inputs)
        trunk = self.streams[0]
        top = net["top"] or trunk.top
        for name in [top, *net["skips"]]:
            if name not in trunk.taps:
                raise UserError(
                    f"net: {net['architecture']} has no feature {name!r}; it has: "
                    f"{', '.join(trunk.taps)}."
                )
        self.geometries: dict[str, Geometry] = {}
        geometry = IMAGE
        for name, layer in trunk.features():
            geometry = through(geometry, layer)
            self.geometries[name] = geometry
        self.wanted = frozenset([top, *net["skips"]])
        for stream in self.streams:
            stream.end_at(top)
        self.least = 1  # pixels a side
        while cells_after(self.least, trunk.layers) < 1:
            self.least += 1
        streams = stream_factors(net, [stream.suffix for stream in self.streams])
        self.heads = nn.ModuleDict(
            {
                task: Head(
                    net,
                    trunk,
                    self.geometries,
                    n,
                    SUFFIXES[task] if len(classes) > 1 else "",
                    streams,
                )
                for task, n in classes.items()
            }
        )

    @property
    def streams(self) -> list[Trunk]:
        """The trunks: one, or with late fusion one for each input."""
        return self.trunk.trunks

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores per label set.

        Args:
            image: (N, channels, H, W) float, preprocessed for the backbone; the channels of the
                inputs in their order.

        Returns:
            label set -> (N, classes, H, W) float32.

        Raises:
            UserError: an image smaller than ``least`` pixels a side (tight padding).
        """
        size = (image.shape[2], image.shape[3])
        if min(size) < self.least:
            raise UserError(
                f"an image of {size[1]}x{size[0]} pixels is too small for this net, which needs "
                f"{self.least} a side; enlarge it, or use padding: reference."
            )
        features = self.trunk(image, self.wanted)
        return {task: head(features, size) for task, head in self.heads.items()}

    def head(self, task: str) -> Head:
        """The score layers of one label set."""
        head = self.heads[task]
        assert isinstance(head, Head)
        return head

    def exact(self, on: bool = True) -> "FCN":
        """Compute fixed upsampling as the authors' layers do: transposed convolution, then crop."""
        for module in self.modules():
            if isinstance(module, Upsample):
                module.exact = on
        return self
