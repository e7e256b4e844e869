"""The list of tensors in a message: for each its name, type, shape, coding and positions, in order of name."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeprune.errors import EdgePruneError
from edgeprune.wire import positions
from edgeprune.wire.layout import (
    ALL,
    CODING_BYTES,
    CODINGS,
    DTYPE_CODES,
    DTYPES,
    KNOWN,
    MAX_EXTENT,
    MAX_NAME,
    MAX_RANK,
    POSITIONS,
    Cursor,
    refused,
)
from edgeprune.wire.tensors import PackedTensor, value_bytes

_FIXED = struct.Struct("<HBBBBBB")  # name bytes, type, coding, positions, parameter, rank, zero
_KEPT = struct.Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """One line of the directory; lengths in bytes, as they follow from it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    coding: str
    positions: int
    parameter: int
    kept: int
    position_bytes: int
    scale_bytes: int
    value_bytes: int

    @property
    def numel(self) -> int:
        """Elements of the dense tensor."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.numel * self.dtype.itemsize

    @property
    def total(self) -> int:
        """Bytes of the tensor in the body."""
        return self.position_bytes + self.scale_bytes + self.value_bytes


def entry_of(name: str, packed: PackedTensor, placed: positions.Positions) -> Entry:
    """The line of ``packed`` whose positions are ``placed``."""
    scales, values = value_bytes(packed.dtype, packed.coding, packed.kept)
    return Entry(
        name,
        packed.shape,
        packed.dtype,
        packed.coding,
        placed.code,
        placed.parameter,
        packed.kept,
        len(placed.data),
        scales,
        values,
    )


def to_bytes(entries: Sequence[Entry]) -> bytes:
    """The directory's bytes. Raises EdgePruneError where a name or shape does not fit the format."""
    parts = []
    for entry in entries:
        name = entry.name.encode()
        if len(name) > MAX_NAME or len(entry.shape) > MAX_RANK or max(entry.shape, default=0) >= 1 << 32:
            raise EdgePruneError(
                f"wire: tensor {entry.name[:80]!r} of shape {entry.shape} does not fit the format: at most {MAX_NAME} "
                f"bytes of name, {MAX_RANK} dimensions below 2^32"
            )
        if _too_wide(entry.shape):
            raise EdgePruneError(
                f"wire: the sizes of tensor {entry.name[:80]!r}, {entry.shape}, multiply beyond 2^63; reshape it"
            )
        codes = DTYPE_CODES[entry.dtype], CODINGS.index(entry.coding), entry.positions, entry.parameter
        rank = len(entry.shape)
        parts += [_FIXED.pack(len(name), *codes, rank, 0), struct.pack(f"<{rank}I", *entry.shape)]
        if entry.positions != ALL:
            parts.append(_KEPT.pack(entry.kept))
        if entry.positions > KNOWN:
            parts.append(_KEPT.pack(entry.position_bytes))
        parts.append(name)
    return b"".join(parts)


def from_bytes(data: memoryview, tensors: int, body: int, dense: int) -> list[Entry]:
    """The directory's entries, checked against each other and against the bytes of the ``body`` and of the ``dense``
    tensors that the header speaks of. Raises EdgePruneError; allocates nothing but the entries."""
    cursor = Cursor(data, "directory")
    entries: list[Entry] = []
    for _ in range(tensors):
        entry = _entry(cursor)
        if entries and entry.name.encode() <= entries[-1].name.encode():
            raise refused(f"tensor {entry.name!r} is named twice or out of order")
        entries.append(entry)
    cursor.end()
    if sum(entry.dense_bytes for entry in entries) != dense:
        raise refused(f"the tensors take {sum(e.dense_bytes for e in entries)} bytes, the header says {dense}")
    if sum(entry.total for entry in entries) != body:
        raise refused(f"the tensors need a body of {sum(e.total for e in entries)} bytes, it has {body}")
    return entries


def _entry(cursor: Cursor) -> Entry:
    length, dtype_code, coding_code, placed, parameter, rank, zero = cursor.unpack(_FIXED)
    if length > MAX_NAME or rank > MAX_RANK or zero:
        raise refused(f"a tensor has a name of {length} bytes, {rank} dimensions or reserved bits set")
    shape = struct.unpack(f"<{rank}I", cursor.take(4 * rank))
    n = math.prod(shape)
    kept = n if placed == ALL else cursor.unpack(_KEPT)[0]
    position_bytes = cursor.unpack(_KEPT)[0] if placed > KNOWN else 0
    try:
        name = str(cursor.take(length), "utf-8")
    except UnicodeDecodeError:
        raise refused("the name of a tensor is not UTF-8") from None
    if dtype_code not in DTYPES or coding_code >= len(CODINGS) or placed >= len(POSITIONS):
        raise refused(f"tensor {name!r} has unknown type {dtype_code}, coding {coding_code} or positions {placed}")
    dtype, coding = DTYPES[dtype_code], CODINGS[coding_code]
    if coding != "own" and (not dtype.is_floating_point or dtype.itemsize <= CODING_BYTES[coding]):
        raise refused(f"tensor {name!r} of {dtype} cannot be in coding {coding!r}")
    if not n and _too_wide(shape):  # others are compared with what the header says of the dense tensors
        raise refused(f"the sizes of tensor {name!r} multiply beyond 2^63 but for its zeros")
    if kept > n:
        raise refused(f"tensor {name!r} keeps {kept} of {n} elements")
    if placed in (ALL, KNOWN) and parameter:
        raise refused(f"tensor {name!r} has a parameter where none belongs")
    return Entry(name, shape, dtype, coding, placed, parameter, kept, position_bytes, *value_bytes(dtype, coding, kept))


def _too_wide(shape: tuple[int, ...]) -> bool:
    return math.prod(size for size in shape if size) >= MAX_EXTENT
