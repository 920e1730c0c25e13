"""Inference without the part of the padding that no image changes.

The authors pad images by 100 pixels, so half of what the first layers compute is the response to
zeros: constant inside, and near the border of the canvas a function of the distance to it. It is
computed once, on the smallest canvas that shows all of it; for an image only the window that the
image reaches is computed, until the window fills the map. The sums of each output are the same
ones, so results differ from the plain net's by rounding at most.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.graphs import hold
from fcn.nets.fcn import FCN
from fcn.nets.geometry import cells_after, one_size
from fcn.nets.norm import LocalResponseNorm
from fcn.nets.trunks import Streams, Trunk

KEPT = 64  # responses to zeros, a few MB each: one for each image size modulo the stride
KNOWN = (nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Dropout, LocalResponseNorm)


@dataclass(frozen=True)
class Span:
    """One axis of a feature map.

    ``cells``: of the whole map. ``first``, ``last``: what the image reaches, [first, last).
    ``low``, ``high``: how many cells at either end the border of the canvas reaches.
    """

    cells: int
    first: int
    last: int
    low: int = 0
    high: int = 0

    def through(self, layer: nn.Module) -> "Span":
        """After a layer without the padding of the image, which is part of the first span."""
        window = _window(layer)
        if window is None:
            return self
        kernel, stride, pad = window
        cells = cells_after(self.cells, layer)
        far = -((kernel - 1 - pad - self.cells + self.high) // stride)
        return Span(
            cells,
            max(0, -((kernel - 1 - pad - self.first) // stride)),
            min(cells, (self.last - 1 + pad) // stride + 1),
            min(cells, -(-(self.low + pad) // stride)),
            min(cells, max(0, cells - far)),
        )


def _window(layer: nn.Module) -> tuple[int, int, int] | None:
    """Extent, stride and padding; None for a layer that works cell by cell."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return None
    extent = one_size(layer.dilation, "dilation") * (one_size(layer.kernel_size, "kernel") - 1) + 1
    return extent, one_size(layer.stride, "stride"), one_size(layer.padding, "padding")


def _unpadded(layer: nn.Module) -> nn.Module:
    """The same layer, sharing its weights, that neither pads nor rounds sizes up."""
    if _window(layer) is None:
        return layer
    bare = copy.copy(layer)
    if isinstance(bare, nn.MaxPool2d):
        bare.padding, bare.ceil_mode = 0, False
    elif isinstance(bare, nn.Conv2d):
        bare.padding = (0, 0)
    return bare


@dataclass(frozen=True)
class Step:
    """A block of layers on a window: spans at its end, and the input rows and columns it needs."""

    end: tuple[Span, Span]
    needed: tuple[tuple[int, int], tuple[int, int]]


