"""The packing operators on a GPU: what ``edgeprune.ops.packing`` calls for tensors that live there. Same bits.

Work goes to the current stream. The core neither allocates nor waits: workspaces come from torch, and what only the
device can see (NaN, masks that do not fit, values that are not finite) is noted in status words there. A call waits
for the device, at its end, to read them and raise; and once where the number of kept elements must be known to make
room. ``wait=False``, or ``kept`` where a size is asked for, makes a call that never waits and can be captured in a CUDA
graph (once it has run outside of one): its status words are kept for each device until ``cuda_check`` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError
from edgeprune.ops._core import core
from edgeprune.ops.lending import lend, lend_written
from edgeprune.ops.packing_room import empty_masks, room, seed_of
from edgeprune.ops.packing_types import ITEM_BYTES, Packed, check_dtype, mask_bytes

STATUS_WORDS = 8

_pending: dict[torch.device, Tensor] = {}


# ---- status ---------------------------------------------------------------------------------------------------------


def _later(device: torch.device) -> Tensor:
    """The status words of calls on a device that do not wait."""
    if device not in _pending:
        if torch.cuda.is_current_stream_capturing():
            raise EdgePruneError("cuda_check: call it once on this device before a graph is captured")
        _pending[device] = torch.zeros(STATUS_WORDS, dtype=torch.int32, device=device)
        torch.cuda.current_stream(device).synchronize()  # once: other streams may be the first to write it
    return _pending[device]


def _raise(op: str, status: Tensor, dtype: str) -> None:
    core.packing_cuda_check(op, [word & 0xFFFFFFFF for word in status.tolist()], dtype)


def cuda_check(device: torch.device | int | str | None = None) -> None:
    """Waits for a GPU (None: the current one) and raises what calls that did not wait met there since the last check.

    Raises EdgePruneError: NaN in a selection, a mask that keeps another number of elements than there are values or has
    bits set beyond its elements, a packed value that is not finite, an index outside the tensor. Results of the calls
    since the last check are then unspecified.
    """
    if not (core.cuda_built() and torch.cuda.is_available()):
        raise EdgePruneError("cuda_check: no GPU here, or a build without CUDA kernels; there is nothing to check")
    if isinstance(device, int):
        device = torch.device("cuda", device)
    where = torch.device("cuda") if device is None else torch.device(device)
    if where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    status = _later(where)
    torch.cuda.synchronize(where)
    seen = status.clone()
    status.zero_()
    torch.cuda.synchronize(where)
    _raise("a packing operator on the GPU", seen, "i8")


class _Call:
    """Workspaces and status words of one call on one GPU, on its current stream."""

    def __init__(self, op: str, device: torch.device, wait: bool, status: Tensor | None = None) -> None:
        if not core.cuda_built():
            raise EdgePruneError(
                f"{op}: this build of edgeprune has no CUDA kernels ({core.cuda_text()}); "
                "move the tensors to the CPU or rebuild with nvcc"
            )
        self.op, self.device, self.wait = op, device, wait
        if status is None:
            status = torch.zeros(STATUS_WORDS, dtype=torch.int32, device=device) if wait else _later(device)
        self.status = status

    def part(self) -> _Call:
        """A part of this call: it notes in the same status words, and leaves the reading to the whole."""
        return _Call(self.op, self.device, False, self.status)

    def how(self, what: str, sizes: Sequence[int], kept: Sequence[int] = ()) -> tuple[object, object, int]:
        space = torch.empty(core.packing_cuda_workspace(what, sizes, kept), dtype=torch.uint8, device=self.device)
        stream: int = torch.cuda.current_stream(self.device).cuda_stream
        return to_dlpack(space), to_dlpack(self.status), stream

    def check(self, dtype: str = "f32") -> None:
        """The documented wait."""
        if self.wait:
            _raise(self.op, self.status, dtype)

    def counts(self, masks: Sequence[Tensor | None], sizes: Sequence[int]) -> list[int]:
        """How many elements each mask keeps: a wait, unless there is no mask."""
        if all(mask is None for mask in masks):
            return list(sizes)
        counts = torch.zeros(len(masks), dtype=torch.int64, device=self.device)
        core.mask_counts_cuda([lend(mask) for mask in masks], sizes, to_dlpack(counts), self.how("rows", sizes))
        self.check()
        return counts.tolist()


# ---- masks ----------------------------------------------------------------------------------------------------------


def mask_count(mask: Tensor) -> int:
    return _Call("mask_count", mask.device, True).counts([mask], [8 * mask.numel()])[0]


def mask_to_indices(mask: Tensor, n: int, kept: int | None = None) -> Tensor:
    op = "mask_to_indices"
    call = _Call(op, mask.device, kept is None)
    size = call.counts([mask], [n])[0] if kept is None else kept
    out = torch.empty(size, dtype=torch.int64, device=mask.device)
    core.mask_to_indices_cuda(lend(mask), n, to_dlpack(out), call.how("rows", [n]))
    return out


def mask_from_indices(indices: Tensor, n: int, wait: bool = True) -> Tensor:
    op = "mask_from_indices"
    call = _Call(op, indices.device, wait)
    out = torch.zeros(-(-n // 32) * 4, dtype=torch.uint8, device=indices.device)
    core.mask_from_indices_cuda(lend(indices), n, to_dlpack(out), call.how("rows", []))
    call.check()
    return out[: mask_bytes(n)]


# ---- selection ------------------------------------------------------------------------------------------------------


def select_largest(xs: Sequence[Tensor], k: int, wait: bool = True) -> list[Tensor]:
    return _select_largest(_Call("select_largest", xs[0].device, wait), xs, k)


def _select_largest(call: _Call, xs: Sequence[Tensor], k: int) -> list[Tensor]:
    masks = empty_masks(xs)
    how = call.how("select", [x.numel() for x in xs])
    core.select_largest_cuda([lend(x) for x in xs], k, [to_dlpack(mask) for mask in masks], how)
    call.check()
    return masks


def select_above(xs: Sequence[Tensor], bits: int, wait: bool = True) -> list[Tensor]:
    """``bits``: of the smallest magnitude to keep, as a float32."""
    call = _Call("select_above", xs[0].device, wait)
    masks = empty_masks(xs)
    how = call.how("rows", [x.numel() for x in xs])
    core.select_above_cuda([lend(x) for x in xs], bits, [to_dlpack(mask) for mask in masks], how)
    call.check()
    return masks


# ---- pack -----------------------------------------------------------------------------------------------------------


def pack(x: Tensor, mask: Tensor | None, dtype: str, seed: int | None, kept: int | None = None) -> Packed:
    call = _Call("pack", x.device, kept is None)
    packed = room(call.counts([mask], [x.numel()])[0] if kept is None else kept, dtype, x.device)
    staged = [] if mask is None or dtype != "i8" else [packed.values.numel()]
    lent = (lend(x), None, lend(mask), *(lend(part) for part in packed))
    core.pack_many_cuda([lent], dtype, *seed_of(seed), call.how("pack", [x.numel()], staged))
    if dtype == "i8":
        call.check(dtype)
    return packed


def pack_with_feedback_many_(
    xs: Sequence[Tensor],
    residuals: Sequence[Tensor],
    masks_or_k: Sequence[Tensor | None] | int,
    dtype: str,
    seed: int | None,
    kept: Sequence[int] | None = None,
) -> tuple[list[Tensor | None], list[Packed]]:
    op = "pack_with_feedback_"
    call = _Call(op, xs[0].device, kept is None)
    owed = [lend_written(op, "residual", residual) for residual in residuals]
    lent: list[object] = [lend(x) for x in xs]
    sizes = [residual.numel() for residual in residuals]
    if [x.numel() for x in xs] != sizes:
        raise EdgePruneError(f"{op}: x and residual of unequal size; they belong to one tensor")
    masks: list[Tensor | None]
    counts = list(kept) if kept is not None else None
    if isinstance(masks_or_k, int):
        with torch.no_grad():
            torch._foreach_add_(
                [residual.detach().view(-1) for residual in residuals], [x.detach().reshape(-1) for x in xs]
            )
        lent = [None] * len(lent)
        masks = list(_select_largest(call.part(), residuals, masks_or_k))
        if counts is None and len(masks) == 1:
            counts = [masks_or_k]  # a selection with NaN keeps another number, which is noticed below
    else:
        masks = list(masks_or_k)
    if counts is None:
        counts = call.counts(masks, sizes)
    packed = [room(count, dtype, x.device) for count, x in zip(counts, xs, strict=True)]
    calls = [
        (x, residual, lend(mask), lend(to.values), lend(to.scales))
        for x, residual, mask, to in zip(lent, owed, masks, packed, strict=True)
    ]
    core.pack_many_cuda(calls, dtype, *seed_of(seed), call.how("pack", sizes, counts if dtype == "i8" else []))
    call.check(dtype)
    return masks, packed


# ---- unpack and accumulate ------------------------------------------------------------------------------------------


def check_room(op: str, values: Tensor, mask: Tensor | None, n: int, dtype: str) -> None:
    """What can be said without the device, before memory is taken for an ``n`` that nothing backs."""
    if mask is not None and mask.numel() != mask_bytes(n):
        raise EdgePruneError(f"{op}: a mask of {n} elements is {mask_bytes(n)} bytes, not {mask.numel()}")
    if mask is None and values.numel() != n * ITEM_BYTES[dtype]:
        raise EdgePruneError(
            f"{op}: {values.numel()} bytes of values, but {n} elements in {dtype} are {n * ITEM_BYTES[dtype]}"
        )


def unpack(
    values: Tensor, scales: Tensor | None, mask: Tensor | None, dtype: str, out: Tensor, wait: bool = True
) -> Tensor:
    call = _Call("unpack", out.device, wait and mask is not None)
    to = lend_written("unpack", "out", out)
    how = call.how("rows", [out.numel()])
    core.unpack_cuda(lend(values), lend(scales), lend(mask), dtype, to, how)
    call.check()
    return out


def accumulate_(
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
    call = _Call(op, total.device, wait and mask is not None)
    sums, weights = lend_written(op, "total", total), lend_written(op, "weight_sum", weight_sum)
    how = call.how("rows", [total.numel()])
    core.accumulate_cuda(sums, weights, lend(values), lend(scales), lend(mask), dtype, weight, how)
    call.check()
