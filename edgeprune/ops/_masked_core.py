"""The three masked products, straight into the core: plain float32 tensors on the CPU or one GPU, no gradient.

``padding`` is (rows, columns) for a convolution, or None for a linear layer, whose x and y have any leading shape.
The three are one bilinear map and its transposes, so each one's gradients are the other two (masked_autograd.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError
from edgeprune.ops import masked_cuda, memory
from edgeprune.ops._core import core
from edgeprune.ops.sparsity import CompiledPattern

Padding = Sequence[int] | None

_NONE = (0, 0)


def output_size(filter: Sequence[int], padding: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Height and width of the result of a convolution over pictures of ``size`` (height, width)."""
    _, _, _, taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w = filter
    return (
        (size[0] + 2 * padding[0] - dilation_h * (taps_h - 1) - 1) // stride_h + 1,
        (size[1] + 2 * padding[1] - dilation_w * (taps_w - 1) - 1) // stride_w + 1,
    )


def output_shape(filter: Sequence[int], padding: Padding, x: Tensor) -> tuple[int, ...]:
    """Shape of y; raises EdgePruneError where x is smaller than the filter."""
    if padding is None:
        return (*x.shape[:-1], filter[0])
    height, width = output_size(filter, padding, x.shape[2:])
    if not (x.shape[2] and x.shape[3]):
        raise EdgePruneError(f"masked_conv2d: x of shape {tuple(x.shape)} has no pixels; give at least one")
    if height < 1 or width < 1:
        raise EdgePruneError(
            f"masked_conv2d: x of shape {tuple(x.shape)} with padding {tuple(padding)} is smaller than the filter of "
            f"{filter[3]} x {filter[4]} taps and dilation {tuple(filter[7:])}"
        )
    return (x.shape[0], filter[0], height, width)


def _whole(x: Tensor) -> Tensor:
    """Values as the core reads them; gradients may come as views, negated ones of complex numbers among them."""
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


def _lent(x: Tensor, padding: Padding) -> object:
    """x for the core, which sees a linear layer as a convolution over one pixel."""
    if padding is None:
        features = x.shape[-1]
        x = x.view(x.numel() // features, features, 1, 1)
    return to_dlpack(x)


def forward(compiled: CompiledPattern, padding: Padding, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x * W + bias: ``[..., outputs]``, or (N, outputs, height, width)."""
    y = memory.advised(x.new_empty(output_shape(compiled.filter, padding, x)))
    if x.is_cuda:
        return masked_cuda.forward(
            compiled, padding, _whole(x), _whole(weight), None if bias is None else bias.contiguous(), y
        )
    columns, starts, *_ = compiled.capsules
    core.masked_forward(
        compiled.filter,
        padding or _NONE,
        columns,
        starts,
        None,
        _lent(_whole(x), padding),
        to_dlpack(_whole(weight)),
        None if bias is None else to_dlpack(bias.contiguous()),
        _lent(y, padding),
        torch.get_num_threads(),
    )
    return y


def input_gradient(
    compiled: CompiledPattern, padding: Padding, dy: Tensor, weight: Tensor, shape: Sequence[int]
) -> Tensor:
    """dx, of ``shape``."""
    dx = memory.advised(dy.new_empty(shape))
    if dy.is_cuda:
        return masked_cuda.input_gradient(compiled, padding, _whole(dy), _whole(weight), dx)
    _, _, t_columns, t_order, t_starts = compiled.capsules
    core.masked_input_gradient(
        compiled.filter,
        padding or _NONE,
        t_columns,
        t_starts,
        t_order,
        _lent(dx, padding),
        to_dlpack(_whole(weight)),
        None,
        _lent(_whole(dy), padding),
        torch.get_num_threads(),
    )
    return dx


def weight_gradient(compiled: CompiledPattern, padding: Padding, x: Tensor, dy: Tensor) -> Tensor:
    """dw at kept weights: ``[kept]``."""
    if not x.numel():
        return x.new_zeros(compiled.kept)
    dw = x.new_empty(compiled.kept)
    if x.is_cuda:
        return masked_cuda.weight_gradient(compiled, padding, _whole(x), _whole(dy), dw)
    columns, starts, *_ = compiled.capsules
    core.masked_weight_gradient(
        compiled.filter,
        padding or _NONE,
        columns,
        starts,
        None,
        _lent(_whole(x), padding),
        to_dlpack(dw),
        None,
        _lent(_whole(dy), padding),
        torch.get_num_threads(),
    )
    return dw
