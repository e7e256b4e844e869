"""The words of the packing operators: packed values, names of codings, and sizes in bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.errors import EdgePruneError, nearest, shown

ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1}
SCALE_BLOCK = 256
"""Kept values of "i8" that share one scale."""


class Packed(NamedTuple):
    """Kept values as they travel."""

    values: Tensor
    """uint8, the bytes of the kept values in order, little-endian."""
    scales: Tensor | None
    """float32, one for each 256 kept values of "i8"; None for other codings."""


def mask_bytes(n: int) -> int:
    """Length of a mask of ``n`` elements."""
    return (n + 7) // 8


def check_dtype(op: str, dtype: str) -> None:
    """EdgePruneError unless ``dtype`` names a coding."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise EdgePruneError(f"{op}: dtype {shown(dtype)} is unknown{nearest(dtype, ITEM_BYTES)}")


def bits_of(data: Tensor) -> NDArray[Any]:
    """The bits of bytes, least significant first."""
    return np.unpackbits(data.numpy().reshape(-1), bitorder="little")
