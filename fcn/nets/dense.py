"""Scores denser than the stride of the net, without skips: two ways (CVPR paper, section 3.2).

*Shift-and-stitch*: the net runs on copies of the image that are shifted by multiples of the wanted
stride, and its cells are interlaced. *Rarefaction* ("a trous"): subsampling is taken out of the
upper layers, and the filters above it are spaced to see what they saw before.

Both give the same cells, exactly, wherever neither the zeros that inner layers pad with nor the
last, partial window of a pooling lies in the receptive field: there the two see other things. In
a trunk without inner padding whose poolings fit, that is everywhere; in the reference nets, where
the receptive field lies in the image and the 100 pixels that the first layer pads with.
"""

import copy
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.nets.fcn import FCN, IMAGE, Head
from fcn.nets.geometry import Geometry, bilinear_kernel_size, cells_after, one_size
from fcn.nets.trunks import Branches, Streams, Trunk
from fcn.nets.upsample import Upsample


class SpacedMaxPool(nn.MaxPool2d):
    """Max pooling with any padding; PyTorch's own allows half the kernel, whatever its dilation."""

    def forward(self, x: Tensor) -> Tensor:
        padding = one_size(self.padding, "padding")
        x = F.pad(x, (padding,) * 4, value=-torch.inf)
        return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation, self.ceil_mode)


