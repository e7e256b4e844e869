"""Where kept values belong: a mask as the shortest of five codings, and back from bytes that nobody vouches for.

A mask is a uint8 tensor of ceil(n / 8) bytes, bit i of byte i // 8 is element i, spare bits zero.

    bitmap   the mask itself
    gaps     Golomb-Rice over the gaps between kept positions (ops.encode_gaps): masks without structure
    runs     the same over the lengths of dropped and of kept runs: clustered masks
    zstd     the bitmap as one zstandard frame: masks that repeat themselves
    units    any of the first three of a coarser mask: whole rows, channels, filters
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError
from edgeprune.wire.layout import ALL, BITMAP, GAPS, KNOWN, RUNS, UNITS, ZSTD, Cursor, refused

# Changing the level changes bytes, not meaning. 3 is zstandard's own default.
ZSTD_LEVEL = 3
# A window beyond 8 MiB would be memory that no length in the message accounts for.
ZSTD_WINDOW = 1 << 23
_SAMPLE = 1 << 15
_RUNS_HEAD = struct.Struct("<QQB")  # runs, bytes of the first stream, parameter of the second
_UNITS_HEAD = struct.Struct("<IBB")  # elements of a unit, coding of the coarse mask, its parameter
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Positions:
    """One tensor's positions as they stand in a message: ``code`` of layout.py, Rice ``parameter``, ``data``."""

    code: int
    parameter: int
    data: bytes


def bitmap_bytes(n: int) -> int:
    """Length of a mask of ``n`` elements."""
    return (n + 7) // 8


def to_bitmap(kept: Tensor) -> Tensor:
    """The mask of a bool tensor, taken flat (True: kept)."""
    bits = np.packbits(kept.detach().reshape(-1).cpu().numpy(), bitorder="little")
    return torch.from_numpy(bits)


def from_bitmap(mask: Tensor, n: int) -> Tensor:
    """The bool tensor [n] of a mask."""
    return torch.from_numpy(np.unpackbits(mask.numpy(), count=n, bitorder="little").view(np.bool_))


def check_bitmap(mask: Tensor, n: int, name: str) -> int:
    """The number of kept elements; EdgePruneError unless the mask is one of ``n`` elements."""
    if mask.dtype is not torch.uint8 or mask.dim() != 1 or mask.numel() != bitmap_bytes(n):
        raise EdgePruneError(
            f"wire: the mask of {name!r} must be {bitmap_bytes(n)} bytes for {n} elements, not {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    if n % 8 and int(mask[-1]) >> (n % 8):
        raise EdgePruneError(f"wire: the mask of {name!r} keeps an element beyond its {n}")
    return count(mask.numpy())


def count(mask: npt.NDArray[np.uint8]) -> int:
    """The number of set bits."""
    return int(_ONES[mask].sum(dtype=np.int64))


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(mask: Tensor, n: int, kept: int) -> Positions:
    """The shortest coding of a mask of ``n`` elements of which ``kept`` are set; ties go to the lower code."""
    if kept == n:
        return Positions(ALL, 0, b"")
    return _shortest(mask, n, kept, whole=True)


def _shortest(mask: Tensor, n: int, kept: int, whole: bool) -> Positions:
    """``whole``: not the coarse mask of units, so zstandard and units may be used."""
    bits = mask.numpy()
    found = [Positions(BITMAP, 0, b"")]  # its bytes are made only if it wins
    sizes = [len(bits)]

    def offer(one: Positions) -> None:
        found.append(one)
        sizes.append(len(one.data))

    if 2 * kept <= n:
        offer(_gaps(mask, n))
    runs = _run_count(bits)
    # In a mask without structure every kept element begins a run unless its neighbour is kept too.
    if 2 * kept > n or runs < 0.75 * kept * (n - kept) / n:
        edges = np.diff(np.unpackbits(bits, count=n, bitorder="little").view(np.int8), prepend=0, append=0)
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        offer(_runs(starts, ends, n, kept))
        unit = int(np.gcd.reduce(np.concatenate([starts, ends, [n]])))
        if whole and 1 < unit < 1 << 32 and kept:
            offer(_units(mask, n, kept, unit))
    sample = bits[:_SAMPLE]
    if whole and len(_compressed(sample)) * len(bits) < 0.95 * min(sizes) * len(sample):
        offer(Positions(ZSTD, 0, _compressed(bits)))
    best = found[min(range(len(found)), key=lambda i: (sizes[i], found[i].code))]
    return Positions(BITMAP, 0, bits.tobytes()) if best.code == BITMAP else best


def _gaps(mask: Tensor, n: int) -> Positions:
    data, parameter = ops.encode_gaps(mask, n)
    return Positions(GAPS, parameter, data.numpy().tobytes())


def _units(mask: Tensor, n: int, kept: int, unit: int) -> Positions:
    coarse = to_bitmap(from_bitmap(mask, n)[::unit])
    inner = _shortest(coarse, n // unit, kept // unit, whole=False)
    return Positions(UNITS, 0, _UNITS_HEAD.pack(unit, inner.code, inner.parameter) + inner.data)


def _runs(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], n: int, kept: int) -> Positions:
    """Runs of kept elements. With a_j the dropped elements before run j, b_j the kept ones up to its end: both strictly
    increasing, so each is a mask itself: {a_j} of n - kept + 1 elements, {b_j - 1} of kept elements."""
    kept_until = np.cumsum(ends - starts)
    dropped_before = starts - np.append(0, kept_until[:-1])[: len(starts)]
    first = _gaps(ops.mask_from_indices(torch.from_numpy(dropped_before), n - kept + 1), n - kept + 1)
    second = _gaps(ops.mask_from_indices(torch.from_numpy(kept_until - 1), kept), kept)
    head = _RUNS_HEAD.pack(len(starts), len(first.data), second.parameter)
    return Positions(RUNS, first.parameter, head + first.data + second.data)


def _run_count(bits: npt.NDArray[np.uint8]) -> int:
    before = np.left_shift(bits, 1)
    before[1:] |= bits[:-1] >> 7
    return count(bits & ~before)


def _compressed(bits: npt.NDArray[np.uint8]) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compress(bits.tobytes())


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(code: int, parameter: int, data: memoryview, n: int, kept: int, name: str) -> Tensor:
    """The mask of ``n`` elements, exactly ``kept`` of them set (``kept`` <= ``n`` was checked, ``n`` is within limits).

    Not for "all" and "known", which bring no bytes. Raises EdgePruneError; allocates at most 24 bytes an element.
    """
    if parameter and code not in (GAPS, RUNS):
        raise refused(f"tensor {name!r} has a parameter where none belongs")
    if code == BITMAP:
        mask = _bitmap(data, n, name)
    elif code == GAPS:
        mask = _read_gaps(data, kept, n, parameter, name)
    elif code == RUNS:
        mask = _read_runs(data, n, kept, parameter, name)
    elif code == ZSTD:
        mask = _bitmap(memoryview(_decompressed(data, bitmap_bytes(n), name)), n, name)
    elif code == UNITS:
        mask = _read_units(data, n, kept, name)
    else:
        assert code not in (ALL, KNOWN)
        raise refused(f"tensor {name!r} has positions of unknown coding {code}")
    if code in (BITMAP, ZSTD) and count(mask.numpy()) != kept:
        raise refused(f"tensor {name!r} says it keeps {kept} elements, its mask keeps {count(mask.numpy())}")
    return mask


def _bitmap(data: memoryview, n: int, name: str) -> Tensor:
    if len(data) != bitmap_bytes(n):
        raise refused(f"tensor {name!r} has a mask of {len(data)} bytes, its {n} elements need {bitmap_bytes(n)}")
    if n % 8 and data[-1] >> (n % 8):
        raise refused(f"the mask of tensor {name!r} keeps an element beyond its {n}")
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _read_gaps(data: memoryview, kept: int, n: int, parameter: int, name: str) -> Tensor:
    try:
        return ops.decode_gaps(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), kept, n, parameter)
    except EdgePruneError as error:
        raise EdgePruneError(f"wire: the positions of tensor {name!r} cannot be read ({error})") from None


