"""Operators over the compiled core. (First stone: the plain implementation, until the core is in.)"""

from __future__ import annotations

from edgeprune.ops import reference
from edgeprune.ops.reference import (
    channel_norms,
    gather,
    gather_many,
    merge_finish,
    scatter_accumulate_,
    scatter_accumulate_many_,
)

__all__ = [
    "channel_norms",
    "gather",
    "gather_many",
    "merge_finish",
    "reference",
    "scatter_accumulate_",
    "scatter_accumulate_many_",
]
