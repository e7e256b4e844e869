"""The packing operators in plain numpy: slow, and plain enough to need no test of its own.

Same names, shapes and results, bit for bit, as ``edgeprune.ops.packing`` (which documents them). Arguments are checked
where they are used; the sentences may differ from the core's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.errors import EdgePruneError
from edgeprune.ops.packing_types import ITEM_BYTES, SCALE_BLOCK, Packed, bits_of, check_dtype, mask_bytes

INFINITY = 0x7F800000  # magnitude bits above are NaN
MASK64 = (1 << 64) - 1


# ---- masks ----------------------------------------------------------------------------------------------------------


def kept_of(mask: Tensor | None, n: int, op: str) -> NDArray[np.bool_]:
    """bool [n]; refuses masks of another length and ones that keep what does not exist."""
    if mask is None:
        return np.ones(n, np.bool_)
    if mask.dtype is not torch.uint8 or mask.numel() != mask_bytes(n):
        raise EdgePruneError(f"{op}: a mask of {n} elements is {mask_bytes(n)} bytes (uint8), not {mask.numel()}")
    bits = np.unpackbits(mask.numpy().reshape(-1), bitorder="little")
    if bits[n:].any():
        raise EdgePruneError(f"{op}: the mask has bits set beyond its {n} elements; clear them")
    return bits[:n].astype(np.bool_)


def mask_of(kept: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.packbits(kept, bitorder="little"))


def mask_count(mask: Tensor) -> int:
    return int(np.unpackbits(mask.numpy()).sum())


def mask_to_indices(mask: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.flatnonzero(kept_of(mask, n, "mask_to_indices")).astype(np.int64))


def mask_from_indices(indices: Tensor, n: int) -> Tensor:
    where = indices.numpy()
    if where.size and (where.min() < 0 or where.max() >= n):
        raise EdgePruneError(f"mask_from_indices: an index lies outside 0..{n - 1}")
    kept = np.zeros(n, np.bool_)
    kept[where] = True
    return mask_of(kept)


# ---- selection ------------------------------------------------------------------------------------------------------


def flat(x: Tensor) -> NDArray[np.float32]:
    return x.detach().reshape(-1).numpy()


def magnitudes(xs: Sequence[Tensor], op: str) -> list[NDArray[np.uint32]]:
    keys = [flat(x).view(np.uint32) & np.uint32(0x7FFFFFFF) for x in xs]
    for i, key in enumerate(keys):
        if (key > INFINITY).any():
            raise EdgePruneError(f"{op}: tensor {i} holds NaN, which has no magnitude; find out where it comes from")
    return keys


def select_largest(xs: Sequence[Tensor], k: int) -> list[Tensor]:
    keys = magnitudes(xs, "select_largest")
    total = sum(key.size for key in keys)
    if not 0 <= k <= total:
        raise EdgePruneError(f"select_largest: k is {k}, which is outside 0..{total}")
    every = np.concatenate([*keys, np.empty(0, np.uint32)]).astype(np.int64)
    kept = np.zeros(total, np.bool_)
    kept[np.argsort(-every, kind="stable")[:k]] = True
    ends = np.cumsum([0, *(key.size for key in keys)])[1:-1]
    return [mask_of(part) for part in np.split(kept, ends)][: len(keys)]


def select_above(xs: Sequence[Tensor], threshold: float) -> list[Tensor]:
    magnitudes(xs, "select_above")
    if threshold != threshold:
        raise EdgePruneError("select_above: the threshold is NaN; give a number")
    return [mask_of(np.abs(flat(x)).astype(np.float64) >= threshold) for x in xs]


# ---- conversion -----------------------------------------------------------------------------------------------------


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform(seed: int, first: int, count: int) -> NDArray[np.float32]:
    """One number in [0, 1), a multiple of 2^-24, for each of ``count`` kept values from number ``first`` on."""
    z = (seed + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    z ^= z >> 31
    number = np.arange(first, first + count, dtype=np.uint64)
    low, high = number.astype(np.uint32), (number >> np.uint64(32)).astype(np.uint32)
    x = _mix(low ^ np.uint32(z & 0xFFFFFFFF))
    x = _mix(x ^ (high + np.uint32(z >> 32)))
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _to_bf16(v: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = v.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(v), (bits >> np.uint64(16)) | np.uint64(0x40), rounded).astype(np.uint16)


def _to_f16(v: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = v.view(np.uint32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        half = v.astype(np.float16).view(np.uint16)
    nan = (bits >> np.uint32(16)) & np.uint32(0x8000) | np.uint32(0x7E00) | (bits >> np.uint32(13)) & np.uint32(0x3FF)
    return np.where(np.isnan(v), nan, half).astype(np.uint16)


def encode_values(v: NDArray[np.float32], dtype: str, seed: int | None) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """(values as they travel, scales)."""
    no_scales = np.empty(0, np.float32)
    if dtype == "f32":
        return v, no_scales
    if dtype == "bf16":
        return _to_bf16(v), no_scales
    if dtype == "f16":
        return _to_f16(v), no_scales
    if not np.isfinite(v).all():
        raise EdgePruneError("pack: a kept value is not finite, which int8 cannot hold; use f32, or find out why")
    starts = np.arange(0, v.size, SCALE_BLOCK)
    scales = (np.maximum.reduceat(np.abs(v), starts) if v.size else no_scales) / np.float32(127)
    scale = np.repeat(scales, SCALE_BLOCK)[: v.size]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t = np.clip(np.where(scale > 0, v / scale, np.float32(0)), np.float32(-127), np.float32(127))
    if seed is None:
        return np.rint(t).astype(np.int8), scales
    low = np.floor(t)
    return (low + (uniform(seed, 0, v.size) < t - low)).astype(np.int8), scales


def decode_values(raw: NDArray[Any], scales: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    if dtype == "f32":
        return raw
    if dtype == "bf16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "f16":
        wide = raw.view(np.float16).astype(np.float32).view(np.uint32)
        nan = (raw & 0x7FFF) > 0x7C00
        payload = ((raw.astype(np.uint32) & 0x8000) << 16) | 0x7FC00000 | ((raw.astype(np.uint32) & 0x3FF) << 13)
        return np.where(nan, payload.astype(np.uint32), wide).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32) * np.repeat(scales, SCALE_BLOCK)[: raw.size]


_RAW = {"f32": np.float32, "bf16": np.uint16, "f16": np.uint16, "i8": np.int8}


def read_values(op: str, values: Tensor, scales: Tensor | None, kept: int, dtype: str) -> NDArray[np.float32]:
    check_dtype(op, dtype)
    due = kept * ITEM_BYTES[dtype]
    if values.dtype is not torch.uint8 or values.numel() != due:
        raise EdgePruneError(f"{op}: {values.numel()} bytes of values, but {kept} kept elements in {dtype} are {due}")
    blocks = -(-kept // SCALE_BLOCK) if dtype == "i8" else 0
    if (0 if scales is None else scales.numel()) != blocks:
        raise EdgePruneError(
            f"{op}: {0 if scales is None else scales.numel()} scales, but {kept} kept elements in {dtype} need {blocks}"
        )
    raw = np.frombuffer(values.numpy().tobytes(), _RAW[dtype])
    return decode_values(raw, np.empty(0, np.float32) if scales is None else scales.numpy(), dtype)


# ---- pack, unpack, accumulate ---------------------------------------------------------------------------------------


def pack(x: Tensor, mask: Tensor | None, dtype: str = "f32", seed: int | None = None) -> Packed:
    check_dtype("pack", dtype)
    v = flat(x)
    raw, scales = encode_values(v[kept_of(mask, v.size, "pack")], dtype, seed)
    values = torch.from_numpy(np.frombuffer(raw.tobytes(), np.uint8).copy())
    return Packed(values, torch.from_numpy(scales.copy()) if dtype == "i8" else None)


def unpack(values: Tensor, scales: Tensor | None, mask: Tensor | None, n: int, dtype: str) -> Tensor:
    kept = kept_of(mask, n, "unpack")
    out = np.zeros(n, np.float32)
    out[kept] = read_values("unpack", values, scales, int(kept.sum()), dtype)
    return torch.from_numpy(out)


def accumulate_(
    total: Tensor,
    weight_sum: Tensor,
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    dtype: str,
    weight: float,
) -> None:
    sums, weights = flat(total), flat(weight_sum)
    if sums.size != weights.size:
        raise EdgePruneError(
            f"accumulate_: total has {sums.size} elements and weight_sum {weights.size}; make them one"
        )
    kept = kept_of(mask, sums.size, "accumulate_")
    w = np.float32(weight)
    with np.errstate(over="ignore", invalid="ignore"):
        sums[kept] += w * read_values("accumulate_", values, scales, int(kept.sum()), dtype)
        weights[kept] += w


def pack_with_feedback_(
    x: Tensor, residual: Tensor, mask_or_k: Tensor | int | None, dtype: str = "f32", seed: int | None = None
) -> tuple[Tensor | None, Packed]:
    masks, packed = pack_with_feedback_many_(
        [x], [residual], mask_or_k if isinstance(mask_or_k, int) else [mask_or_k], dtype, seed
    )
    return masks[0], packed[0]


def pack_with_feedback_many_(
    xs: Sequence[Tensor],
    residuals: Sequence[Tensor],
    masks_or_k: Sequence[Tensor | None] | int,
    dtype: str = "f32",
    seed: int | None = None,
) -> tuple[list[Tensor | None], list[Packed]]:
    op = "pack_with_feedback_"
    check_dtype(op, dtype)
    for x, residual in zip(xs, residuals, strict=True):
        if x.numel() != residual.numel():
            raise EdgePruneError(f"{op}: x has {x.numel()} elements and residual {residual.numel()}; make them one")
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [torch.from_numpy(flat(x) + flat(residual)) for x, residual in zip(xs, residuals, strict=True)]
    masks: list[Tensor | None]
    masks = [*select_largest(sums, masks_or_k)] if isinstance(masks_or_k, int) else list(masks_or_k)
    packed = []
    for i, (v, residual, mask) in enumerate(zip(sums, residuals, masks, strict=True)):
        packed.append(pack(v, mask, dtype, None if seed is None else seed + i))
        kept = kept_of(mask, v.numel(), op)
        sent = read_values(op, *packed[-1], int(kept.sum()), dtype)
        if not np.isfinite(sent).all():
            advice = "find out where it comes from" if dtype == "f32" else "use f32, or find out where it comes from"
            raise EdgePruneError(f"{op}: a kept value of tensor {i} is not finite in {dtype}; {advice}")
        rest = v.numpy()
        rest[kept] -= sent
        flat(residual)[:] = rest
    return masks, packed


# ---- gaps -----------------------------------------------------------------------------------------------------------

_BYTE_CODE = 32  # the parameter that stands for the code over bytes
_LENGTHS = (6, 6, 7, 8, 8, 9, 10, 10, 10)  # bits for a byte with 0, 1, ... 8 bits set
_MAX_PARAMETER = 30


def _byte_codes() -> list[tuple[int, int]]:
    """(code, length) for each byte: canonical, in order of (length, byte), most significant bit first."""
    lengths = [_LENGTHS[bin(byte).count("1")] for byte in range(256)]
    codes, code, before = [(0, 0)] * 256, 0, 0
    for length, byte in sorted((length, byte) for byte, length in enumerate(lengths)):
        code = (code << (length - before)) if before else 0
        codes[byte] = (code, length)
        code, before = code + 1, length
    return codes


def encode_gaps(mask: Tensor, n: int) -> tuple[Tensor, int]:
    kept = kept_of(mask, n, "encode_gaps")
    where = np.flatnonzero(kept)
    if not where.size:
        return torch.empty(0, dtype=torch.uint8), 0
    gaps = np.diff(where, prepend=-1) - 1
    sizes = [where.size * (1 + p) + int((gaps >> p).sum()) for p in range(_MAX_PARAMETER + 1)]
    parameter = int(np.argmin(sizes))
    lengths = [_LENGTHS[bin(byte).count("1")] for byte in mask.tolist()]
    stream: list[NDArray[np.uint8]] = []
    if sum(lengths) < sizes[parameter]:
        parameter = _BYTE_CODE
        codes = _byte_codes()
        for byte in mask.tolist():
            code, length = codes[byte]
            stream.append(np.array([code >> (length - 1 - i) & 1 for i in range(length)], np.uint8))
    else:
        # All quotients and remainders at once: a code is q zeros, a one, and the remainder, lowest bit first.
        quotients = gaps >> parameter
        ends = np.cumsum(quotients + 1 + parameter)
        bits = np.zeros(int(ends[-1]), np.uint8)
        bits[ends - parameter - 1] = 1
        for i in range(parameter):
            bits[ends - parameter + i] = gaps >> i & 1
        stream.append(bits)
    return torch.from_numpy(np.packbits(np.concatenate(stream), bitorder="little")), parameter


def decode_gaps(data: Tensor, count: int, n: int, parameter: int) -> Tensor:
    op = "decode_gaps"
    if not 0 <= parameter <= _MAX_PARAMETER and parameter != _BYTE_CODE:
        raise EdgePruneError(f"{op}: parameter {parameter} is unknown; 0..{_MAX_PARAMETER} and {_BYTE_CODE} are known")
    if not 0 <= count <= n:
        raise EdgePruneError(f"{op}: {count} kept elements among {n} cannot be; the message is damaged")
    bits = bits_of(data)
    at = 0
    kept = np.zeros(-(-n // 8) * 8, np.bool_)
    ended = EdgePruneError(f"{op}: the data end before {count} kept elements are read; the message is damaged")
    if parameter == _BYTE_CODE and count:
        known = {(length, code): byte for byte, (code, length) in enumerate(_byte_codes())}
        for i in range(mask_bytes(n)):
            code = length = 0
            while (length, code) not in known:
                if at == bits.size or length == 10:
                    raise ended
                code, length, at = code << 1 | int(bits[at]), length + 1, at + 1
            kept[8 * i : 8 * i + 8] = np.unpackbits(np.array([known[length, code]], np.uint8), bitorder="little")
    elif count:
        ones, next_one, position = np.flatnonzero(bits), 0, -1
        for _ in range(count):
            next_one = int(np.searchsorted(ones, at))
            if next_one == ones.size or ones[next_one] + 1 + parameter > bits.size:
                raise ended
            one = int(ones[next_one])
            low = bits[one + 1 : one + 1 + parameter]
            position += ((one - at) << parameter) + sum(int(bit) << i for i, bit in enumerate(low)) + 1
            if position >= n:
                raise EdgePruneError(f"{op}: a kept element lies at {position}, beyond {n}; the message is damaged")
            kept[position] = True
            at = one + 1 + parameter
    if int(kept.sum()) != count or kept[n:].any():
        raise EdgePruneError(f"{op}: the data do not keep {count} of {n} elements; the message is damaged")
    if bits.size - at >= 8 or bits[at:].any():
        raise EdgePruneError(f"{op}: bytes are left over after {count} kept elements; the message is damaged")
    return mask_of(kept[:n])
