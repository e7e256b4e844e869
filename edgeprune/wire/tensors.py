"""One tensor as it travels: which elements, in which coding, as bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, nearest, shown
from edgeprune.ops import memory
from edgeprune.wire import positions
from edgeprune.wire.layout import ALL, CODING_BYTES, DTYPE_CODES, KNOWN, SCALE_BLOCK

_NARROW = {  # coding -> its type, and what to do about a value that is beyond it
    "f32": (torch.float32, "float32; leave dtype out"),
    "bf16": (torch.bfloat16, "bfloat16; use fp32, or leave dtype out"),
    "f16": (torch.float16, "float16; use bf16 or fp32"),
}
_ALIASES = {"fp32": "f32", "fp16": "f16", "int8": "i8"}


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of ``shape`` and ``dtype`` of which the elements in ``mask`` (None: all) are held, the others are zero.

    ``values``: uint8, the kept elements in order, little-endian, in ``coding`` ("own": as ``dtype``; "f32", "bf16",
    "f16", "i8"). ``scales``: float32, one for each 256 kept values of "i8". ``mask``: uint8 bitmap, lowest bit first.
    ``known``: the receiver holds the mask, it does not travel.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    coding: str
    values: Tensor
    scales: Tensor | None
    mask: Tensor | None
    kept: int
    known: bool = False

    @cached_property
    def placed(self) -> positions.Positions:
        """How the positions travel; worked out once, however many messages carry this tensor."""
        if self.known:
            return positions.Positions(KNOWN, 0, b"")
        if self.mask is None:
            return positions.Positions(ALL, 0, b"")
        return positions.encode(self.mask, self.numel, self.kept)

    @property
    def numel(self) -> int:
        """Elements of the dense tensor."""
        return math.prod(self.shape)

    def tensor(self) -> Tensor:
        """The dense tensor, zero where nothing is held. Without mask and coding it shares the memory of ``values``."""
        if self.coding == "own" and (self.mask is None or self.dtype != torch.float32):
            return self._own().reshape(self.shape)
        coding = "f32" if self.coding == "own" else self.coding
        flat: Tensor = ops.unpack(self.values, self.scales, self.mask, self.numel, coding)
        return flat.to(self.dtype).reshape(self.shape)

    def _own(self) -> Tensor:
        values = self.values.view(self.dtype) if self.values.numel() else memory.empty(0, dtype=self.dtype)
        if self.mask is None:
            return values
        flat = memory.zeros(self.numel, dtype=self.dtype)
        flat[ops.mask_to_indices(self.mask, self.numel)] = values
        return flat


def coding_of(dtype: torch.dtype, wanted: str | None) -> str:
    """The coding of a tensor of ``dtype`` when ``wanted`` was asked for: never a wider one than its own."""
    if wanted is None:
        return "own"
    name = _ALIASES.get(wanted, wanted) if isinstance(wanted, str) else ""
    if name not in CODING_BYTES:
        known = nearest(str(wanted), [*_ALIASES, *CODING_BYTES])
        raise EdgePruneError(f"pack: dtype {shown(str(wanted))} is unknown{known}")
    if not dtype.is_floating_point or dtype.itemsize <= CODING_BYTES[name]:
        return "own"
    return name


def pack_tensor(
    x: Tensor,
    mask: Tensor | None = None,
    dtype: str | None = None,
    *,
    name: str = "tensor",
    known: bool = False,
    seed: int | None = None,
) -> PackedTensor:
    """``x`` (CPU) with the elements of the bitmap ``mask`` (None: all) in the coding ``dtype`` (None: its own).

    Integers and types as narrow as ``dtype`` stay as they are. ``seed``: stochastic rounding of int8, else to nearest.
    Raises EdgePruneError where a mask does not fit, a type cannot travel, or sent values do not fit ``dtype``.
    """
    if x.dtype not in DTYPE_CODES:
        raise EdgePruneError(f"pack: {name!r} has type {x.dtype}, which cannot travel; convert it first")
    coding = coding_of(x.dtype, dtype)
    n = x.numel()
    kept = n if mask is None else positions.check_bitmap(mask, n, name)
    if kept == n and not known:
        mask = None
    flat = x.detach().cpu().resolve_neg().contiguous().reshape(-1)
    values: Tensor
    scales: Tensor | None = None
    if coding == "own" and (mask is None or flat.dtype != torch.float32):
        held = flat if mask is None else flat[ops.mask_to_indices(mask, n)]
        values = held.view(torch.uint8) if held.numel() else memory.empty(0, dtype=torch.uint8)
    else:
        packed = written(flat, flat.float(), mask, "f32" if coding == "own" else coding, seed, name)
        values, scales = packed.values, packed.scales
    return PackedTensor(tuple(x.shape), x.dtype, coding, values, scales, mask, kept, known)


def written(
    own: Tensor, x: Tensor, mask: Tensor | None, coding: str, seed: int | None, name: str = "tensor"
) -> ops.Packed:
    """The kept elements of ``own`` (flat; ``x``: the same as float32) in ``coding``.

    Raises EdgePruneError where a finite one of them would turn into infinity, or int8 meets one that is not finite.
    """
    try:
        packed = ops.pack(x, mask, coding, seed)
    except EdgePruneError:
        if coding != "i8":
            raise
        why = "beyond float32" if all_finite(own) else "not finite"
        raise EdgePruneError(f"pack: {name!r} holds a value that is {why}; int8 cannot hold it") from None
    if coding != "i8" and own.dtype is not _NARROW[coding][0] and packed.values.numel():
        narrow, advice = _NARROW[coding]
        read = packed.values.view(narrow)
        if not all_finite(read):
            held = own if mask is None else own[ops.mask_to_indices(mask, own.numel())]
            lost = held[read.isinf() & held.isfinite()]
            if lost.numel():
                raise EdgePruneError(f"pack: {name!r} holds {float(lost.abs().max()):.4g}, beyond {advice}")
    return packed


def all_finite(x: Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity. (A sum is a pass without temporaries; only one that
    overflows must be looked into.)"""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def peak(x: Tensor) -> float:
    """The largest magnitude of a floating tensor, 0 of an empty one, NaN where there is one; in one pass."""
    if not x.numel():
        return 0.0
    low, high = (float(end) for end in x.detach().aminmax())
    return max(-low, high) if low == low else low


def value_bytes(dtype: torch.dtype, coding: str, kept: int) -> tuple[int, int]:
    """(bytes of the scales, bytes of the values) of ``kept`` elements."""
    if coding == "own":
        return 0, kept * dtype.itemsize
    scales = 4 * -(-kept // SCALE_BLOCK) if coding == "i8" else 0
    return scales, kept * CODING_BYTES[coding]


def to_bytes(x: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, little-endian, not copied."""
    if not x.numel():
        return memoryview(b"")
    return x.detach().reshape(-1).view(torch.uint8).numpy().data


def from_bytes(data: memoryview) -> Tensor:
    """A uint8 tensor in memory of its own."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()) if len(data) else memory.empty(0, dtype=torch.uint8)
