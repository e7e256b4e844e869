"""The masked products as ``torch.library`` operators, for torch.compile, transforms and dispatch modes.

    edgeprune::masked_conv2d(x, weight, bias?, pattern[5], filter[9], padding[2]) -> y
    edgeprune::masked_conv2d_input_gradient(dy, weight, pattern, filter, padding, size[2]) -> dx
    edgeprune::masked_conv2d_weight_gradient(x, dy, pattern, filter, padding) -> dw

x is (N, inputs, H, W), weight compact ``[kept]``; a linear layer has H = W = 1. ``pattern`` and ``filter`` are
those of :class:`~edgeprune.ops.sparsity.CompiledPattern`. float32 on the CPU, or on a GPU that the core was built for,
goes to the core, everything else through plain torch. Each operator's gradients are the other two, so gradients of any
order exist. torch's FlopCounterMode counts two for each kept weight and position, as much as is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]
from torch.utils.flop_counter import register_flop_formula

from edgeprune.ops import _masked_core, masked_cuda, masked_dense, memory
from edgeprune.ops._core import core
from edgeprune.ops._masked_core import output_shape
from edgeprune.ops.masked_autograd import bias_gradient
from edgeprune.ops.sparsity import CompiledPattern, compiled_of

_PATTERN = "Tensor[] pattern, int[] filter, int[] padding"


def _for_core(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in tensors)


def _on_gpu(pattern: Sequence[Tensor], *tensors: Tensor | None) -> CompiledPattern | None:
    """The pattern, where the core's CUDA kernels take these tensors."""
    if all(t is None or masked_cuda.takes(t) for t in tensors):
        return compiled_of(pattern[0])
    return None


def _lent(x: Tensor | None) -> object:
    return None if x is None else to_dlpack(x.contiguous().resolve_neg())


# ---- forward --------------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "edgeprune::masked_conv2d", mutates_args=(), schema=f"(Tensor x, Tensor weight, Tensor? bias, {_PATTERN}) -> Tensor"
)
def _forward_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any
) -> Tensor:
    if not _for_core(x, weight, bias):
        found = _on_gpu(pattern, x, weight, bias)
        if found is None:
            return masked_dense.forward(x, weight, bias, pattern, filter, padding)
        return _masked_core.forward(found, padding, x.resolve_neg(), weight.resolve_neg(), bias)
    y = memory.empty(output_shape(filter, padding, x))
    columns, starts = (to_dlpack(part) for part in pattern[:2])
    threads = torch.get_num_threads()
    core.masked_forward(
        tuple(filter),
        tuple(padding),
        columns,
        starts,
        None,
        _lent(x),
        _lent(weight),
        _lent(bias),
        to_dlpack(y),
        threads,
    )
    return y


@_forward_op.register_fake
def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any
) -> Tensor:
    return x.new_empty(output_shape(filter, padding, x))


# ---- input gradient -------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "edgeprune::masked_conv2d_input_gradient",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor weight, {_PATTERN}, SymInt[] size) -> Tensor",
)
def _input_gradient_op(
    dy: Tensor, weight: Tensor, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any, size: Sequence[int]
) -> Tensor:
    shape = (dy.shape[0], filter[1], *size)
    if not _for_core(dy, weight):
        found = _on_gpu(pattern, dy, weight)
        if found is None:
            return masked_dense.input_gradient(dy, weight, pattern, filter, padding, size)
        return _masked_core.input_gradient(found, padding, dy.resolve_neg(), weight.resolve_neg(), shape)
    dx = memory.empty(shape)
    _, _, columns, order, starts = (to_dlpack(part) for part in pattern)
    threads = torch.get_num_threads()
    core.masked_input_gradient(
        tuple(filter), tuple(padding), columns, starts, order, to_dlpack(dx), _lent(weight), None, _lent(dy), threads
    )
    return dx


@_input_gradient_op.register_fake
def _input_gradient_fake(
    dy: Tensor, weight: Tensor, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any, size: Sequence[int]
) -> Tensor:
    return dy.new_empty((dy.shape[0], filter[1], *size))


