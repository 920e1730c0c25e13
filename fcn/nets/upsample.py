"""Bilinear interpolation as a fractionally strided convolution (section 3.3), fixed or learned."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.device import tf32
from fcn.graphs import hold

KEPT = 512  # matrices, one for each side that images have


def bilinear_taps(kernel: int) -> Tensor:
    """The 1-d interpolation kernel of ``surgery.interp`` in the authors' repository, float64.

    Factor f = (kernel + 1) // 2; the centre is f - 1 for odd and f - 1/2 for even kernels.
    """
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    return 1 - (torch.arange(kernel, dtype=torch.float64) - centre).abs() / factor


def upsampling_matrix(size: int, kernel: int, stride: int, first: int, length: int) -> Tensor:
    """(length, size) float64: output cells first .. first+length-1 as a linear map of the input.

    Row ``r`` holds what a transposed convolution with the bilinear kernel gives at output index
    ``first + r``; at most two entries of a row are not zero.
    """
    taps = bilinear_taps(kernel)
    matrix = torch.zeros((size - 1) * stride + kernel, size, dtype=torch.float64)
    for cell in range(size):
        matrix[cell * stride : cell * stride + kernel, cell] = taps
    if first < 0 or first + length > len(matrix):
        raise ValueError(
            f"cells {first}..{first + length} are not in an upsampled map of {len(matrix)}"
        )
    return matrix[first : first + length]


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which layers compute in the dtype of their input, whatever autocast says."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class _Transposed(torch.autograd.Function):
    """A transposed convolution in float32, forward and backward, also where others use TF32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        with tf32(False):
            return F.conv_transpose2d(x, weight, stride=stride, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        where = ((ctx.stride,) * 2, (0, 0), (1, 1), True, (0, 0), ctx.groups)
        wanted = (*ctx.needs_input_grad[:2], False)
        backward = torch.ops.aten.convolution_backward  # what autograd would call
        with tf32(False):
            of_x, of_weight, _ = backward(gradient, x, weight, None, *where, wanted)
        return of_x, of_weight, None, None


class Upsample(nn.Module):
    """Upsampling by ``stride`` with a bilinear kernel of size ``kernel``, one kernel per class.

    ``learned``: a full transposed convolution that starts as bilinear interpolation (the
    intermediate layers of both papers). Otherwise fixed, as in the authors' released nets; then it
    is a linear map of rows and of columns, and only the cells that the crop keeps are computed.
    ``exact`` computes the fixed one as the authors' layer does, all of it, by a transposed
    convolution, and crops after: the oracle of the fast way.
    """

    weight: Tensor

    def __init__(self, channels: int, kernel: int, stride: int, learned: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.learned = learned
        self.exact = False
        taps = bilinear_taps(kernel)
        filters = torch.outer(taps, taps).float()
        if learned:
            weight = torch.zeros(channels, channels, kernel, kernel)
            weight[range(channels), range(channels)] = filters
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", filters.expand(channels, 1, -1, -1).clone())
        self._matrices: dict[tuple[int, int, int, torch.device], Tensor] = {}

    def settle(self) -> None:
        """After loading: a fixed kernel that is not bilinear is applied as it is."""
        taps = bilinear_taps(self.kernel).to(self.weight)
        bilinear = torch.allclose(self.weight, torch.outer(taps, taps), atol=1e-6)
        self.exact = self.exact or not (self.learned or bilinear)

    def size(self, cells: int) -> int:
        """Cells of the whole upsampled map."""
        return (cells - 1) * self.stride + self.kernel

    def _matrix(self, size: int, first: int, length: int, like: Tensor) -> Tensor:
        key = (size, first, length, like.device)
        kept = self._matrices.pop(key, None)
        if kept is None:
            if len(self._matrices) >= KEPT:
                del self._matrices[next(iter(self._matrices))]  # which was not asked for longest
            with torch.inference_mode(False):  # training may use a matrix that validation made
                matrix = upsampling_matrix(size, self.kernel, self.stride, first, length)
                kept = matrix.to(like)
        self._matrices[key] = kept
        return hold(kept)

    def forward(self, x: Tensor, first: tuple[int, int], length: tuple[int, int]) -> Tensor:
        """Rows and columns ``first .. first + length`` of the upsampled (N, C, h, w), float32."""
        with full_precision(x):
            return self._window(x.float(), first, length)

    def _window(self, x: Tensor, first: tuple[int, int], length: tuple[int, int]) -> Tensor:
        if self.learned or self.exact:
            groups = 1 if self.learned else x.shape[1]
            up: Tensor = _Transposed.apply(x, self.weight, self.stride, groups)  # type: ignore[no-untyped-call]
            if first[0] + length[0] > up.shape[2] or first[1] + length[1] > up.shape[3]:
                raise ValueError(f"the upsampled map {tuple(up.shape)} does not cover the image")
            return up[:, :, first[0] : first[0] + length[0], first[1] : first[1] + length[1]]
        rows = self._matrix(x.shape[2], first[0], length[0], x)
        columns = self._matrix(x.shape[3], first[1], length[1], x)
        return torch.matmul(rows, torch.matmul(x, columns.t()))
