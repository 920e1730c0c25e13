"""The algebra of section 3 of the paper: where a cell of a feature map lies in the image.

A layer is (kernel k', stride s', padding p'). Layers compose by

    k o k' = k + (k' - 1) s,    s o s' = s s'

(section 3, "transformation rule"), and the image coordinate of the centre of cell ``i`` is the
affine map ``start + stride * i``. Fractional strides (upsampling) follow the same rule, so every
crop offset of every net comes out of its layers: none is typed in.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from torch import nn


@dataclass(frozen=True)
class Geometry:
    """Of a feature map: receptive field (pixels), stride (pixels a cell), centre of cell 0."""

    receptive_field: int = 1
    stride: Fraction = Fraction(1)
    start: Fraction = Fraction(0)

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Geometry":
        """After a convolution or pooling."""
        extent = dilation * (kernel - 1)
        return Geometry(
            self.receptive_field + math.ceil(extent * self.stride),
            self.stride * stride,
            self.start + self.stride * (Fraction(extent, 2) - padding),
        )

    def upsampled(self, kernel: int, factor: int, padding: int = 0) -> "Geometry":
        """After a fractionally strided convolution (deconvolution)."""
        stride = self.stride / factor
        return Geometry(
            self.receptive_field,
            stride,
            self.start - stride * (Fraction(kernel - 1, 2) - padding),
        )

    def extended(self, cells: int) -> "Geometry":
        """After ``cells`` more cells on every side."""
        return Geometry(self.receptive_field, self.stride, self.start - cells * self.stride)

    def offset_of(self, other: "Geometry") -> int:
        """Index in this map of the cell that lies on cell 0 of ``other`` (Caffe's crop offset).

        Raises ValueError where the strides differ or the maps are not aligned to whole cells.
        """
        if self.stride != other.stride:
            raise ValueError(f"strides differ: {self.stride} and {other.stride}")
        offset = (other.start - self.start) / self.stride
        if offset.denominator != 1:
            raise ValueError(f"not aligned to whole cells: offset {offset}")
        return int(offset)


def bilinear_kernel_size(geometry: Geometry, factor: int, reference: Geometry) -> int:
    """2f or 2f - 1: the bilinear kernel whose upsampled map is aligned with ``reference``.

    Both interpolate linearly; only one puts the cells on whole pixels. This is why the authors'
    FCN-AlexNet has 63 where FCN-VGG16 has 64.
    """
    for kernel in (2 * factor, 2 * factor - 1):
        try:
            geometry.upsampled(kernel, factor).offset_of(reference)
        except ValueError:
            continue
        return kernel
    raise ValueError(f"no bilinear kernel of factor {factor} is aligned to whole cells")


def one_size(value: int | tuple[int, ...] | str, name: str) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, tuple) and len(set(value)) == 1:
        return int(value[0])
    raise ValueError(f"only square layers are supported: {name} is {value}")


def through(geometry: Geometry, module: nn.Module) -> Geometry:
    """The geometry after ``module``: a layer, a Sequential of them, or parallel branches."""
    if isinstance(module, nn.Sequential):
        for child in module:
            geometry = through(geometry, child)
        return geometry
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        dilation = (
            one_size(module.dilation, "dilation") if not isinstance(module, nn.AvgPool2d) else 1
        )
        return geometry.window(
            one_size(module.kernel_size, "kernel_size"),
            one_size(module.stride, "stride"),
            one_size(module.padding, "padding"),
            dilation,
        )
    branches = getattr(module, "branches", None)
    if branches is not None:
        return _join(through(geometry, branch) for branch in branches)
    return geometry  # pointwise: ReLU, dropout, local response normalisation, scaling


def cells_after(cells: int, module: nn.Module) -> int:
    """How many cells a side ``module`` makes of ``cells``; 0 or less where it cannot be computed.

    Poolings round up where they say so, and their last window starts inside the map or its padding
    on the near side (Caffe's rule and PyTorch's).
    """
    if isinstance(module, nn.Sequential):
        for child in module:
            cells = cells_after(cells, child)
            if cells < 1:
                return 0
        return cells
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        stride, padding = one_size(module.stride, "stride"), one_size(module.padding, "padding")
        extent = through(Geometry(), module).receptive_field
        room = cells + 2 * padding - extent
        if isinstance(module, nn.Conv2d) or not module.ceil_mode:
            return room // stride + 1
        out = -(-room // stride) + 1
        return out - 1 if (out - 1) * stride >= cells + padding else out
    branches = getattr(module, "branches", None)
    if branches is not None:
        return min(cells_after(cells, branch) for branch in branches)
    return cells


def _join(geometries: Iterable[Geometry]) -> Geometry:
    """Concatenated maps: aligned, with the largest receptive field of the branches."""
    every = list(geometries)
    if len({(g.stride, g.start) for g in every}) != 1:
        raise ValueError("the branches of a module are not aligned")
    return max(every, key=lambda g: g.receptive_field)
