"""Whole channels: norms, gather of kept indices, weighted scatter-accumulate, and the division that ends a merge.

float32 tensors on the CPU or (when the core was built with CUDA) on one GPU go through the compiled core; other types
through ``edgeprune.ops.reference``. On the CPU every instruction set gives the same bits.

``indices`` is one entry for each dimension: a one-dimensional int64 tensor of kept positions, or None for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import to_dlpack

from edgeprune.errors import EdgePruneError
from edgeprune.ops import reference
from edgeprune.ops._core import core

Index = Sequence[Tensor | None]


# ---- the way into the core ------------------------------------------------------------------------------------------


def _plain(*tensors: Tensor) -> bool:
    """All are float32 with memory of their own that the core can see: no fake tensors, no other subclasses."""
    return all(
        type(x) in (Tensor, Parameter) and x.dtype is torch.float32 and not x.is_neg() and x.is_cpu for x in tensors
    )


def _capsules(index: Index) -> list[object]:
    return [None if kept is None else to_dlpack(kept) for kept in index]


def _kept_shape(x: Tensor, index: Index) -> list[int]:
    shape = list(x.shape)
    if len(index) != len(shape):
        raise EdgePruneError(
            f"gather: {len(index)} indices for x of shape {tuple(shape)}; give one for each dimension, None for all of it"
        )
    for dim, kept in enumerate(index):
        if kept is not None:
            shape[dim] = kept.numel()
    return shape


def _gather_plain(xs: Sequence[Tensor], indices: Sequence[Index]) -> list[Tensor]:
    outs = [torch.empty(_kept_shape(x, index), dtype=torch.float32) for x, index in zip(xs, indices, strict=True)]
    core.gather_many(
        [to_dlpack(x) for x in xs],
        [_capsules(index) for index in indices],
        [to_dlpack(out) for out in outs],
        torch.get_num_threads(),
    )
    return outs


def gather(x: Tensor, indices: Index) -> Tensor:
    """Kept positions over several dimensions at once: ``x[np.ix_(*indices)]``, contiguous."""
    return _gather_plain([x], [indices])[0] if _plain(x) else reference.gather(x, indices)


def gather_many(xs: Sequence[Tensor], indices: Sequence[Index]) -> list[Tensor]:
    """``gather`` of many tensors in one crossing of the border."""
    return _gather_plain(xs, indices) if _plain(*xs) else reference.gather_many(xs, indices)


def scatter_accumulate_(total: Tensor, count: Tensor, x: Tensor, indices: Index, weight: float) -> None:
    """``total[where] += weight * x`` and ``count[where] += weight``; each index strictly increasing."""
    scatter_accumulate_many_([total], [count], [x], [indices], weight)


def scatter_accumulate_many_(
    totals: Sequence[Tensor], counts: Sequence[Tensor], xs: Sequence[Tensor], indices: Sequence[Index], weight: float
) -> None:
    """``scatter_accumulate_`` of many tensors in one crossing of the border."""
    if not _plain(*totals, *counts, *xs):
        return reference.scatter_accumulate_many_(totals, counts, xs, indices, weight)
    core.scatter_accumulate_many(
        [to_dlpack(x) for x in totals],
        [to_dlpack(x) for x in counts],
        [to_dlpack(x) for x in xs],
        [_capsules(index) for index in indices],
        weight,
        torch.get_num_threads(),
    )


def channel_norms(x: Tensor, dim: int, p: int) -> Tensor:
    """float32 ``[x.shape[dim]]``: sum of magnitudes (p = 1) or Euclidean norm (p = 2) of each channel."""
    if not _plain(x):
        return reference.channel_norms(x, dim, p)
    out = torch.empty(x.shape[dim], dtype=torch.float32)
    core.channel_norms(to_dlpack(x.contiguous()), dim % x.ndim, p, to_dlpack(out), torch.get_num_threads())
    return out


def merge_finish(base: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """``total / count`` where ``count > 0``, else ``base``, bit for bit."""
    return merge_finish_many([base], [total], [count])[0]


def merge_finish_many(bases: Sequence[Tensor], totals: Sequence[Tensor], counts: Sequence[Tensor]) -> list[Tensor]:
    """``merge_finish`` of many tensors in one crossing of the border."""
    if not _plain(*bases, *totals, *counts):
        return [reference.merge_finish(b, t, c) for b, t, c in zip(bases, totals, counts, strict=True)]
    outs = [torch.empty(base.shape, dtype=torch.float32) for base in bases]
    core.merge_finish_many(
        [to_dlpack(x.contiguous()) for x in bases],
        [to_dlpack(x.contiguous()) for x in totals],
        [to_dlpack(x.contiguous()) for x in counts],
        [to_dlpack(out) for out in outs],
        torch.get_num_threads(),
    )
    return outs
