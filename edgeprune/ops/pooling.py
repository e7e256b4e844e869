"""Max pooling of stride 1, whose windows overlap: values, where they were found, and the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, is_whole, shown
from edgeprune.ops import memory
from edgeprune.ops._checks import check_tensors, check_whole
from edgeprune.ops._core import core
from edgeprune.ops.lending import lend, lend_written

MAX_SIZE: int = core.max_pool_max_size


def max_pool(x: Tensor, size: int, variant: str = "") -> tuple[Tensor, Tensor]:
    """Over windows of ``size`` x ``size``: (the largest elements, their places), no gradient recorded.

    ``x``: float32 [..., height, width] on the CPU; both results [..., height - size + 1, width - size + 1], the places
    uint8, row * size + column in the window. Of equal elements the first is taken, and a NaN is larger than any number.
    Raises EdgePruneError where the window (1 to 15) does not lie in the picture. The same bits on every instruction
    set; ``variant`` names one, for tests.
    """
    _check(x)
    size = check_whole("max_pool", "size", size)
    if size < 0:
        size = 0  # the core's sentence
    shape = (*x.shape[:-2], *(max(0, n - size + 1) for n in x.shape[-2:]))  # the core says which sizes will do
    out, where = memory.empty(shape), memory.empty(shape, dtype=torch.uint8)
    to, places = lend_written("max_pool", "out", out), lend_written("max_pool", "where", where)
    core.max_pool(lend(x), to, places, size, torch.get_num_threads(), variant)
    return out, where


def max_pool_backward(grad: Tensor, where: Tensor, shape: tuple[int, ...], size: int, variant: str = "") -> Tensor:
    """The gradient of :func:`max_pool`'s input, of ``shape``: each window's goes to the element at ``where``.

    Sums run from the first window to the last, as in torch.
    """
    check_tensors("max_pool", grad=grad, where=where)
    if not isinstance(shape, Sequence) or not all(is_whole(n) and n >= 0 for n in shape):
        raise EdgePruneError(f"max_pool: shape is {shown(shape)}; give the sizes of max_pool's input")
    dx = memory.empty(shape)
    to = lend_written("max_pool", "dx", dx)
    core.max_pool_backward(lend(grad), lend(where), to, size, torch.get_num_threads(), variant)
    return dx


def _check(x: Tensor) -> None:
    check_tensors("max_pool", x=x)
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() < 2:
        raise EdgePruneError(
            f"max_pool: x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; give float32 [..., height, width] on "
            "the CPU"
        )
