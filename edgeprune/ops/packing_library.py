"""The packing operators whose results have known shapes, as ``torch.library`` operators with fake kernels.

torch.ops.edgeprune.{select_largest, select_above, unpack, accumulate_}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.ops import packing
from edgeprune.ops.packing_types import mask_bytes


@torch.library.custom_op("edgeprune::select_largest", mutates_args=(), schema="(Tensor[] xs, int k) -> Tensor[]")
def _select_largest_op(xs: Sequence[Tensor], k: int) -> list[Tensor]:
    return packing.select_largest_direct(xs, k)


@torch.library.custom_op(
    "edgeprune::select_above", mutates_args=(), schema="(Tensor[] xs, float threshold) -> Tensor[]"
)
def _select_above_op(xs: Sequence[Tensor], threshold: float) -> list[Tensor]:
    return packing.select_above_direct(xs, threshold)


@_select_largest_op.register_fake
@_select_above_op.register_fake
def _masks_fake(xs: Sequence[Tensor], _: float) -> list[Tensor]:
    return [x.new_empty([mask_bytes(x.numel())], dtype=torch.uint8) for x in xs]


@torch.library.custom_op(
    "edgeprune::unpack",
    mutates_args=(),
    schema="(Tensor values, Tensor? scales, Tensor? mask, SymInt n, str dtype) -> Tensor",
)
def _unpack_op(values: Tensor, scales: Tensor | None, mask: Tensor | None, n: int, dtype: str) -> Tensor:
    return packing.unpack(values, scales, mask, n, dtype)


@_unpack_op.register_fake
def _unpack_fake(values: Tensor, scales: Tensor | None, mask: Tensor | None, n: int, dtype: str) -> Tensor:
    return values.new_empty([n], dtype=torch.float32)


@torch.library.custom_op(
    "edgeprune::accumulate_",
    mutates_args=("total", "weight_sum"),
    schema="(Tensor(a!) total, Tensor(b!) weight_sum, Tensor values, Tensor? scales, Tensor? mask, str dtype, "
    "float weight) -> ()",
)
def _accumulate_op(
    total: Tensor,
    weight_sum: Tensor,
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    dtype: str,
    weight: float,
) -> None:
    packing.accumulate_direct_(total, weight_sum, values, scales, mask, dtype, weight)


@_accumulate_op.register_fake
def _accumulate_fake(
    total: Tensor,
    weight_sum: Tensor,
    values: Tensor,
    scales: Tensor | None,
    mask: Tensor | None,
    dtype: str,
    weight: float,
) -> None:
    return None