@dataclass
class _Spacing:
    """Where a layer stands: the stride of its input, and how far apart its taps are put."""

    stride: int = 1
    spacing: int = 1

    def kept(self, stride: int, limit: int) -> int:
        """The part of a layer's ``stride`` that stays; the rest goes into the spacing above it."""
        keep = min(stride, limit // self.stride)
        if keep < 1 or stride % keep or limit % self.stride:
            raise UserError(
                f"inference: a stride of {limit} cannot be had of layers of stride {self.stride} "
                f"and {stride}; give another."
            )
        self.stride *= keep
        self.spacing *= stride // keep
        return keep


def _rarefied(module: nn.Module, at: _Spacing, limit: int) -> nn.Module:
    """A copy of ``module`` that shares its weights; ``at`` is carried on to what comes after."""
    new = copy.copy(module)
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        padding = one_size(module.padding, "padding") * at.spacing
        dilation = one_size(module.dilation, "dilation") * at.spacing
        stride = at.kept(one_size(module.stride, "stride"), limit)
        if isinstance(module, nn.MaxPool2d):
            kernel = one_size(module.kernel_size, "kernel_size")
            return SpacedMaxPool(kernel, stride, padding, dilation, ceil_mode=module.ceil_mode)
        assert isinstance(new, nn.Conv2d)
        new.padding, new.dilation, new.stride = (padding,) * 2, (dilation,) * 2, (stride,) * 2
    elif isinstance(module, nn.AvgPool2d):
        raise UserError("inference: an average pool cannot be rarefied; take shift-and-stitch.")
    elif isinstance(module, Branches | Streams):
        parallel = next(iter(module.children()))  # the list or mapping that holds the paths
        starts = [copy.copy(at) for _ in parallel.children()]
        copies = copy.copy(parallel)
        copies._modules = {
            name: _rarefied(branch, start, limit)
            for (name, branch), start in zip(parallel.named_children(), starts, strict=True)
        }
        at.stride, at.spacing = starts[0].stride, starts[0].spacing
        new._modules = {name: copies for name, _ in module.named_children()}
    else:
        new._modules = {
            name: _rarefied(child, at, limit) for name, child in module.named_children()
        }
    return new


def rarefied(trunk: Trunk | Streams, stride: int) -> Trunk | Streams:
    """``trunk`` with an output of ``stride``: subsampling beyond it out, filters spaced instead.

    The weights are shared with ``trunk``. UserError where the strides of its layers do not allow it
    or a layer is an average pool.
    """
    new = _rarefied(trunk, _Spacing(), stride)
    assert isinstance(new, Trunk | Streams)
    return new


@dataclass(frozen=True)
class _Grid:
    """The dense cells of a net: the first ``lead`` pixels before the net's own first one."""

    cells: Geometry
    lead: int
    factor: int  # dense cells a cell, each way
    kernel: int
    offset: int

    @classmethod
    def of(cls, head: Head, stride: int) -> "_Grid":
        coarse = int(head.cells.stride)
        if head.steps:
            raise UserError(
                "inference: dense scores are for a net without skips; take one, or leave "
                "inference out."
            )
        if stride < 1 or stride >= coarse or coarse % stride:
            raise UserError(
                f"inference: the net's stride is {coarse}; {stride} is no smaller divisor of it."
            )
        lead = coarse * (1 + head.extend) - stride
        start = head.cells.start - lead
        cells = Geometry(head.cells.receptive_field, head.cells.stride * stride / coarse, start)
        kernel = bilinear_kernel_size(cells, stride, IMAGE)
        offset = cells.upsampled(kernel, stride).offset_of(IMAGE)
        return cls(cells, lead, coarse // stride, kernel, offset)

    @property
    def stride(self) -> int:
        return int(self.cells.stride)

    def count(self, pixels: int) -> int:
        """Cells a side that cover an image of ``pixels`` a side."""
        return -(-(self.offset + pixels - self.kernel) // self.stride) + 1

    def canvas(self, pixels: int, cells: int, layers: nn.Module) -> int:
        """Pixels a side of the least canvas of which ``layers`` make ``cells``."""
        size = self.lead + pixels
        while cells_after(size, layers) < cells:
            size += 1
        return size


def _on_canvas(x: Tensor, before: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``x`` at row and column ``before`` of a canvas of zeros, which is what the nets pad with."""
    (top, left), (height, width) = before, size
    return F.pad(x, (left, width - left - x.shape[3], top, height - top - x.shape[2]))


def _scores(net: FCN, trunk: nn.Module, x: Tensor) -> dict[str, Tensor]:
    top = frozenset([net.head(next(iter(net.heads))).top])
    features = trunk(x, top)
    return {task: net.head(task).score_top(features) for task in net.heads}


def rarefaction(net: FCN, x: Tensor, stride: int) -> dict[str, Tensor]:
    """The dense cells' scores (N, scored classes, h, w) by label set, by rarefied filters."""
    grid = _Grid.of(net.head(next(iter(net.heads))), stride)
    trunk = rarefied(net.trunk, stride)
    layers = trunk.trunks[0].layers
    rows, columns = grid.count(x.shape[2]), grid.count(x.shape[3])
    size = (grid.canvas(x.shape[2], rows, layers), grid.canvas(x.shape[3], columns, layers))
    found = _scores(net, trunk, _on_canvas(x, (grid.lead, grid.lead), size))
    return {task: scores[:, :, :rows, :columns] for task, scores in found.items()}


def shift_and_stitch(net: FCN, x: Tensor, stride: int) -> dict[str, Tensor]:
    """The dense cells' scores (N, scored classes, h, w) by label set, by shifting ``x``."""
    grid = _Grid.of(net.head(next(iter(net.heads))), stride)
    layers = net.streams[0].layers
    rows, columns = grid.count(x.shape[2]), grid.count(x.shape[3])
    few = [-(-cells // grid.factor) for cells in (rows, columns)]
    size = (grid.canvas(x.shape[2], few[0], layers), grid.canvas(x.shape[3], few[1], layers))
    stitched: dict[str, Tensor] = {}
    for i in range(grid.factor):
        for j in range(grid.factor):
            shift = (grid.lead - i * stride, grid.lead - j * stride)
            for task, scores in _scores(net, net.trunk, _on_canvas(x, shift, size)).items():
                part = scores[:, :, : few[0], : few[1]]
                if task not in stitched:
                    n, classes = part.shape[:2]
                    sides = (few[0] * grid.factor, few[1] * grid.factor)
                    stitched[task] = part.new_empty((n, classes, *sides))
                stitched[task][:, :, i :: grid.factor, j :: grid.factor] = part
    return {task: scores[:, :, :rows, :columns] for task, scores in stitched.items()}


@cache
def _upsampling(
    channels: int, kernel: int, stride: int, device: torch.device, exact: bool
) -> Upsample:
    made = Upsample(channels, kernel, stride, learned=False).to(device)
    made.exact = exact
    return made


METHODS = {"rarefaction": rarefaction, "shift-and-stitch": shift_and_stitch}


def dense_scores(net: FCN, x: Tensor, method: str, stride: int) -> dict[str, Tensor]:
    """Scores of the image from cells at ``stride`` pixels, by bilinear upsampling (section 3.2).

    With tight padding the canvas of the shifts takes the place of the repeated border scores.

    Args:
        x: (N, channels, H, W) float, as for ``FCN.forward``; the net in ``eval``.
        method: ``rarefaction`` or ``shift-and-stitch``.
        stride: a divisor of the net's stride, smaller than it.

    Returns:
        label set -> (N, classes, H, W) float32.

    Raises:
        UserError: a net with skips, a stride that it cannot have, an average pool to rarefy.
    """
    if method not in METHODS:
        raise UserError(f"inference: method {method!r} is not one of {', '.join(METHODS)}.")
    exact = any(part.exact for part in net.modules() if isinstance(part, Upsample))
    result = {}
    for task, scores in METHODS[method](net, x, stride).items():
        head = net.head(task)
        grid = _Grid.of(head, stride)
        up = _upsampling(scores.shape[1], grid.kernel, stride, scores.device, exact)
        dense = up(scores, (grid.offset, grid.offset), (x.shape[2], x.shape[3]))
        result[task] = head.with_background(dense)
    return result