def _read_runs(data: memoryview, n: int, kept: int, parameter: int, name: str) -> Tensor:
    cursor = Cursor(data, f"run lengths of tensor {name!r}")
    runs, first, second_parameter = cursor.unpack(_RUNS_HEAD)
    if runs > min(kept, n - kept + 1) or (kept and not runs):
        raise refused(f"tensor {name!r} speaks of {runs} runs of {kept} kept elements among {n}")
    a = _read_gaps(cursor.take(first), runs, n - kept + 1, parameter, name)
    b = _read_gaps(cursor.take(cursor.left), runs, kept, second_parameter, name)
    dropped_before = ops.mask_to_indices(a, n - kept + 1).numpy()
    kept_until = ops.mask_to_indices(b, kept).numpy() + 1
    if runs and kept_until[-1] != kept:
        raise refused(f"the runs of tensor {name!r} keep {kept_until[-1]} elements, it says {kept}")
    edges = np.zeros(n + 1, np.int8)
    edges[dropped_before + kept_until] = -1
    dropped_before[1:] += kept_until[:-1]  # now the start of each run
    edges[dropped_before] = 1
    bits = np.cumsum(edges[:-1], dtype=np.int8, out=edges[:-1]).view(np.uint8)
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def _read_units(data: memoryview, n: int, kept: int, name: str) -> Tensor:
    cursor = Cursor(data, f"units of tensor {name!r}")
    unit, code, parameter = cursor.unpack(_UNITS_HEAD)
    if unit < 2 or n % unit or kept % unit or code not in (BITMAP, GAPS, RUNS):
        raise refused(f"tensor {name!r} keeps {kept} of {n} elements in units of {unit}, coded {code}")
    coarse = decode(code, parameter, cursor.take(cursor.left), n // unit, kept // unit, name)
    bits = np.unpackbits(coarse.numpy(), count=n // unit, bitorder="little")
    return torch.from_numpy(np.packbits(np.repeat(bits, unit), bitorder="little"))


def _decompressed(data: memoryview, size: int, name: str) -> bytes:
    """One frame of exactly ``size`` bytes. The frame's own header is read first: zstandard allocates what it says."""
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != size or frame.window_size > max(ZSTD_WINDOW, size) or frame.dict_id:
            raise refused(
                f"the compressed mask of tensor {name!r} unpacks to {frame.content_size} bytes with a window of "
                f"{frame.window_size}, {size} are due"
            )
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise refused(f"the compressed mask of tensor {name!r} cannot be read ({error})") from None
    if len(out) != size:
        raise refused(f"the compressed mask of tensor {name!r} unpacks to {len(out)} bytes, {size} are due")
    return out
