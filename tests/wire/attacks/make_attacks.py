"""Hostile messages, each with the sentence saying what it tries and the words it must be refused with.

    python tests/wire/attacks/make_attacks.py      writes NAME.bin beside this file

The files are committed: a test compares them with what stands here and decodes the files.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from craft import (  # noqa: E402
    ASSIGNMENT,
    BITMAP,
    BOOL,
    GAPS,
    I64,
    KNOWN,
    RUNS,
    UNITS,
    ZSTD,
    bits,
    blob,
    floats,
    line,
)

FOUR = floats(1, 2, 3, 4)
GOOD = blob([line()], FOUR, 16)


class Attack(NamedTuple):
    """``tries`` is for people; ``refused`` is part of the error's text."""

    blob: bytes
    tries: str
    refused: str


def masked(placed: int, data: bytes, kept: int, n: int, parameter: int = 0, dense: int | None = None) -> bytes:
    """One float32 tensor of ``n`` elements whose positions are ``data``."""
    one = line(dims=(n,), placed=placed, parameter=parameter, kept=kept, position_bytes=len(data))
    return blob([one], data + floats(*range(min(kept, 64))), 4 * n if dense is None else dense)


def zstd_frame(content: bytes, size_field: bytes, raw: bool = True, window: bytes = b"") -> bytes:
    """A zstandard frame by hand (RFC 8878): an 8-byte content size and one raw block, or one byte repeated."""
    descriptor = b"\xe0" if not window else b"\xc0"
    kind, length = (0, len(content)) if raw else (1, int.from_bytes(content[1:], "little"))
    block = ((length << 3) | (kind << 1) | 1).to_bytes(3, "little") + (content if raw else content[:1])
    return b"\x28\xb5\x2f\xfd" + descriptor + window + size_field + block


def lying(*parts: object, **lengths: int) -> bytes:
    """A message in which these lengths are not true."""
    honest = blob(*parts)  # type: ignore[arg-type]
    at = {"body": (48, 8), "directory": (56, 4), "kept": (60, 4), "meta": (64, 4), "client": (68, 2)}
    out = bytearray(honest[:-4])
    for name, value in lengths.items():
        start, width = at[name]
        out[start : start + width] = value.to_bytes(width, "little")
    return bytes(out) + zlib.crc32(out).to_bytes(4, "little")


def units(unit: int, code: int, inner: bytes, parameter: int = 0) -> bytes:
    """Positions in units."""
    return unit.to_bytes(4, "little") + bytes([code, parameter]) + inner


def size(n: int) -> bytes:
    """An 8-byte length."""
    return n.to_bytes(8, "little")


