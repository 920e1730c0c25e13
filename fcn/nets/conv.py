"""A convolution with its rectifier, and on a GPU in bfloat16 both as one kernel.

PyTorch launches three kernels for what cuDNN does in one: the bias and the rectifier pass over the
map again. They took a third of the time in which FCN-8s labels 8 images on an H100
(docs/speed.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Fused(torch.autograd.Function):
    """max(0, convolution + bias) of bfloat16 tensors in channels last."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, where: tuple[list[int], ...]
    ) -> Tensor:
        y: Tensor = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *where, 1)
        ctx.save_for_backward(x, weight, y)
        ctx.where = where
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        stride, padding, dilation = ctx.where
        through = torch.ops.aten.threshold_backward(gradient, y, 0)
        found = torch.ops.aten.convolution_backward(
            *(through, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], 1),
            ctx.needs_input_grad[:3],
        )
        return (*found, None)


class ConvReLU(nn.Conv2d):
    """max(0, convolution): (N, C, H, W) -> (N, out, h, w), of the dtype of ``nn.Conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._fuses(x):
            return F.relu_(super().forward(x))
        weight, bias = self.weight.bfloat16(), self.bias.bfloat16()  # type: ignore[union-attr]
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
        where = tuple(list(pair) for pair in (self.stride, self.padding, self.dilation))
        fused: Tensor = _Fused.apply(x, weight, bias, where)  # type: ignore[no-untyped-call]
        return fused

    def _fuses(self, x: Tensor) -> bool:
        """Not of an image's three channels: cuDNN's fused kernel is far slower there."""
        channels = (self.in_channels, self.out_channels)
        if not x.is_cuda or self.groups > 1 or self.bias is None or any(n % 8 for n in channels):
            return False
        if torch.is_autocast_enabled("cuda"):
            return torch.get_autocast_dtype("cuda") == torch.bfloat16
        return x.dtype == torch.bfloat16
