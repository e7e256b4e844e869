"""Max pooling of stride 1, columns first, then rows: torch's own takes a comparison per window and element on CPUs.

    y = max over k rows of (max over k columns)         2 (k - 1) vectorised maxima in place of k^2 scalar comparisons

Values and gradients are torch's to the bit: of equal elements in a window the first row, and in it the first column,
gets the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _MaxPool(torch.autograd.Function):
    """On flat memory: a column is a shift by 1, a row by the width. What a shift brings in from the next row or picture
    lands where no window fits, and is cut off at the end."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        flat = x.contiguous().view(-1)
        across = _running_max(flat, size, 1)
        down = _running_max(across, size, x.shape[3])
        ctx.save_for_backward(flat, across, down)
        ctx.shape, ctx.size = x.shape, size
        return _windows(_padded(down, flat), x.shape, size).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        flat, across, down = ctx.saved_tensors
        whole = torch.zeros_like(flat)
        _windows(whole, ctx.shape, ctx.size).copy_(grads[0])
        rows = _spread(whole[: len(down)], across, down, ctx.size, ctx.shape[3])
        return _spread(rows, flat, across, ctx.size, 1).view(ctx.shape), None


def _windows(flat: Tensor, shape: torch.Size, size: int) -> Tensor:
    """The places of ``flat`` (of ``shape`` as NCHW) at which a window begins."""
    return flat.view(shape)[:, :, : shape[2] - size + 1, : shape[3] - size + 1]


def _padded(values: Tensor, like: Tensor) -> Tensor:
    out = torch.empty_like(like)
    out[: len(values)] = values
    return out


def _running_max(x: Tensor, size: int, step: int) -> Tensor:
    """out[i] = max of x[i], x[i + step], ... x[i + (size - 1) step]."""
    length = len(x) - (size - 1) * step
    out = torch.maximum(x[:length], x[step : step + length])
    for i in range(2, size):
        torch.maximum(out, x[i * step : i * step + length], out=out)
    return out


def _spread(grad: Tensor, x: Tensor, top: Tensor, size: int, step: int) -> Tensor:
    """The gradient of ``top``, the running maximum of ``x``, given to the first element that equals it."""
    into = torch.zeros_like(x)
    length = len(top)
    left = grad
    for i in range(size - 1):
        # A comparison into floats gives 0.0 and 1.0, which is several times faster than a bool that is converted.
        mine = torch.eq(x[i * step : i * step + length], top, out=torch.empty_like(top)).mul_(left)
        into[i * step : i * step + length].add_(mine)
        left = left - mine if i == 0 else left.sub_(mine)
    into[(size - 1) * step :].add_(left)  # what equalled none of the others is the last
    return into


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d, faster on CPUs where the stride is 1, the window square and nothing padded; else torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H - k + 1, W - k + 1)."""
        size = self.kernel_size
        if not isinstance(size, int) or torch.compiler.is_compiling() or not self._ours(x, size):
            return super().forward(x)
        out: Tensor = _MaxPool.apply(x, size)
        return out

    def _ours(self, x: Tensor, size: int) -> bool:
        how = (self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)
        plain = how == (1, 0, 1, False, False)
        return plain and x.dim() == 4 and x.numel() > 0 and 1 < size <= min(x.shape[2:]) and x.device.type == "cpu"
