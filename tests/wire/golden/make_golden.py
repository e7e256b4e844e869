"""Messages whose bytes are put together by hand from format.md: what this version wrote it must always read.

    python tests/wire/golden/make_golden.py      writes NAME.bin beside this file

A test compares the files with this script, reads them, and writes them again byte for byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from craft import (  # noqa: E402
    ALL,
    AS_BF16,
    AS_F16,
    AS_F32,
    AS_I8,
    ASSIGNMENT,
    BF16,
    BITMAP,
    BOOL,
    CALIBRATE,
    F16,
    F32,
    F64,
    GAPS,
    I8,
    I16,
    I32,
    I64,
    KNOWN,
    RUNS,
    STATE,
    STATISTICS,
    U8,
    UNITS,
    UPDATE,
    bits,
    blob,
    floats,
    line,
)

from edgeprune.wire import Message, mask_id, pack_tensor, to_bitmap  # noqa: E402

RUN_PARAMETERS = (6, 8)
PLAN = "0123456789abcdef"


def rice(values: list[int], parameter: int) -> bytes:
    """Golomb-Rice: value >> parameter zeros, a one, then the low bits, lowest first; filled with zeros."""
    text = "".join("0" * (v >> parameter) + "1" + "".join(str(v >> i & 1) for i in range(parameter)) for v in values)
    return bits(text)


def only(x: torch.Tensor, kept: torch.Tensor, **options: object) -> Message:
    """One tensor "w" of which ``kept`` travels."""
    return Message("state", 0, "", "", {}, packed={"w": pack_tensor(x, to_bitmap(kept), **options)})  # type: ignore


def at(n: int, *kept: int) -> torch.Tensor:
    """A bool tensor [n], true at these positions."""
    out = torch.zeros(n, dtype=torch.bool)
    out[list(kept)] = True
    return out


def one(placed: int, data: bytes, values: bytes, n: int, kept: int, **fields: int) -> bytes:
    """The blob of :func:`only`."""
    entry = line(dims=(n,), placed=placed, kept=kept, position_bytes=len(data), **fields)  # type: ignore[arg-type]
    return blob([entry], data + values, 4 * n, kind=STATE, flags=0, round_=0, samples=0, plan=bytes(8), client=b"")


def plain_state(lines: list[bytes], body: bytes, dense: int) -> bytes:
    """A state of whole tensors."""
    return blob(lines, body, dense, kind=STATE, flags=0, round_=0, samples=0, plan=bytes(8), client=b"")


def make() -> dict[str, tuple[Message, bytes]]:
    """name -> (message, its bytes by hand)."""
    two = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor(7)}
    lines, body = [line(b"a", (), I64), line(b"b", (2,))], (7).to_bytes(8, "little") + floats(1.5, -2)
    recipe = b'{"recipe":{"lr":0.1},"seed":5}'
    types = {
        "bf16": torch.tensor([1.0], dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "f16": torch.tensor([1.0], dtype=torch.float16),
        "f32": torch.tensor([[1.0], [float("-inf")]]),
        "f64": torch.tensor([1.0], dtype=torch.float64),
        "i16": torch.tensor([-2], dtype=torch.int16),
        "i32": torch.tensor([-2], dtype=torch.int32),
        "i8": torch.tensor([-2], dtype=torch.int8),
        "none": torch.empty(0, 3),
        "u8": torch.tensor([254], dtype=torch.uint8),
    }
    type_lines = [
        line(b"bf16", (1,), BF16),
        line(b"bool", (2,), BOOL),
        line(b"f16", (1,), F16),
        line(b"f32", (2, 1), F32),
        line(b"f64", (1,), F64),
        line(b"i16", (1,), I16),
        line(b"i32", (1,), I32),
        line(b"i8", (1,), I8),
        line(b"none", (0, 3), F32),
        line(b"u8", (1,), U8),
    ]
    type_body = b"\x80\x3f\1\0\0\x3c" + floats(1) + b"\0\0\x80\xff" + b"\0\0\0\0\0\0\xf0\x3f"
    type_body += b"\xfe\xff\xfe\xff\xff\xff\xfe\xfe"
    x = torch.arange(1.0, 65.0)
    narrow = torch.tensor([1.0, -2.0, 127.0])
    codings = {
        "bf16": pack_tensor(narrow, dtype="bf16"),
        "f16": pack_tensor(narrow, dtype="fp16"),
        "f32": pack_tensor(narrow.double(), dtype="fp32"),
        "i8": pack_tensor(narrow, dtype="int8"),
    }
    coding_lines = [
        line(b"bf16", (3,), F32, AS_BF16),
        line(b"f16", (3,), F32, AS_F16),
        line(b"f32", (3,), F64, AS_F32),
        line(b"i8", (3,), F32, AS_I8),
    ]
    coding_body = b"\x80\x3f\0\xc0\xfe\x42" + b"\0\x3c\0\xc0\xf0\x57" + floats(1, -2, 127) + floats(1) + b"\1\xfe\x7f"
    known = {"w": to_bitmap(at(9, 0, 8))}
    # Kept 8..519 and 700..1023: 8 dropped before the first run, 188 before the second; 512 and 836 kept to their ends.
    y, runs = torch.arange(1024.0), at(1024, *range(8, 520), *range(700, 1024))
    streams = rice([8, 179], RUN_PARAMETERS[0]), rice([511, 323], RUN_PARAMETERS[1])
    head = (2).to_bytes(8, "little") + len(streams[0]).to_bytes(8, "little") + bytes(RUN_PARAMETERS[1:])
    return {
        "state": (Message("state", 0, "", "", two), plain_state(lines, body, 16)),
        "assignment": (
            Message("assignment", 3, "device-1", PLAN, two, {"seed": 5, "recipe": {"lr": 0.1}}, kept=b"\x0f\x01"),
            blob(lines, body, 16, kind=ASSIGNMENT, round_=3, samples=0, kept=b"\x0f\1", meta=recipe),
        ),
        "update": (
            Message("update", 4, "device-1", PLAN, two, {"loss": 0.25}, samples=12),
            blob(lines, body, 16, kind=UPDATE, meta=b'{"loss":0.25}'),
        ),
        "calibrate": (
            Message("calibrate", 4, "device-1", PLAN, two, {"batch_size": 32, "first": True}),
            blob(lines, body, 16, kind=CALIBRATE, samples=0, meta=b'{"batch_size":32,"first":true}'),
        ),
        "statistics": (
            Message("statistics", 4, "device-1", PLAN, {"bn.running_var": torch.ones(2)}, samples=12),
            blob([line(b"bn.running_var", (2,))], floats(1, 1), 8, kind=STATISTICS),
        ),
        "types": (Message("state", 0, "", "", types), plain_state(type_lines, type_body, 30)),
        "codings": (Message("state", 0, "", "", {}, packed=codings), plain_state(coding_lines, coding_body, 60)),
        "bitmap": (
            only(x[:9], at(9, 0, 2, 5, 8)),
            one(BITMAP, bits("101001001"), floats(1, 3, 6, 9), 9, 4),
        ),
        "gaps": (
            only(x, at(64, 3, 21, 60)),
            one(GAPS, rice([3, 17, 38], 3), floats(4, 22, 61), 64, 3, parameter=3),
        ),
        "runs": (
            only(y, runs),
            one(
                RUNS,
                head + b"".join(streams),
                floats(*y[runs].tolist()),
                1024,
                836,
                parameter=RUN_PARAMETERS[0],
            ),
        ),
        # Units of 24: numbers 1, 2 and 9 of 40.
        "units": (
            only(y[:960], at(40, 1, 2, 9).repeat_interleave(24)),
            one(
                UNITS,
                b"\x18\0\0\0" + bytes([GAPS, 1]) + rice([1, 0, 6], 1),
                floats(*range(24, 72), *range(216, 240)),
                960,
                72,
            ),
        ),
        "known": (
            Message(
                "update",
                4,
                "device-1",
                PLAN,
                {},
                samples=12,
                mask=mask_id(known),
                packed={"w": pack_tensor(x[:9], known["w"], known=True)},
            ),
            blob(
                [line(dims=(9,), placed=KNOWN, kept=2)], floats(1, 9), 36, flags=3, mask=bytes.fromhex(mask_id(known))
            ),
        ),
        "nothing-kept": (only(x[:5], at(5)), one(GAPS, b"", b"", 5, 0)),
        "everything-kept": (
            only(x[:3], at(3, 0, 1, 2)),
            plain_state([line(dims=(3,), placed=ALL)], floats(1, 2, 3), 12),
        ),
    }


if __name__ == "__main__":
    for name, (_, data) in make().items():
        (HERE / f"{name}.bin").write_bytes(data)
