"""Selection, bit-packed masks, packed values and gap codes: in numpy until the core takes over behind these names."""

from __future__ import annotations

from edgeprune.ops.packing_reference import (
    accumulate_,
    decode_gaps,
    encode_gaps,
    mask_count,
    mask_from_indices,
    mask_to_indices,
    pack,
    pack_with_feedback_,
    pack_with_feedback_many_,
    select_above,
    select_largest,
    unpack,
)
from edgeprune.ops.packing_types import Packed

__all__ = [
    "Packed",
    "accumulate_",
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
