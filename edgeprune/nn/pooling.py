"""Max pooling of stride 1 on the core's kernel: torch's own compares one element at a time on CPUs.

Values and gradients are torch's to the bit: of equal elements in a window the first row, and in it the first column,
gets the gradient, and gradients are added in torch's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import ops
from edgeprune.ops import observers
from edgeprune.ops.pooling import MAX_SIZE


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        out, where = ops.max_pool(x, size)
        ctx.save_for_backward(where)
        ctx.shape, ctx.size = tuple(x.shape), size
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        if observers.batched(grads[0]):
            place = _places(where, ctx.size, ctx.shape[-1])
            into = grads[0].new_zeros((*place.shape[:-1], ctx.shape[-2] * ctx.shape[-1]))
            into = into.scatter_add(-1, place, grads[0].reshape(place.shape))
            return into.view(ctx.shape), None
        if torch.is_grad_enabled() and grads[0].requires_grad:
            into = _Gradient.apply(grads[0], where, ctx.shape, ctx.size)
            return into, None
        return ops.max_pool_backward(grads[0], where, ctx.shape, ctx.size), None


class _Gradient(torch.autograd.Function):
    """The gradient as a function of that of the maxima, for gradients of gradients."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, where: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
        ctx.save_for_backward(where)
        ctx.size = size
        return ops.max_pool_backward(grad, where, shape, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (where,) = ctx.saved_tensors
        height, width = grads[0].shape[-2:]
        place = _places(where, ctx.size, width)
        into = grads[0].reshape(*place.shape[:-1], height * width)
        return into.gather(-1, place).view(where.shape), None, None, None


def _places(where: Tensor, size: int, wide: int) -> Tensor:
    """Of each maximum, [..., windows]: its position in a picture ``wide`` columns wide."""
    window, (height, width) = where.long(), where.shape[-2:]
    row = torch.arange(height, device=where.device)[:, None] + window // size
    column = torch.arange(width, device=where.device) + window % size
    return (row * wide + column).flatten(-2)


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d, faster for float32 on CPUs where the stride is 1, the window square and nothing padded.

    Elsewhere torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H - k + 1, W - k + 1)."""
        size = self.kernel_size
        ours = observers.plain(x) and x.dtype == torch.float32 and x.device.type == "cpu" and observers.unobserved()
        if not ours or not self.takes(x.shape):
            return super().forward(x)
        out: Tensor = _MaxPool.apply(x, size)
        return out

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether our kernel pools float32 of ``shape`` on the CPU."""
        how = (self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)
        size = self.kernel_size
        if not isinstance(size, int) or how != (1, 0, 1, False, False) or len(shape) != 4 or 0 in shape:
            return False
        return 1 < size <= min(MAX_SIZE, *shape[2:])
