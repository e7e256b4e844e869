"""The packing operators on a small input against the reference in numpy: what ``edgeprune doctor`` runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeprune.ops import packing
from edgeprune.ops import packing_reference as reference
from edgeprune.ops.packing_types import ITEM_BYTES


def _equal(got: object, expected: object) -> bool:
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        return torch.equal(got.cpu(), expected)
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(_equal(a, b) for a, b in zip(got, expected, strict=True))
    return got == expected


def cases(device: torch.device) -> dict[str, Callable[[], bool]]:
    """Name -> whether the core gives the reference's bits for tensors on a device. Gap codes: on the CPU alone."""
    x = torch.sin(torch.arange(3000) * 0.7) * torch.arange(3000)
    parts = [x[:1001], x[1001:]]

    def there(*tensors: Tensor | None) -> list[Any]:
        return [None if tensor is None else tensor.to(device, copy=True) for tensor in tensors]

    def select() -> bool:
        on = there(*parts)
        chosen = _equal(packing.select_largest(on, 300), reference.select_largest(parts, 300))
        return chosen and _equal(packing.select_above(on, 500.0), reference.select_above(parts, 500.0))

    def pack() -> bool:
        (mask,) = reference.select_largest([x], 900)
        return all(
            _equal(packing.pack(there(x)[0], there(where)[0], dtype, seed), reference.pack(x, where, dtype, seed))
            for dtype in ITEM_BYTES
            for where in (mask, None)
            for seed in (None, 7)
        )

    def unpack() -> bool:
        (mask,) = reference.select_largest([x], 900)
        for dtype in ITEM_BYTES:
            packed = reference.pack(x, mask, dtype)
            values, scales, where = there(*packed, mask)
            got = packing.unpack(values, scales, where, 3000, dtype)
            if not _equal(got, reference.unpack(*packed, mask, 3000, dtype)):
                return False
            total, weight_sum = there(x, torch.ones(3000))
            packing.accumulate_(total, weight_sum, values, scales, where, dtype, 0.3)
            expected, weights = x.clone(), torch.ones(3000)
            reference.accumulate_(expected, weights, *packed, mask, dtype, 0.3)
            if not _equal((total, weight_sum), (expected, weights)):
                return False
        return True

    def feedback() -> bool:
        results = []
        for ops in (packing, reference):
            owed = [part.flip(0) / 3 for part in parts]
            xs, residuals = (there(*parts), there(*owed)) if ops is packing else (parts, owed)
            results.append((ops.pack_with_feedback_many_(xs, residuals, 300, "i8", 1), residuals))
        return _equal(*results)

    def gaps() -> bool:
        (mask,) = reference.select_largest([x], 900)
        data, parameter = packing.encode_gaps(mask, 3000)
        coded = _equal((data, parameter), reference.encode_gaps(mask, 3000))
        return coded and _equal(packing.decode_gaps(data, 900, 3000, parameter), mask)

    every = {"select": select, "pack": pack, "unpack": unpack, "feedback": feedback}
    return every | {"gaps": gaps} if device.type == "cpu" else every