ATTACKS: dict[str, Attack] = {
    # --- header ---
    "empty": Attack(b"", "sends nothing at all", "too few"),
    "short-header": Attack(GOOD[:40], "stops within the header", "too few"),
    "cut": Attack(GOOD[:-9], "stops within the values", "truncated"),
    "appended": Attack(GOOD + b"more", "hides bytes behind the end", "appended"),
    "magic": Attack(blob(magic=b"PK\3\4"), "sends some other kind of file", "not those of an edgeprune message"),
    "version": Attack(blob(version=3), "speaks a version that does not exist yet", "version 3"),
    "kind": Attack(blob(kind=200), "names a kind that does not exist", "kind 200"),
    "other-kind": Attack(blob(kind=ASSIGNMENT), "sends the server an assignment", "expected a message of kind"),
    "flags": Attack(blob(flags=0x81), "sets flags that mean nothing yet", "reserved bits"),
    "reserved": Attack(blob(zero=7), "writes into the reserved field", "reserved bits"),
    "id-without-flag": Attack(blob(flags=0), "names a plan while its flags deny it", "flags deny"),
    "checksum": Attack(blob([line()], FOUR, 16, crc=1), "carries the wrong checksum", "checksum"),
    "flipped": Attack(GOOD[:-10] + bytes([GOOD[-10] ^ 1]) + GOOD[-9:], "has one bit of a value flipped", "checksum"),
    # --- lengths that lie ---
    "body-length": Attack(lying([line()], FOUR, 16, body=(1 << 64) - 1), "claims a body of 2^64 bytes", "truncated"),
    "directory-length": Attack(
        lying([line()], FOUR, 16, directory=(1 << 32) - 1), "claims 4 GiB of names", "truncated"
    ),
    "plan-length": Attack(lying([line()], FOUR, 16, kept=(1 << 32) - 1), "claims a plan of 4 GiB", "truncated"),
    "client-length": Attack(lying(client=9), "claims a longer client name than there is", "truncated"),
    "shifted": Attack(
        lying([line()], FOUR, 16, body=8, directory=21),
        "moves the border between directory and body, the sum still right",
        "body of 16 bytes|too many",
    ),
    "many-tensors": Attack(blob([line()], FOUR, 16, tensors=(1 << 32) - 1), "claims 2^32 tensors", "over the limits"),
    "more-tensors": Attack(blob([line()], FOUR, 16, tensors=1 << 17), "claims 131,072 tensors, has one", "where 0 are"),
    "fewer-tensors": Attack(blob([line()], FOUR, 16, tensors=0), "lists a tensor that it does not count", "too many"),
    "long-meta": Attack(blob(meta=b"[" * 70_000), "sends more JSON than anybody reads", "over the limits"),
    "dense-huge": Attack(blob([line()], FOUR, 1 << 62), "declares tensors of 4 EiB", "over the limit of"),
    "dense-lie": Attack(
        masked(GAPS, b"", 0, (1 << 32) - 1, dense=64),
        "declares 64 bytes of tensors and lists one of 16 GiB with nothing kept",
        "take 17179869180 bytes, the header says 64",
    ),
    "dims-overflow": Attack(
        blob([line(dims=((1 << 32) - 1,) * 16)], b"", 16), "has a shape whose product overflows", "the header says 16"
    ),
    "strides-overflow": Attack(
        blob([line(dims=(0, *((1 << 32) - 1,) * 2))]), "has an empty shape whose strides overflow", "beyond 2.63"
    ),
    "rank": Attack(blob([line(dims=(1,) * 255)], FOUR, 16), "has 255 dimensions", "255 dimensions"),
    "body-short": Attack(blob([line(dims=(8,))], FOUR, 32), "holds half of the values it lists", "body of 32 bytes"),
    "body-long": Attack(blob([line(dims=(2,))], FOUR, 8), "holds twice the values it lists", "body of 8 bytes"),
    # --- names ---
    "name-length": Attack(
        blob([b"\xff\x03" + line()[2:]], FOUR, 16), "has a name that runs past the directory", "where 1 are left"
    ),
    "name-utf8": Attack(blob([line(b"\xff\xfe")], FOUR, 16), "has a name that is not text", "not UTF-8"),
    "name-twice": Attack(blob([line(), line()], FOUR * 2, 32), "sends the same tensor twice", "named twice"),
    "name-order": Attack(blob([line(b"x"), line(b"w")], FOUR * 2, 32), "sends names out of order", "out of order"),
    "client-utf8": Attack(blob(client=b"\xc3("), "calls itself something that is not text", "not UTF-8"),
    # --- codes ---
    "type": Attack(blob([line(dtype=77)], FOUR, 16), "has values of an unknown type", "unknown type 77"),
    "coding": Attack(blob([line(coding=9)], FOUR, 16), "has values in an unknown coding", "coding 9"),
    "positions": Attack(blob([line(placed=9, kept=4, position_bytes=0)], FOUR, 16), "has unknown positions", "9"),
    "coding-of-integers": Attack(
        blob([line(dtype=I64, coding=4)], floats(1) + b"abcd", 32), "has int64 in int8 with scales", "cannot be in"
    ),
    "coding-wider": Attack(blob([line(coding=1)], FOUR, 16), "narrows float32 to float32", "cannot be in"),
    "entry-reserved": Attack(blob([line(zero=1)], FOUR, 16), "sets an entry's reserved byte", "reserved bits"),
    "parameter": Attack(blob([line(parameter=3)], FOUR, 16), "has a parameter without a coding", "none belongs"),
    "bitmap-parameter": Attack(masked(BITMAP, bits("1100"), 2, 4, 5), "gives a bitmap a parameter", "none belongs"),
    "truth": Attack(blob([line(dtype=BOOL, dims=(2,))], b"\1\2", 2), "has a truth value of 2", "truth value"),
    # --- positions ---
    "kept-too-many": Attack(masked(BITMAP, bits("1111"), 5, 4), "keeps 5 of 4 elements", "keeps 5 of 4"),
    "kept-lies": Attack(masked(BITMAP, bits("1100"), 3, 4), "says 3 are kept, its mask keeps 2", "its mask keeps 2"),
    "bitmap-short": Attack(masked(BITMAP, bits("11"), 2, 9), "has a mask shorter than its tensor", "need 2"),
    "bitmap-long": Attack(masked(BITMAP, bits("11") * 9, 2, 8), "has a mask longer than its tensor", "need 1"),
    "bitmap-beyond": Attack(masked(BITMAP, b"\x18", 2, 4), "keeps an element beyond the tensor", "beyond its 4"),
    "gaps-empty": Attack(masked(GAPS, b"", 3, 64), "promises 3 gaps and sends none", "the data end"),
    "gaps-cut": Attack(masked(GAPS, b"\xff\xff", 8, 64, 4), "stops within the gaps", "the data end"),
    "gaps-beyond": Attack(masked(GAPS, b"\xff" * 6, 3, 64, 7), "runs past the end of the tensor", "beyond the 64"),
    "gaps-endless": Attack(masked(GAPS, b"\xff" * 64, 2, 64), "hides 60 bytes behind two gaps", "left over"),
    "gaps-other-bit": Attack(masked(GAPS, b"\0" * 64, 2, 64), "has gaps that never end", "the data end"),
    "gaps-parameter": Attack(
        masked(GAPS, b"\x55" * 8, 2, 64, 255), "has gaps of 255 bits each", "parameter 255 is unknown"
    ),
    "gaps-trailing": Attack(masked(GAPS, bytes(range(40)), 1, 64, 2), "hides bytes behind the gaps", "left over"),
    "runs-head": Attack(masked(RUNS, b"\1\2\3", 2, 64), "has run lengths without their head", "3 are left"),
    "runs-many": Attack(
        masked(RUNS, size(1 << 63) + size(0) + b"\0", 2, 64), "promises 2^63 runs of 2 elements", "runs of 2 kept"
    ),
    "runs-none": Attack(masked(RUNS, size(0) + size(0) + b"\0", 2, 64), "keeps 2 elements in no run", "0 runs"),
    "runs-beyond": Attack(
        masked(RUNS, size(1) + size(1 << 60) + b"\0ab", 2, 64), "has a first stream longer than all", "are left"
    ),
    "runs-short": Attack(
        masked(RUNS, size(2) + size(1) + b"\0a", 5, 64), "has a second stream of nothing", "cannot be read"
    ),
    "units-zero": Attack(masked(UNITS, units(0, BITMAP, b"\1"), 8, 64), "has units of nothing", "in units of 0"),
    "units-one": Attack(masked(UNITS, units(1, BITMAP, b"\1" + b"\0" * 7), 1, 64), "has units of one", "units of 1"),
    "units-uneven": Attack(masked(UNITS, units(7, BITMAP, b"\1\0"), 7, 64), "has units that do not fit", "of 64 elem"),
    "units-kept": Attack(masked(UNITS, units(8, BITMAP, b"\1"), 9, 64), "keeps part of a unit", "keeps 9 of 64"),
    "units-huge": Attack(masked(UNITS, units((1 << 32) - 1, GAPS, b""), 0, 64), "has units of 2^32", "in units of 4"),
    "units-nested": Attack(
        masked(UNITS, units(2, UNITS, units(2, BITMAP, b"\1\0")), 4, 64), "has units of units", "coded 6"
    ),
    "units-zstd": Attack(masked(UNITS, units(8, ZSTD, b""), 8, 64), "compresses its units", "coded 5"),
    "units-lie": Attack(masked(UNITS, units(8, BITMAP, b"\7"), 8, 64), "keeps three units, says one", "mask keeps 3"),
    "units-short": Attack(masked(UNITS, b"\x08\0", 8, 64), "has units without their head", "2 are left"),
    # --- decompression ---
    "zstd-bomb": Attack(
        masked(ZSTD, zstd_frame(b"\xff" + size((1 << 17) - 1), size(1 << 40), raw=False), 2, 64),
        "has 20 bytes that say they unpack to 1 TiB",
        "unpacks to 1099511627776",
    ),
    "zstd-more-than-said": Attack(
        masked(ZSTD, zstd_frame(b"\xff" + size((1 << 17) - 1), size(8), raw=False), 64, 64),
        "says 8 bytes and unpacks to 128 KiB",
        "compressed mask",
    ),
    "zstd-less-than-said": Attack(masked(ZSTD, zstd_frame(b"\3", size(8)), 2, 64), "unpacks to too little", "compress"),
    "zstd-unknown-size": Attack(
        masked(ZSTD, b"\x28\xb5\x2f\xfd\x00\x00" + b"\x41\0\0" + bits("11" + "0" * 62), 2, 64),
        "does not say what it unpacks to",
        "8 are due",
    ),
    "zstd-window": Attack(
        masked(ZSTD, zstd_frame(bits("11" + "0" * 62), size(8), window=b"\xa0"), 2, 64),
        "asks for a window of 1 GiB to unpack 8 bytes",
        "with a window of",
    ),
    "zstd-garbage": Attack(masked(ZSTD, b"not a frame at all", 2, 64), "is no frame", "cannot be read"),
    "zstd-nothing": Attack(masked(ZSTD, b"", 2, 64), "has no frame", "cannot be read"),
    "zstd-two": Attack(
        masked(ZSTD, zstd_frame(bits("11" + "0" * 62), size(8)) * 2, 2, 64), "hides a second frame", "cannot be read"
    ),
    "byte-codes-many": Attack(masked(GAPS, bytes(64), 2, 64, 32), "has byte codes that keep nothing", "do not keep 2"),
    "byte-codes-cut": Attack(masked(GAPS, b"\xff", 2, 64, 32), "has byte codes that stop", "the data end"),
    "zstd-kept": Attack(masked(ZSTD, zstd_frame(b"\xff" * 8, size(8)), 2, 64), "unpacks to more kept", "keeps 64"),
    # --- masks and scales ---
    "known-unnamed": Attack(
        blob([line(placed=KNOWN, kept=2)], floats(1, 2), 16), "rests on a mask that nobody named", "(none named)"
    ),
    "known-parameter": Attack(
        blob([line(placed=KNOWN, kept=2, parameter=7)], floats(1, 2), 16, flags=3, mask=b"\7" * 8),
        "gives positions that both sides know a parameter",
        "none belongs",
    ),
    "known-other": Attack(
        blob([line(placed=KNOWN, kept=2)], floats(1, 2), 16, flags=3, mask=b"\7" * 8),
        "rests on a mask that is not held here",
        "0707070707070707",
    ),
    "scale-nan": Attack(blob([line(coding=4)], floats(float("nan")) + b"abcd", 16), "scales by NaN", "a scale that"),
    "scale-infinite": Attack(blob([line(coding=4)], floats(float("inf")) + b"abcd", 16), "scales by inf", "a scale"),
    "scale-negative": Attack(blob([line(coding=4)], floats(-1) + b"abcd", 16), "scales by -1", "a scale that is"),
    # --- JSON ---
    "json-deep": Attack(blob(meta=b"[" * 20_000), "nests 20,000 lists", "JSON cannot be read"),
    "json-list": Attack(blob(meta=b"[1,2]"), "sends a list for an object", "not an object"),
    "json-twice": Attack(blob(meta=b'{"loss":1.0,"loss":2.0}'), "gives a key twice", "a key twice"),
    "json-nan": Attack(blob(meta=b'{"loss":NaN}'), "reports a loss of NaN", "holds NaN"),
    "json-overflow": Attack(blob(meta=b'{"loss":1e999}'), "reports a loss beyond every float", "not finite"),
    "json-digits": Attack(blob(meta=b'{"steps":' + b"9" * 5_000 + b"}"), "has a number of 5,000 digits", "JSON"),
    "json-bytes": Attack(blob(meta=b'{"a":"\xff"}'), "has JSON that is not text", "JSON cannot be read"),
}

if __name__ == "__main__":
    for name, attack in ATTACKS.items():
        (HERE / f"{name}.bin").write_bytes(attack.blob)
    for stale in {path.stem for path in HERE.glob("*.bin")} - ATTACKS.keys():
        (HERE / f"{stale}.bin").unlink()
