"""The packing operators on a small input against the reference in numpy: what ``edgeprune doctor`` runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeprune.ops import packing
from edgeprune.ops import packing_reference as reference
from edgeprune.ops.packing_types import ITEM_BYTES


def _equal(got: object, expected: object) -> bool:
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        return torch.equal(got, expected)
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(_equal(a, b) for a, b in zip(got, expected, strict=True))
    return got == expected


def cases() -> dict[str, Callable[[], bool]]:
    """Name -> whether the core gives the reference's bits."""
    x = torch.sin(torch.arange(3000) * 0.7) * torch.arange(3000)
    parts = [x[:1001], x[1001:]]

    def select() -> bool:
        chosen = _equal(packing.select_largest(parts, 300), reference.select_largest(parts, 300))
        return chosen and _equal(packing.select_above(parts, 500.0), reference.select_above(parts, 500.0))

    def pack() -> bool:
        (mask,) = reference.select_largest([x], 900)
        return all(
            _equal(packing.pack(x, where, dtype, seed), reference.pack(x, where, dtype, seed))
            for dtype in ITEM_BYTES
            for where in (mask, None)
            for seed in (None, 7)
        )

    def unpack() -> bool:
        (mask,) = reference.select_largest([x], 900)
        for dtype in ITEM_BYTES:
            packed = reference.pack(x, mask, dtype)
            if not _equal(packing.unpack(*packed, mask, 3000, dtype), reference.unpack(*packed, mask, 3000, dtype)):
                return False
            results = []
            for ops in (packing, reference):
                total, weight_sum = x.clone(), torch.ones(3000)
                ops.accumulate_(total, weight_sum, *packed, mask, dtype, 0.3)
                results.append((total, weight_sum))
            if not _equal(*results):
                return False
        return True

    def feedback() -> bool:
        results = []
        for ops in (packing, reference):
            residuals = [part.flip(0) / 3 for part in parts]
            results.append((ops.pack_with_feedback_many_(parts, residuals, 300, "i8", 1), residuals))
        return _equal(*results)

    def gaps() -> bool:
        (mask,) = reference.select_largest([x], 900)
        data, parameter = packing.encode_gaps(mask, 3000)
        coded = _equal((data, parameter), reference.encode_gaps(mask, 3000))
        return coded and _equal(packing.decode_gaps(data, 900, 3000, parameter), mask)

    return {"select": select, "pack": pack, "unpack": unpack, "feedback": feedback, "gaps": gaps}
