"""The fixed parts of a blob: its header, its codes, and a cursor that never reads past the end (see format.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

from edgeprune.errors import EdgePruneError

MAGIC = b"EDPW"
VERSION = 2
KINDS = {"state": 0, "assignment": 1, "update": 2, "calibrate": 3, "statistics": 4}
KIND_NAMES = {code: name for name, code in KINDS.items()}

MAX_TENSORS = 1 << 17
MAX_META = 1 << 16  # bytes of JSON
MAX_NAME = 1 << 10
MAX_RANK = 16
MAX_EXTENT = 1 << 63  # of the sizes that are not zero, multiplied: torch counts strides of empty tensors too
TRAILER = 4

HAS_PLAN, HAS_MASK = 1, 2

DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.float64,
    3: torch.float16,
    4: torch.bfloat16,
    5: torch.int64,
    6: torch.int32,
    7: torch.int16,
    8: torch.int8,
    9: torch.uint8,
    10: torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}

# How values are written: in the tensor's own type, or narrowed.
CODINGS = ("own", "f32", "bf16", "f16", "i8")
CODING_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1}
SCALE_BLOCK = 256  # kept values that share one float32 scale

# Where the kept values belong.
ALL, KNOWN, BITMAP, GAPS, RUNS, ZSTD, UNITS = range(7)
POSITIONS = ("all", "known", "bitmap", "gaps", "runs", "zstd", "units")

_HEADER = struct.Struct("<4sHBBIIQ8s8sQQIIIHH")
HEADER_BYTES = _HEADER.size
assert HEADER_BYTES == 72


def refused(what: str) -> EdgePruneError:
    """The error of a blob that is not what it should be."""
    return EdgePruneError(f"wire: {what}; message refused")


@dataclass(frozen=True)
class Header:
    """The first 72 bytes. ``plan`` and ``mask`` are 16 hex digits or empty; lengths are in bytes."""

    kind: str
    round: int
    tensors: int
    samples: int
    plan: str
    mask: str
    dense: int
    body: int
    directory: int
    kept: int
    meta: int
    client: int

    def to_bytes(self) -> bytes:
        """Raises EdgePruneError where a number does not fit its field."""
        flags = (HAS_PLAN if self.plan else 0) | (HAS_MASK if self.mask else 0)
        try:
            return _HEADER.pack(
                MAGIC,
                VERSION,
                KINDS[self.kind],
                flags,
                self.round,
                self.tensors,
                self.samples,
                _id_bytes(self.plan, "plan"),
                _id_bytes(self.mask, "mask"),
                self.dense,
                self.body,
                self.directory,
                self.kept,
                self.meta,
                self.client,
                0,
            )
        except struct.error as error:
            raise EdgePruneError(f"wire: a number of the message does not fit its header field ({error})") from None

    @staticmethod
    def from_bytes(blob: bytes | memoryview) -> Header:
        """The header of ``blob``, its lengths compared with what is there. Raises EdgePruneError."""
        if len(blob) < HEADER_BYTES + TRAILER:
            raise refused(f"{len(blob)} bytes are too few for a message, it was truncated")
        magic, version, kind, flags, round_, tensors, samples, plan, mask, *lengths, zero = _HEADER.unpack_from(blob)
        dense, body, directory, kept, meta, client = lengths
        if magic != MAGIC:
            raise refused("the first bytes are not those of an edgeprune message")
        if version != VERSION:
            raise refused(f"message has version {version}, this reader knows {VERSION}")
        if kind not in KIND_NAMES:
            raise refused(f"kind {kind} is unknown")
        if flags & ~(HAS_PLAN | HAS_MASK) or zero:
            raise refused("reserved bits of the header are set")
        if (not flags & HAS_PLAN and any(plan)) or (not flags & HAS_MASK and any(mask)):
            raise refused("the header holds an id that its flags deny")
        said = HEADER_BYTES + client + kept + meta + directory + body + TRAILER
        if said != len(blob):
            what = "it was truncated" if said > len(blob) else "something was appended"
            raise refused(f"header speaks of {said} bytes but there are {len(blob)}, {what}")
        if tensors > MAX_TENSORS or meta > MAX_META:
            raise refused(f"{tensors} tensors and {meta} bytes of JSON are over the limits {MAX_TENSORS}, {MAX_META}")
        return Header(
            KIND_NAMES[kind],
            round_,
            tensors,
            samples,
            plan.hex() if flags & HAS_PLAN else "",
            mask.hex() if flags & HAS_MASK else "",
            dense,
            body,
            directory,
            kept,
            meta,
            client,
        )


def _id_bytes(text: str, what: str) -> bytes:
    if not text:
        return bytes(8)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 8 or value.hex() != text:
        raise EdgePruneError(f"wire: the {what} id {text!r} is not 16 lower-case hexadecimal digits")
    return value


class Cursor:
    """Takes parts off the front of a buffer; asking for more than is left raises EdgePruneError."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, not copied."""
        if count > self.left:
            raise refused(f"the {self._what} asks for {count} bytes where {self.left} are left")
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """The next fields."""
        return form.unpack(self.take(form.size))

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise refused(f"the {self._what} has {self.left} bytes too many")