# ---- weight gradient ------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "edgeprune::masked_conv2d_weight_gradient", mutates_args=(), schema=f"(Tensor x, Tensor dy, {_PATTERN}) -> Tensor"
)
def _weight_gradient_op(
    x: Tensor, dy: Tensor, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any
) -> Tensor:
    kept = pattern[0].shape[0]
    if not _for_core(x, dy):
        found = _on_gpu(pattern, x, dy)
        if found is None:
            return masked_dense.weight_gradient(x, dy, pattern, filter, padding)
        return _masked_core.weight_gradient(found, padding, x.resolve_neg(), dy.resolve_neg())
    if not x.numel():
        return x.new_zeros(kept)
    dw = x.new_empty(kept)
    columns, starts = (to_dlpack(part) for part in pattern[:2])
    threads = torch.get_num_threads()
    core.masked_weight_gradient(
        tuple(filter), tuple(padding), columns, starts, None, _lent(x), to_dlpack(dw), None, _lent(dy), threads
    )
    return dw


@_weight_gradient_op.register_fake
def _weight_gradient_fake(
    x: Tensor, dy: Tensor, pattern: Sequence[Tensor], filter: Sequence[int], padding: Any
) -> Tensor:
    return x.new_empty(pattern[0].shape[0])


# ---- gradients ------------------------------------------------------------------------------------------------------

_library = torch.ops.edgeprune
forward_op = _library.masked_conv2d.default


def _save(ctx: Any, pattern: Sequence[Tensor], *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors, *pattern)


def _forward_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, pattern, ctx.filter, ctx.padding = inputs
    _save(ctx, pattern, x, weight)


def _forward_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight, *pattern = ctx.saved_tensors
    rest = (pattern, ctx.filter, ctx.padding)
    for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
    return (
        _library.masked_conv2d_input_gradient(dy, weight, *rest, x.shape[2:]) if for_x else None,
        _library.masked_conv2d_weight_gradient(x, dy, *rest) if for_weight else None,
        bias_gradient(dy, False) if for_bias else None,
        [None] * len(pattern),
        None,
        None,
    )


def _input_gradient_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, weight, pattern, ctx.filter, ctx.padding, _ = inputs
    _save(ctx, pattern, dy, weight)


def _input_gradient_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dy, weight, *pattern = ctx.saved_tensors
    rest = (pattern, ctx.filter, ctx.padding)
    return (
        _library.masked_conv2d(g, weight, None, *rest) if ctx.needs_input_grad[0] else None,
        _library.masked_conv2d_weight_gradient(g, dy, *rest) if ctx.needs_input_grad[1] else None,
        [None] * len(pattern),
        None,
        None,
        None,
    )


def _weight_gradient_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, dy, pattern, ctx.filter, ctx.padding = inputs
    _save(ctx, pattern, x, dy)


def _weight_gradient_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, dy, *pattern = ctx.saved_tensors
    rest = (pattern, ctx.filter, ctx.padding)
    return (
        _library.masked_conv2d_input_gradient(dy, g, *rest, x.shape[2:]) if ctx.needs_input_grad[0] else None,
        _library.masked_conv2d(x, g, None, *rest) if ctx.needs_input_grad[1] else None,
        [None] * len(pattern),
        None,
        None,
    )


_forward_op.register_autograd(_forward_backward, setup_context=_forward_context)
_input_gradient_op.register_autograd(_input_gradient_backward, setup_context=_input_gradient_context)
_weight_gradient_op.register_autograd(_weight_gradient_backward, setup_context=_weight_gradient_context)


# ---- counts ---------------------------------------------------------------------------------------------------------

Shape = Sequence[int]


@register_flop_formula(_library.masked_conv2d)
def _forward_flops(x: Shape, weight: Shape, *rest: object, out_shape: Shape, **more: object) -> int:
    return _flops(weight, out_shape)


@register_flop_formula(_library.masked_conv2d_input_gradient)
def _input_gradient_flops(dy: Shape, weight: Shape, *rest: object, **more: object) -> int:
    return _flops(weight, dy)


@register_flop_formula(_library.masked_conv2d_weight_gradient)
def _weight_gradient_flops(x: Shape, dy: Shape, *rest: object, out_shape: Shape, **more: object) -> int:
    return _flops(out_shape, dy)


def _flops(kept: Shape, out: Shape) -> int:
    samples, _, *positions = out
    return 2 * prod(kept) * samples * prod(positions)
