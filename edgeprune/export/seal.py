"""A digest of an ONNX file in its own metadata: one bit changed, or another tool's hand, is noticed before it is run.

The entry ``edgeprune.file_sha256`` is the sha256, in hex digits, of the file's bytes with zeros in the place of these
digits. It needs neither onnx nor a runtime to be looked at.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgeprune.errors import EdgePruneError

KEY = "edgeprune.file_sha256"
BLANK = "0" * 64
_ENTRY = KEY.encode() + bytes((0x12, len(BLANK)))  # protobuf: the key, then the value's field and length


def seal(path: Path) -> str:
    """Put the digest in the place of ``BLANK``, which the file's metadata hold under ``KEY``; the digest."""
    held = bytearray(path.read_bytes())
    at = _place(held)
    if at is None or held[at : at + len(BLANK)] != BLANK.encode():
        raise EdgePruneError(f"export: {path.name} has no place for its digest; export it again")
    digest = hashlib.sha256(held).hexdigest()
    held[at : at + len(BLANK)] = digest.encode()
    path.write_bytes(held)
    return digest


def check(path: Path) -> None:
    """EdgePruneError for a file that is not as ``seal`` left it; one without a seal is not judged."""
    held = bytearray(path.read_bytes())
    at = _place(held)
    if at is None:
        return
    said = bytes(held[at : at + len(BLANK)])
    held[at : at + len(BLANK)] = BLANK.encode()
    if hashlib.sha256(held).hexdigest().encode() != said:
        raise EdgePruneError(
            f"{path}: not the bytes that edgeprune wrote: damaged, or changed by another tool; export it again, or "
            f"take {KEY!r} out of its metadata"
        )


def _place(held: bytearray) -> int | None:
    """Where the digits begin: behind the last such key, for metadata are at the end of a file."""
    found = held.rfind(_ENTRY)
    return None if found < 0 or found + len(_ENTRY) + len(BLANK) > len(held) else found + len(_ENTRY)
