"""Max pooling of stride 1, whose windows overlap: values, where they were found, and the gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError
from edgeprune.ops._core import core

MAX_SIZE = 15


def max_pool(x: Tensor, size: int, variant: str = "") -> tuple[Tensor, Tensor]:
    """Over windows of ``size`` x ``size``: (the largest elements, their places), no gradient recorded.

    ``x``: float32 [..., height, width] on the CPU; both results [..., height - size + 1, width - size + 1], the places
    uint8, row * size + column in the window. Of equal elements the first is taken, and a NaN is larger than any number.
    Raises EdgePruneError where the window (1 to 15) does not lie in the picture. The same bits on every instruction
    set; ``variant`` names one, for tests.
    """
    shape = _shape(x, size)
    x = x.detach().contiguous()
    out, where = torch.empty(shape), torch.empty(shape, dtype=torch.uint8)
    core.max_pool(to_dlpack(x), to_dlpack(out), to_dlpack(where), size, torch.get_num_threads(), variant)
    return out, where


def max_pool_backward(grad: Tensor, where: Tensor, shape: tuple[int, ...], size: int, variant: str = "") -> Tensor:
    """The gradient of :func:`max_pool`'s input, of ``shape``: each window's goes to the element at ``where``.

    Sums run from the first window to the last, as in torch.
    """
    dx = torch.empty(shape)
    _shape(dx, size)
    given = to_dlpack(grad.detach().contiguous())
    core.max_pool_backward(given, to_dlpack(where.contiguous()), to_dlpack(dx), size, torch.get_num_threads(), variant)
    return dx


def _shape(x: Tensor, size: int) -> tuple[int, ...]:
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() < 2:
        raise EdgePruneError(
            f"max_pool: x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; give float32 [..., height, width] on "
            "the CPU"
        )
    if not 1 <= size <= min(MAX_SIZE, *x.shape[-2:]):
        raise EdgePruneError(
            f"max_pool: a window of {size} does not lie in {tuple(x.shape)}; give 1 to {MAX_SIZE}, and no more than "
            "height and width"
        )
    return *x.shape[:-2], x.shape[-2] - size + 1, x.shape[-1] - size + 1
