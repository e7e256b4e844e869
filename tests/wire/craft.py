"""Blobs put together by hand from format.md, without any of edgeprune's own writers: for golden and hostile files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

F32, F64, F16, BF16, I64, I32, I16, I8, U8, BOOL = range(1, 11)
OWN, AS_F32, AS_BF16, AS_F16, AS_I8 = range(5)
ALL, KNOWN, BITMAP, GAPS, RUNS, ZSTD, UNITS = range(7)
STATE, ASSIGNMENT, UPDATE, CALIBRATE, STATISTICS = range(5)
ITEM = {F32: 4, F64: 8, F16: 2, BF16: 2, I64: 8, I32: 4, I16: 2, I8: 1, U8: 1, BOOL: 1}
PLAN = bytes.fromhex("0123456789abcdef")


def line(
    name: bytes = b"w",
    dims: Sequence[int] = (4,),
    dtype: int = F32,
    coding: int = OWN,
    placed: int = ALL,
    parameter: int = 0,
    kept: int | None = None,
    position_bytes: int | None = None,
    zero: int = 0,
) -> bytes:
    """One entry of the directory."""
    out = struct.pack("<HBBBBBB", len(name), dtype, coding, placed, parameter, len(dims), zero)
    out += struct.pack(f"<{len(dims)}I", *dims)
    if kept is not None:
        out += struct.pack("<Q", kept)
    if position_bytes is not None:
        out += struct.pack("<Q", position_bytes)
    return out + name


def blob(
    lines: Sequence[bytes] = (),
    body: bytes = b"",
    dense: int = 0,
    *,
    magic: bytes = b"EDPW",
    version: int = 2,
    kind: int = UPDATE,
    flags: int = 1,
    round_: int = 4,
    tensors: int | None = None,
    samples: int = 12,
    plan: bytes = PLAN,
    mask: bytes = bytes(8),
    client: bytes = b"device-1",
    kept: bytes = b"",
    meta: bytes = b"",
    zero: int = 0,
    crc: int | None = None,
) -> bytes:
    """A whole message."""
    directory = b"".join(lines)
    out = magic + struct.pack("<HBB", version, kind, flags)
    out += struct.pack("<IIQ", round_, len(lines) if tensors is None else tensors, samples) + plan + mask
    out += struct.pack("<QQIIIHH", dense, len(body), len(directory), len(kept), len(meta), len(client), zero)
    out += client + kept + meta + directory + body
    return out + struct.pack("<I", zlib.crc32(out) if crc is None else crc)


def floats(*values: float) -> bytes:
    """Little-endian float32."""
    return struct.pack(f"<{len(values)}f", *values)


def bits(text: str) -> bytes:
    """``"1010"``, first element first, as a bitmap."""
    padded = text + "0" * (-len(text) % 8)
    return bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))
