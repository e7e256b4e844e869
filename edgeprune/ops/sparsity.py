"""The compiled form of a mask: ``SparsityPattern``, made in one pass, reused by forward and both gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError
from edgeprune.ops._core import core

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SparsityPattern:
    """Which weights of a linear layer or a 2-d convolution are kept.

    Compact weights are the kept ones in the order of the dense tensor, row by row. ``filter`` is (outputs, inputs,
    groups, taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w); the int32 tensors are described in
    csrc/ops/sparsity_pattern.h. Make one with :func:`pattern_from_mask` or :func:`pattern_from_bits`.
    """

    filter: tuple[int, ...]
    columns: Tensor
    starts: Tensor
    t_columns: Tensor
    t_order: Tensor
    t_starts: Tensor
    kept_index: Tensor
    """int64 ``[kept]``: position of each compact weight in the flattened dense tensor."""

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return self.columns.numel()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight: (outputs, inputs / groups, taps_h, taps_w)."""
        outputs, inputs, groups, taps_h, taps_w = self.filter[:5]
        return outputs, inputs // groups, taps_h, taps_w

    @property
    def density(self) -> float:
        """Kept over all weights."""
        outputs, per_group, taps_h, taps_w = self.weight_shape
        return self.kept / (outputs * per_group * taps_h * taps_w)

    def compact(self, dense: Tensor) -> Tensor:
        """The kept weights of a dense tensor: ``[kept]``. Dropped ones are not read into it."""
        return dense.reshape(-1)[self.kept_index]

    def dense(self, compact: Tensor) -> Tensor:
        """The dense tensor, of ``weight_shape``, with zeros where weights are dropped."""
        flat = compact.new_zeros(int(np.prod(self.weight_shape)))
        flat[self.kept_index] = compact
        return flat.view(self.weight_shape)


def pattern_from_bits(
    bits: Tensor,
    shape: tuple[int, ...],
    *,
    groups: int = 1,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> SparsityPattern:
    """Compile a bit-packed mask (uint8, least significant bit first) of a weight of ``shape``.

    ``shape`` is (outputs, inputs) or (outputs, inputs / groups, taps_h, taps_w). Raises EdgePruneError when the bits do
    not fit the shape, or spare bits are set.
    """
    if len(shape) not in (2, 4):
        raise EdgePruneError(f"a sparsity pattern is of a linear or 2-d convolution weight, not of shape {shape}")
    outputs, per_group, taps_h, taps_w = (*shape, 1, 1)[:4]
    filter_ = (outputs, per_group * groups, groups, taps_h, taps_w, *stride, *dilation)
    bits = bits.contiguous()
    kept = core.pattern_kept(to_dlpack(bits), filter_)
    rows, row, t_rows, t_row = core.pattern_sizes(filter_)
    columns, t_columns, t_order = (torch.empty(kept, dtype=torch.int32) for _ in range(3))
    starts = torch.empty(rows, row, dtype=torch.int32)
    t_starts = torch.empty(t_rows, t_row, dtype=torch.int32)
    parts = (columns, starts, t_columns, t_order, t_starts)
    core.pattern_compile(filter_, to_dlpack(bits), *(to_dlpack(part) for part in parts))
    every = np.unpackbits(bits.numpy(), bitorder="little")
    kept_index = torch.from_numpy(np.flatnonzero(every))
    return SparsityPattern(filter_, *parts, kept_index)


def pattern_from_mask(mask: Tensor, **geometry: Any) -> SparsityPattern:
    """Compile a dense mask (bool, or nonzero where kept) of the weight's shape; see :func:`pattern_from_bits`."""
    kept = mask.detach().cpu().numpy() != 0
    bits = torch.from_numpy(np.packbits(kept.reshape(-1), bitorder="little"))
    return pattern_from_bits(bits, tuple(mask.shape), **geometry)