class PaddedTrunk(Trunk):
    """A trunk whose weights stay as they are, for inference: gives what ``trunk`` gives.

    Its blocks end with the poolings. Those whose windows lie inside the map are computed on the
    window alone, and what they leave out is taken from the response to an image of zeros. Where
    there is no such block (tight padding), and in training mode, it computes as ``trunk`` does.
    """

    def __init__(self, trunk: Trunk) -> None:
        super(Trunk, self).__init__()
        self.layers, self.mark, self.suffix = trunk.layers, trunk.mark, trunk.suffix
        self.taps, self.top, self.classifier_pool = trunk.taps, trunk.top, trunk.classifier_pool
        self.training = trunk.training
        self.blocks: list[list[tuple[str, nn.Module]]] = []
        block: list[tuple[str, nn.Module]] = []
        for name, layer in self.features():
            if not isinstance(layer, KNOWN):
                break
            block.append((name, layer))
            if isinstance(layer, nn.MaxPool2d):
                self.blocks.append(block)
                block = []
        first = self.features()[0][1]
        assert isinstance(first, nn.Conv2d)
        self.dtype = first.weight.dtype
        self.pad = one_size(first.padding, "padding")
        self._plans: dict[tuple[int, int], list[Step]] = {}
        self._quiet: dict[tuple[int, int], list[Tensor]] = {}
        # On a canvas that contains the image's padding, the first convolution has none.
        self._layers = [[layer for _, layer in block] for block in self.blocks]
        self._bare = [[_unpadded(layer) for layer in layers] for layers in self._layers]
        if self.blocks:
            self._layers[0] = [self._bare[0][0], *self._layers[0][1:]]

    def spans(self, size: int) -> list[Span]:
        """At the end of each block, along an axis of ``size`` pixels."""
        span = Span(size + 2 * self.pad, self.pad, self.pad + size)
        found = []
        for layers in self._layers:
            for layer in layers:
                span = span.through(layer)
            found.append(span)
        return found

    def plan(self, size: tuple[int, int]) -> list[Step]:
        """The blocks that are computed on windows for images of ``size``, in order."""
        if size not in self._plans:
            self._plans[size] = self._planned(size)
        return self._plans[size]

    def _planned(self, size: tuple[int, int]) -> list[Step]:
        cells = [side + 2 * self.pad for side in size]
        steps: list[Step] = []
        ends = zip(*(self.spans(side) for side in size), strict=True)
        for layers, (rows, columns) in zip(self._layers, ends, strict=True):
            needed = []
            for span, whole in zip((rows, columns), cells, strict=True):
                first, last = span.first, span.last
                for layer in reversed(layers):
                    window = _window(layer)
                    if window is not None:
                        kernel, stride, pad = window
                        first, last = first * stride - pad, (last - 1) * stride - pad + kernel
                if first < 0 or last > whole:
                    return steps
                needed.append((first, last))
            steps.append(Step((rows, columns), (needed[0], needed[1])))
            cells = [rows.cells, columns.cells]
        return steps

    def _reduced(self, size: int, blocks: int) -> int:
        """The smallest image whose canvas has both borders of that of ``size``, and a middle."""
        windows = [_window(layer) for layers in self._layers[:blocks] for layer in layers]
        stride = math.prod(window[1] for window in windows if window)
        small = (size - 1) % stride + 1
        while small < size and any(
            span.low + span.high >= span.cells for span in self.spans(small)[:blocks]
        ):
            small += stride
        return small

    def quiet(self, size: tuple[int, int], like: Tensor) -> list[Tensor]:
        """The maps (1, C, h, w) of zeros on the reduced canvas at the end of each planned block."""
        blocks = len(self.plan(size))
        small = (self._reduced(size[0], blocks), self._reduced(size[1], blocks))
        if small not in self._quiet:
            x = like.new_zeros(1, like.shape[1], *small)
            x = x.contiguous(memory_format=torch.channels_last)
            maps = []
            for block in self.blocks[:blocks]:
                for _, layer in block:
                    x = layer(x)
                maps.append(x.contiguous(memory_format=torch.channels_last))
            if len(self._quiet) >= KEPT:
                del self._quiet[next(iter(self._quiet))]
            self._quiet[small] = maps
        return [hold(quiet) for quiet in self._quiet[small]]

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Features by name without suffix, as of ``Trunk.forward``, in the dtype of the weights."""
        size = (x.shape[2], x.shape[3])
        x = x.to(self.dtype)
        steps = self.plan(size)
        if not steps or self.training:
            return super().forward(x, wanted)
        quiet = self.quiet(size, x)
        (top, bottom), (left, right) = steps[0].needed
        pad, (height, width) = self.pad, size
        x = F.pad(x, (pad - left, right - pad - width, pad - top, bottom - pad - height))
        features: dict[str, Tensor] = {}
        for i, step in enumerate(steps):
            for layer in self._bare[i]:
                x = layer(x)
            name = self.blocks[i][-1][0]
            whole = ((0, step.end[0].cells), (0, step.end[1].cells))
            if name in wanted:
                features[name] = placed(x, step.end, quiet[i], whole)
                if len(features) == len(wanted):
                    return features
            needed = steps[i + 1].needed if i + 1 < len(steps) else whole
            x = placed(x, step.end, quiet[i], needed)
        done = sum(len(block) for block in self.blocks[: len(steps)])
        for name, layer in self.features()[done:]:
            x = layer(x)
            if name in wanted:
                features[name] = x
                if len(features) == len(wanted):
                    break
        return features


@lru_cache(4096)
def _sources(span: Span, first: int, last: int, cells: int, device: torch.device) -> Tensor:
    """(last - first,) int64: which of the ``cells`` of the reduced map each cell has."""
    with torch.inference_mode(False):  # kept for passes of either kind
        at = torch.arange(first, last)
        inside = at.clamp(max=min(span.low, cells - 1))
        from_end = at >= span.cells - span.high
        return torch.where(from_end, at - span.cells + cells, inside).to(device)


def placed(
    x: Tensor,
    spans: tuple[Span, Span],
    quiet: Tensor,
    part: tuple[tuple[int, int], tuple[int, int]],
) -> Tensor:
    """The rows and columns ``part`` of a whole map: ``x`` where the image reaches, else ``quiet``.

    Returns (N, C, rows, columns), channels last.
    """
    around = quiet.permute(0, 2, 3, 1)
    for axis, (span, (first, last)) in enumerate(zip(spans, part, strict=True), start=1):
        rows = hold(_sources(span, first, last, around.shape[axis], x.device))
        around = around.index_select(axis, rows)
    whole = around.expand(len(x), -1, -1, -1) if len(x) == 1 else around.repeat(len(x), 1, 1, 1)
    (top, _), (left, _) = part
    y, z = spans[0].first - top, spans[1].first - left
    whole[:, y : y + x.shape[2], z : z + x.shape[3]] = x.permute(0, 2, 3, 1)
    return whole.permute(0, 3, 1, 2)


def for_inference(net: FCN, precision: str = "fp32") -> FCN:
    """A net that labels images as ``net`` does, whose weights are not to change any more.

    It shares the weights of ``net``, but with ``bf16`` its convolutions hold copies in bfloat16
    (autocast would make them anew for every image). With ``reference`` it is ``net`` itself, in the
    authors' order of layers.
    """
    if precision == "reference":
        return net.exact()
    shared: dict[int, object] = {}
    if precision != "bf16":
        shared = {id(p): p for p in (*net.parameters(), *net.buffers())}
    result = copy.deepcopy(net, shared)
    if precision == "bf16":
        for module in result.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
    trunks: Sequence[Trunk] = [PaddedTrunk(trunk) for trunk in result.streams]
    if isinstance(result.trunk, Streams):
        result.trunk.streams = nn.ModuleDict({trunk.suffix: trunk for trunk in trunks})
    else:
        (result.trunk,) = trunks
    return result
