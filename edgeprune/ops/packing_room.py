"""The memory that packing writes its results to, and the numbers it is told, as the core takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, is_whole, shown
from edgeprune.ops import memory
from edgeprune.ops.packing_types import ITEM_BYTES, SCALE_BLOCK, Packed, mask_bytes


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
    if seed is None:
        return False, 0
    if not is_whole(seed):
        raise EdgePruneError(f"pack: seed is {shown(seed)}; give a whole number, or None to round to nearest")
    return True, int(seed) % (1 << 64)
