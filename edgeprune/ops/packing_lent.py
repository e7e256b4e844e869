"""How the tensors of packing, pooling and exact sums reach the core, and the memory that results are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError, is_whole, shown
from edgeprune.ops import memory, observers
from edgeprune.ops._checks import check_written
from edgeprune.ops.packing_types import ITEM_BYTES, SCALE_BLOCK, Packed, mask_bytes


def plain(*xs: Tensor | None) -> bool:
    """Nothing here needs the dispatcher: no compiler or dispatch mode at work, no fake tensors or other subclasses."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(x is None or observers.plain(x) for x in xs)


def lend(x: Tensor | None) -> object:
    """A tensor to be read; EdgePruneError for one without values in memory."""
    return None if x is None else _lent(x)


def lend_written(op: str, name: str, x: Tensor) -> object:
    """A tensor to be written; EdgePruneError where a copy would be written in its place."""
    if not x.is_contiguous():
        raise EdgePruneError(f"{op}: {name} must be contiguous, for it is written to")
    check_written(op, **{name: x})
    return _lent(observers.told_of_writing(x))


def _lent(x: Tensor) -> object:
    """A copy where ``x`` is not contiguous or a negated view."""
    given = x
    try:
        given = x.detach().contiguous().resolve_neg()
        # a tensor that Python works on (a fake one, say) has no memory, and torch lends it all the same
        if type(given).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
            return to_dlpack(given)
    except (BufferError, RuntimeError):
        pass
    kind = "" if observers.plain(given) else f"{type(given).__name__} "
    raise EdgePruneError(
        f"ops: a {kind}tensor on {x.device} with layout {x.layout} cannot reach the core; give a dense one on the CPU"
    )


def check_apart(op: str, written: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    """No tensor that is written shares memory with another; all contiguous and on one device."""
    spans = [
        (start, start + x.numel() * x.element_size(), name, changes)
        for group, changes in ((written, True), (read, False))
        for name, x in group.items()
        if x.numel()
        for start in (x.data_ptr(),)
    ]
    ends: dict[bool, tuple[int, str]] = {True: (0, ""), False: (0, "")}
    for start, end, name, changes in sorted(spans):
        for kind, (last, other) in ends.items():
            if start < last and (kind or changes):
                raise EdgePruneError(f"{op}: {other} and {name} share memory, and one is written to; give it a copy")
        ends[changes] = max(ends[changes], (end, name))


def checked_size(op: str, name: str, n: object) -> None:
    """EdgePruneError unless ``n`` is a whole number as the core takes them."""
    if not isinstance(n, int) and not is_whole(n) or not -(1 << 63) <= n < 1 << 63:  # type: ignore[operator]
        raise EdgePruneError(f"{op}: {name} is {shown(n)}; give a whole number of elements")


def mask_room(op: str, n: int) -> Tensor:
    """A mask of ``n`` elements that keeps none."""
    try:
        return torch.zeros(mask_bytes(n), dtype=torch.uint8, device="cpu")
    except RuntimeError:
        raise EdgePruneError(f"{op}: a mask of {n} elements does not fit the memory; check the number") from None


def empty_masks(xs: Sequence[Tensor]) -> list[Tensor]:
    """Room for a mask of each."""
    return [torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=x.device) for x in xs]


def room(kept: int, dtype: str, device: torch.device | None = None) -> Packed:
    """Room for ``kept`` packed values."""
    values = memory.empty(kept * ITEM_BYTES[dtype], dtype=torch.uint8, device=device)
    if dtype != "i8":
        return Packed(values, None)
    return Packed(values, torch.empty(-(-kept // SCALE_BLOCK), dtype=torch.float32, device=values.device))


def seed_of(seed: int | None) -> tuple[bool, int]:
    """(whether rounding is stochastic, the seed) as the core takes them."""
    return seed is not None, 0 if seed is None else seed % (1 << 64)
