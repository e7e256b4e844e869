"""Gradients of the masked products without the dispatcher: what an eager training step goes through.

A ``torch.autograd.Function`` costs a few microseconds where an operator of ``torch.library`` costs tens; the operators
(masked_library.py) are for the compiler, transforms and other dispatch modes. Gradients of gradients work to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.ops import _masked_core, masked_dense, observers
from edgeprune.ops._masked_core import Padding
from edgeprune.ops.sparsity import CompiledPattern


def masked(compiled: CompiledPattern, padding: Padding, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`_masked_core.forward`, differentiable."""
    wanted = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if wanted and torch.is_grad_enabled():
        return _Masked.apply(compiled, padding, x, weight, bias)
    return _masked_core.forward(compiled, padding, x, weight, bias)


def _input_gradient(compiled: CompiledPattern, padding: Padding, dy: Tensor, weight: Tensor, shape: Any) -> Tensor:
    if observers.batched(dy, weight):
        pattern, filter, pads = _dense(compiled, padding)
        size = (1, 1) if padding is None else shape[2:]
        return masked_dense.input_gradient(_pictures(dy, padding), weight, pattern, filter, pads, size).view(shape)
    if torch.is_grad_enabled() and (dy.requires_grad or weight.requires_grad):
        return _InputGradient.apply(compiled, padding, dy, weight, shape)
    return _masked_core.input_gradient(compiled, padding, dy, weight, shape)


def _weight_gradient(compiled: CompiledPattern, padding: Padding, x: Tensor, dy: Tensor) -> Tensor:
    if observers.batched(x, dy):
        return masked_dense.weight_gradient(_pictures(x, padding), _pictures(dy, padding), *_dense(compiled, padding))
    if torch.is_grad_enabled() and (x.requires_grad or dy.requires_grad):
        return _WeightGradient.apply(compiled, padding, x, dy)
    return _masked_core.weight_gradient(compiled, padding, x, dy)


def _product(compiled: CompiledPattern, padding: Padding, x: Tensor, weight: Tensor) -> Tensor:
    if observers.batched(x, weight):
        y = masked_dense.forward(_pictures(x, padding), weight, None, *_dense(compiled, padding))
        return y.view(_masked_core.output_shape(compiled.filter, padding, x))
    return masked(compiled, padding, x, weight, None)


def _pictures(x: Tensor, padding: Padding) -> Tensor:
    """x of a linear layer as pictures of one pixel."""
    return x.reshape(-1, x.shape[-1], 1, 1) if padding is None else x


def _dense(compiled: CompiledPattern, padding: Padding) -> tuple[Sequence[Tensor], Sequence[int], Sequence[int]]:
    return compiled.tensors, compiled.filter, padding or (0, 0)


def bias_gradient(dy: Tensor, linear: bool) -> Tensor:
    """Sum over everything but the outputs."""
    if not linear:
        return dy.sum((0, 2, 3))
    return dy.sum(list(range(dy.ndim - 1))) if dy.ndim > 1 else dy


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: CompiledPattern, padding: Padding, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.compiled, ctx.padding = compiled, padding
        return _masked_core.forward(compiled, padding, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None, Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        _, _, for_x, for_weight, for_bias = ctx.needs_input_grad
        compiled, padding = ctx.compiled, ctx.padding
        dy = dy.contiguous()
        return (
            None,
            None,
            _input_gradient(compiled, padding, dy, weight, x.shape) if for_x else None,
            _weight_gradient(compiled, padding, x, dy) if for_weight else None,
            bias_gradient(dy, padding is None) if for_bias else None,
        )


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compiled: CompiledPattern, padding: Padding, dy: Tensor, weight: Tensor, shape: Any
    ) -> Tensor:
        ctx.save_for_backward(dy, weight)
        ctx.compiled, ctx.padding = compiled, padding
        return _masked_core.input_gradient(compiled, padding, dy, weight, shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor | None, Tensor | None, None]:
        dy, weight = ctx.saved_tensors
        compiled, padding = ctx.compiled, ctx.padding
        return (
            None,
            None,
            _product(compiled, padding, g, weight) if ctx.needs_input_grad[2] else None,
            _weight_gradient(compiled, padding, g, dy) if ctx.needs_input_grad[3] else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: CompiledPattern, padding: Padding, x: Tensor, dy: Tensor) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.compiled, ctx.padding = compiled, padding
        return _masked_core.weight_gradient(compiled, padding, x, dy)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
        x, dy = ctx.saved_tensors
        compiled, padding = ctx.compiled, ctx.padding
        return (
            None,
            None,
            _input_gradient(compiled, padding, dy, g, x.shape) if ctx.needs_input_grad[2] else None,
            _product(compiled, padding, x, g) if ctx.needs_input_grad[3] else None,
        )
