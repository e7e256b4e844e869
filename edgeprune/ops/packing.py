"""Selection by magnitude, bit-packed masks, packed values, weighted accumulation from them, and gap codes.

Tensors are float32 and taken flat; those written to must be contiguous. All of a call live on the CPU, or on one GPU
when the core was built with CUDA (gap codes: on the CPU). Everything goes through the compiled core; the same bits come
from every instruction set and number of threads, from a GPU, and from ``packing_reference`` in numpy.

On a GPU a call waits for the device where it must: once for the number of kept elements that gives a result its size,
and at its end for errors that only the device can see. ``kept``, which saves the former, and ``wait=False`` make calls
that do not wait at all and can be captured in a CUDA graph; such errors are then raised by a later ``cuda_check``.

A *mask* is a uint8 tensor of ceil(n / 8) bytes: bit i % 8 of byte i // 8 is element i, spare bits zero. None keeps all.
Kept values travel little-endian in one of these codings ("dtype"):

    f32    as they are                      bf16, f16   rounded to nearest, ties to even
    i8     v / scale as int8, one float32 scale = max|v| / 127 for each 256 kept values; to nearest, ties to even, or,
           with a seed, up or down at random so that the mean is right (a function of seed and position among the kept)

Raises EdgePruneError for tensors of another type or place, masks of another length or with spare bits set, values or
scales that are not as many as the mask keeps, unknown codings, and what the functions name. The ``torch.library``
operators are ``torch.ops.edgeprune.{select_largest, select_above, unpack, accumulate_}``; the others return tensors
whose size depends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError
from edgeprune.ops import memory, packing_cuda
from edgeprune.ops._checks import check_number, check_rows, check_tensors, check_whole
from edgeprune.ops._core import core
from edgeprune.ops.lending import check_apart, lend, lend_written, plain
from edgeprune.ops.packing_cuda import cuda_check
from edgeprune.ops.packing_room import checked_size, empty_masks, mask_room, room, seed_of
from edgeprune.ops.packing_types import Packed, check_dtype

__all__ = [
    "Packed",
    "accumulate_",
    "cuda_check",
    "decode_gaps",
    "encode_gaps",
    "mask_count",
    "mask_from_indices",
    "mask_to_indices",
    "pack",
    "pack_with_feedback_",
    "pack_with_feedback_many_",
    "select_above",
    "select_largest",
    "unpack",
]

# ---- masks ----------------------------------------------------------------------------------------------------------


def mask_count(mask: Tensor) -> int:
    """The number of set bits. On a GPU: waits."""
    check_tensors("mask_count", mask=mask)
    if mask.is_cuda:
        return packing_cuda.mask_count(mask)
    return int(core.mask_count(lend(mask), torch.get_num_threads()))


def _kept(op: str, mask: Tensor | None, n: int, said: int | None = None) -> int:
    checked_size(op, "n", n)
    kept: int = core.mask_kept(op, lend(mask), n)
    if said is not None and said != kept:
        raise EdgePruneError(f"{op}: kept is {said}, but the mask keeps {kept}; give what the mask keeps, or nothing")
    return kept


def mask_to_indices(mask: Tensor, n: int, *, kept: int | None = None) -> Tensor:
    """Positions of the kept of ``n`` elements: int64, increasing. ``kept``: how many, where that is known."""
    check_tensors("mask_to_indices", mask=mask)
    if mask.is_cuda:
        return packing_cuda.mask_to_indices(mask, n, kept)
    out = memory.empty(_kept("mask_to_indices", mask, n, kept), dtype=torch.int64)
    core.mask_to_indices(lend(mask), n, lend(out), torch.get_num_threads())
    return out


def mask_from_indices(indices: Tensor, n: int, *, wait: bool = True) -> Tensor:
    """The mask that keeps ``indices`` (int64, one-dimensional, in any order; repeated ones count once).

    Raises EdgePruneError for an index outside 0 .. n - 1.
    """
    check_tensors("mask_from_indices", indices=indices)
    checked_size("mask_from_indices", "n", n)
    if n < 0:
        raise EdgePruneError(f"mask_from_indices: a tensor of {n} elements; give the number of its elements")
    if indices.is_cuda:
        return packing_cuda.mask_from_indices(indices, n, wait)
    out = mask_room("mask_from_indices", n)
    core.mask_from_indices(lend(indices), n, lend(out))
    return out


# ---- selection ------------------------------------------------------------------------------------------------------


def select_largest(xs: Sequence[Tensor], k: int, *, wait: bool = True) -> list[Tensor]:
    """Masks of ``xs`` that keep exactly ``k`` elements over all of them: larger magnitude first, ties to the lower
    (tensor, index). Raises EdgePruneError for ``k`` outside 0 .. all, and for NaN."""
    check_rows("select_largest", xs=xs)
    if plain(*xs):
        return select_largest_direct(xs, k, wait)
    return torch.ops.edgeprune.select_largest(list(xs), k)


def select_largest_direct(xs: Sequence[Tensor], k: int, wait: bool = True) -> list[Tensor]:
    checked_size("select_largest", "k", k)
    if xs and xs[0].is_cuda:
        return packing_cuda.select_largest(xs, k, wait)
    masks = empty_masks(xs)
    core.select_largest([lend(x) for x in xs], k, [lend(mask) for mask in masks], torch.get_num_threads())
    return masks


def select_above(xs: Sequence[Tensor], threshold: float, *, wait: bool = True) -> list[Tensor]:
    """Masks of ``xs`` that keep the elements with magnitude >= ``threshold``. Raises EdgePruneError for NaN."""
    check_rows("select_above", xs=xs)
    threshold = check_number("select_above", "threshold", threshold)
    if plain(*xs):
        return select_above_direct(xs, threshold, wait)
    return torch.ops.edgeprune.select_above(list(xs), threshold)


def select_above_direct(xs: Sequence[Tensor], threshold: float, wait: bool = True) -> list[Tensor]:
    if math.isnan(threshold):
        raise EdgePruneError("select_above: the threshold is NaN; give a number")
    with np.errstate(over="ignore"):
        least = np.float32(max(threshold, 0.0))
    if float(least) < threshold:  # the comparison is exact: the next float32 up
        least = np.nextafter(least, np.float32(math.inf))
    bits = int(least.view(np.uint32)) & 0x7FFFFFFF
    if xs and xs[0].is_cuda:
        return packing_cuda.select_above(xs, bits, wait)
    masks = empty_masks(xs)
    core.select_above([lend(x) for x in xs], bits, [lend(mask) for mask in masks], torch.get_num_threads())
    return masks


# ---- pack -----------------------------------------------------------------------------------------------------------


def pack(
    x: Tensor, mask: Tensor | None, dtype: str = "f32", seed: int | None = None, *, kept: int | None = None
) -> Packed:
    """The kept values of ``x`` in order. ``seed``: stochastic rounding of "i8". ``kept``: how many, where it is known.

    Raises EdgePruneError when "i8" meets a kept value that is not finite. Beyond float16's range "f16" gives infinity.
    """
    check_tensors("pack", x=x)
    check_dtype("pack", dtype)
    if x.is_cuda:
        return packing_cuda.pack(x, mask, dtype, seed, kept)
    packed = room(_kept("pack", mask, x.numel(), kept), dtype)
    call = (lend(x), None, lend(mask), *(lend(part) for part in packed))
    core.pack_many([call], dtype, *seed_of(seed), torch.get_num_threads())
    return packed


def pack_with_feedback_(
    x: Tensor, residual: Tensor, mask_or_k: Tensor | int | None, dtype: str = "f32", seed: int | None = None
) -> tuple[Tensor | None, Packed]:
    """Error feedback: packs v = x + residual and leaves in ``residual`` what the receiver lacks: v - what it reads.

    ``mask_or_k``: a mask (None: all kept), or how many of the largest |v| to keep. Returns (mask, packed). F. Seide et
    al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; S. Stich et al., Sparsified SGD with Memory, 2018.
    Raises EdgePruneError when a kept value is not finite as the receiver reads it; ``residual`` is then unspecified.
    """
    which = [mask_or_k] if mask_or_k is None or isinstance(mask_or_k, Tensor) else mask_or_k
    masks, packed = pack_with_feedback_many_([x], [residual], which, dtype, seed)
    return masks[0], packed[0]


def pack_with_feedback_many_(
    xs: Sequence[Tensor],
    residuals: Sequence[Tensor],
    masks_or_k: Sequence[Tensor | None] | int,
    dtype: str = "f32",
    seed: int | None = None,
    *,
    kept: Sequence[int] | None = None,
) -> tuple[list[Tensor | None], list[Packed]]:
    """``pack_with_feedback_`` of many tensors; k counts over all of them, tensor i rounds with ``seed`` + i.

    ``kept``: how many each keeps, where that is known.
    """
    op = "pack_with_feedback_"
    check_dtype(op, dtype)
    check_rows(op, xs=xs, residuals=residuals)
    if not isinstance(masks_or_k, list | tuple):
        masks_or_k = check_whole(op, "k", masks_or_k, bits=63)
    elif masks := [mask for mask in masks_or_k if mask is not None]:
        check_rows(op, masks=masks)
    if len(xs) != len(residuals) or not isinstance(masks_or_k, int) and len(masks_or_k) != len(xs):
        raise EdgePruneError(f"{op}: tensors, residuals and masks of unequal number; give one of each")
    if kept is not None and len(kept) != len(xs):
        raise EdgePruneError(f"{op}: kept has {len(kept)} numbers for {len(xs)} tensors; give one of each")
    rounding = seed_of(seed)  # before a residual is written to
    if xs and xs[0].is_cuda:
        return packing_cuda.pack_with_feedback_many_(xs, residuals, masks_or_k, dtype, seed, kept)
    owed = [lend_written(op, "residual", residual) for residual in residuals]
    lent: list[Any] = [lend(x) for x in xs]
    check_apart(
        op,
        {f"the residual of tensor {i}": residual for i, residual in enumerate(residuals)},
        {f"tensor {i}": x for i, x in enumerate(xs) if x.is_contiguous()},
    )
    if isinstance(masks_or_k, int):
        core.add_many(lent, owed, torch.get_num_threads())
        lent = [None] * len(lent)
        masks_of: list[Tensor | None] = list(select_largest_direct(residuals, masks_or_k))
    else:
        masks_of = list(masks_or_k)
    said: Sequence[int | None] = [None] * len(xs) if kept is None else kept
    packed = [room(_kept(op, mask, x.numel(), count), dtype) for mask, x, count in zip(masks_of, xs, said, strict=True)]
    calls = [
        (x, residual, lend(mask), lend(to.values), lend(to.scales))
        for x, residual, mask, to in zip(lent, owed, masks_of, packed, strict=True)
    ]
    core.pack_many(calls, dtype, *rounding, torch.get_num_threads())
    return masks_of, packed


# ---- unpack and accumulate ------------------------------------------------------------------------------------------


def unpack(
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    n: int,
    dtype: str,
    *,
    out: Tensor | None = None,
    wait: bool = True,
) -> Tensor:
    """float32 ``[n]``: packed values where the mask keeps, zero elsewhere. ``out``: written instead of new memory."""
    check_tensors("unpack", values=values)
    if out is None and not plain(values, scales, mask):
        return torch.ops.edgeprune.unpack(values, scales, mask, n, dtype)
    check_dtype("unpack", dtype)
    checked_size("unpack", "n", n)
    if n < 0 or out is not None and out.numel() != n:
        raise EdgePruneError(f"unpack: n is {n}; it must be the number of elements of the tensor, and of out")
    if values.is_cuda:
        packing_cuda.check_room("unpack", values, mask, n, dtype)
        out = torch.empty(n, dtype=torch.float32, device=values.device) if out is None else out
        return packing_cuda.unpack(values, scales, mask, dtype, out, wait)
    if out is None:
        # before memory is taken for an n that nothing backs
        if mask is None and values.numel() < n:
            raise EdgePruneError(f"unpack: {values.numel()} bytes cannot be {n} values; the message is damaged")
        _kept("unpack", mask, n)
        out = memory.empty(n)
    to = lend_written("unpack", "out", out)
    core.unpack(lend(values), lend(scales), lend(mask), dtype, to, torch.get_num_threads())
    return out


def accumulate_(
    total: Tensor,
    weight_sum: Tensor,
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    dtype: str,
    weight: float,
    *,
    wait: bool = True,
) -> None:
    """``total[i] += weight * value`` and ``weight_sum[i] += weight`` where the mask keeps, straight from packed bytes.

    ``total``, ``weight_sum``: float32 of one size, written. The product is rounded to float32 before it is added.
    """
    check_tensors("accumulate_", total=total, weight_sum=weight_sum, values=values)
    weight = check_number("accumulate_", "weight", weight)
    if plain(total, weight_sum, values, scales, mask):
        return accumulate_direct_(total, weight_sum, values, scales, mask, dtype, weight, wait)
    torch.ops.edgeprune.accumulate_(total, weight_sum, values, scales, mask, dtype, weight)
    return None


def accumulate_direct_(
    total: Tensor,
    weight_sum: Tensor,
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    dtype: str,
    weight: float,
    wait: bool = True,
) -> None:
    op = "accumulate_"
    check_dtype(op, dtype)
    if total.is_cuda:
        return packing_cuda.accumulate_(total, weight_sum, values, scales, mask, dtype, weight, wait)
    sums, weights = lend_written(op, "total", total), lend_written(op, "weight_sum", weight_sum)
    check_apart(op, {"total": total, "weight_sum": weight_sum}, {"values": values} if values.is_contiguous() else {})
    core.accumulate(sums, weights, lend(values), lend(scales), lend(mask), dtype, weight, torch.get_num_threads())
    return None


# ---- gaps -----------------------------------------------------------------------------------------------------------


def encode_gaps(mask: Tensor, n: int) -> tuple[Tensor, int]:
    """A mask as a Golomb-Rice code of its gaps: (uint8 bytes, parameter), the shortest of all parameters.

    Parameter 32 is a prefix code over the mask's bytes, shorter near density 0.38 (csrc/kernels/gaps/gaps.h states the
    format). Random masks take at most 3 % more than their entropy at densities from .001 to .5.
    """
    checked_size("encode_gaps", "n", n)
    lent = lend(mask)
    plan = core.plan_gaps(lent, n)
    data = memory.empty(plan[2], dtype=torch.uint8)
    core.encode_gaps(lend(mask), n, plan, lend(data))
    return data, plan[1]


def decode_gaps(data: Tensor, count: int, n: int, parameter: int) -> Tensor:
    """The mask of ``n`` elements, ``count`` of them kept, that ``encode_gaps`` turned into ``data``.

    Raises EdgePruneError for an unknown parameter, data that end early or late, an element beyond ``n``, or another
    count. Allocates the mask and no more; a reader of untrusted bytes bounds ``n`` before.
    """
    checked_size("decode_gaps", "n", n)
    checked_size("decode_gaps", "count", count)
    parameter = check_whole("decode_gaps", "parameter", parameter, bits=63)
    if not 0 <= count <= n:
        raise EdgePruneError(f"decode_gaps: {count} kept elements among {n} cannot be; the message is damaged")
    mask = mask_room("decode_gaps", n)
    core.decode_gaps(lend(data), count, n, parameter, lend(mask))
    return mask
