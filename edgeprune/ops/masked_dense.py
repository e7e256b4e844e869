"""The three masked products in plain torch, as dense products with zeros at dropped weights: what runs where the core
has no kernel. Traceable by torch.compile.

``pattern`` and ``filter`` are those of :class:`~edgeprune.ops.sparsity.CompiledPattern`; x is (N, inputs, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.ops.sparsity import index_of


def dense_weight(weight: Tensor, pattern: Sequence[Tensor], filter: Sequence[int]) -> Tensor:
    """(outputs, inputs / groups, h, w) with zeros at dropped places, out of compact weights."""
    outputs, inputs, groups, *taps = filter[:5]
    flat = weight.new_zeros(outputs * (inputs // groups) * taps[0] * taps[1])
    flat = flat.index_copy(0, _index(pattern, filter, weight.device), weight)
    return flat.view(outputs, inputs // groups, *taps[:2])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    filter: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """y from x and compact weights."""
    dense = dense_weight(weight, pattern, filter)
    return functional.conv2d(x, dense, bias, *_geometry(filter, padding)).contiguous()


def input_gradient(
    dy: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    filter: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """dx (N, inputs, *size) from dy."""
    x = dy.new_empty((dy.shape[0], filter[1], *size))
    return _backward(dy, x, dense_weight(weight, pattern, filter), filter, padding, 0)


def weight_gradient(
    x: Tensor, dy: Tensor, pattern: Sequence[Tensor], filter: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """dw at kept weights from x and dy."""
    dense = dense_weight(x.new_empty(pattern[0].shape[0]), pattern, filter)
    return _backward(dy, x, dense, filter, padding, 1).view(-1)[_index(pattern, filter, x.device)]


def _index(pattern: Sequence[Tensor], filter: Sequence[int], device: torch.device) -> Tensor:
    return index_of(pattern[0].to(device), pattern[1].to(device), filter)


def _geometry(filter: Sequence[int], padding: Sequence[int]) -> tuple[list[int], list[int], list[int], int]:
    """stride, padding, dilation, groups as torch takes them."""
    return list(filter[5:7]), list(padding), list(filter[7:9]), filter[2]


def _backward(
    dy: Tensor, x: Tensor, dense: Tensor, filter: Sequence[int], padding: Sequence[int], which: int
) -> Tensor:
    """torch's gradient of the dense convolution: 0 of x, 1 of the weight."""
    stride, pad, dilation, groups = _geometry(filter, padding)
    mask = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(dy, x, dense, None, stride, pad, dilation, False, [0, 0], groups, mask)
    return found[which].contiguous()
