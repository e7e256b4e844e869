"""What travels: tensors and a small header as bytes, made and read without trusting the sender.

Every message of every algorithm and engine goes through :func:`encode` and :func:`decode`;
the traffic an experiment reports is ``len`` of these bytes. See ``format.md`` beside this file.
``python -m edgeprune.wire FILE`` prints what a file of them holds.
"""

from edgeprune.wire.accumulator import MAX_WEIGHT_BITS, Accumulator, BeyondReachError
from edgeprune.wire.message import Message, Repeats, decode, encode, mask_id
from edgeprune.wire.positions import to_bitmap
from edgeprune.wire.public import pack, pack_largest, unpack
from edgeprune.wire.tensors import PackedTensor, all_finite, pack_tensor, peak

__all__ = [
    "MAX_WEIGHT_BITS",
    "Accumulator",
    "BeyondReachError",
    "Message",
    "PackedTensor",
    "Repeats",
    "all_finite",
    "decode",
    "encode",
    "mask_id",
    "pack",
    "pack_largest",
    "pack_tensor",
    "peak",
    "to_bitmap",
    "unpack",
]
