"""What runs together in a Chain (chain.py): for each kind of layer its forward pass and its gradients.

Every stage behind the first of a run is given a tensor of the run's own making.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune import ops
from edgeprune.errors import EdgePruneError
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear
from edgeprune.nn.pooling import MaxPool2d
from edgeprune.ops import _masked_core, masked, masked_autograd
from edgeprune.ops._masked_core import Padding
from edgeprune.ops.sparsity import CompiledPattern

Shape = tuple[int, ...]
Wanted = tuple[bool, bool, bool]  # of the gradients of a product's input, weight and bias
Weights = tuple[Tensor | None, ...]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Stage:
    """One layer of a run, behind something of shape ``given``; ``shape`` is that of what comes out."""

    layer: Any
    given: Shape
    shape: Shape

    def weights(self) -> Weights:
        """Weight and bias; () for a layer without."""
        return ()

    def check(self) -> None:
        """EdgePruneError where the gradient can no longer be found."""

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """(y, what the gradient needs)."""
        raise NotImplementedError

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        """Gradients of x, weight and bias."""
        raise NotImplementedError


class Relu(Stage):
    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        torch.relu_(x)  # in place: a run begins with a product, so x is of its own making
        return x, x

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        return torch.ops.aten.threshold_backward.default(dy, saved, 0), None, None


class Flatten(Stage):
    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, None]:
        return x.reshape(self.shape), None

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        return dy.reshape(self.given), None, None


class Pool(Stage):
    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        return ops.max_pool(x, self.layer.kernel_size)

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        assert saved is not None
        return ops.max_pool_backward(dy, saved, self.given, self.layer.kernel_size), None, None


class Full(Stage):
    """A linear layer with all its weights."""

    def weights(self) -> Weights:
        return self.layer.weight if type(self.layer) is nn.Linear else self.layer.weight_kept, self.layer.bias

    def _matrix(self, weights: Weights) -> Tensor:
        assert weights[0] is not None
        return weights[0].view(self.shape[1], self.given[1])

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        return functional.linear(x, self._matrix(weights), weights[1]), x

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        assert saved is not None and weights[0] is not None
        for_x, for_weight, for_bias = wanted
        return (
            dy.mm(self._matrix(weights)) if for_x else None,
            dy.t().mm(saved).view_as(weights[0]) if for_weight else None,
            dy.sum(0) if for_bias else None,
        )


@dataclass(frozen=True)
class Sparse(Stage):
    """A masked layer whose product goes to the sparse kernels; ``compiled``: its pattern when this was planned."""

    compiled: CompiledPattern
    padding: Padding

    def weights(self) -> Weights:
        return self.layer.weight_kept, self.layer.bias

    def check(self) -> None:
        if self.layer.compiled is not self.compiled:
            raise EdgePruneError("backward: a mask was moved since the forward pass; set masks between steps")

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        weight, bias = weights
        assert weight is not None
        bias = None if bias is None else bias.detach()
        return _masked_core.forward(self.compiled, self.padding, x, weight.detach(), bias), x

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        (weight, _), (for_x, for_weight, for_bias), x = weights, wanted, saved
        assert weight is not None and x is not None
        self.check()
        dx = None
        if for_x:
            dx = _masked_core.input_gradient(self.compiled, self.padding, dy, weight.detach(), x.shape)
        return (
            dx,
            _masked_core.weight_gradient(self.compiled, self.padding, x, dy) if for_weight else None,
            masked_autograd.bias_gradient(dy, self.padding is None) if for_bias else None,
        )


def stage_of(layer: nn.Module, shape: Shape) -> Stage | None:
    """How ``layer`` takes part in a run behind something of ``shape``; None: not at all."""
    if type(layer) is nn.ReLU:
        return Relu(layer, shape, shape)
    if type(layer) is nn.Flatten and len(shape) > 1 and layer.start_dim == 1 and layer.end_dim == -1:
        return Flatten(layer, shape, (shape[0], math.prod(shape[1:])))
    if type(layer) is MaxPool2d and layer.takes(shape):
        less = layer.kernel_size - 1  # type: ignore[operator]
        return Pool(layer, shape, (*shape[:2], shape[2] - less, shape[3] - less))
    if type(layer) is nn.Linear:
        return _full(layer, layer.weight, shape)
    if type(layer) in (MaskedConv2d, MaskedLinear) and layer.weight_kept.requires_grad:
        return _masked(layer, shape)  # type: ignore[arg-type]
    return None


def _masked(layer: MaskedConv2d | MaskedLinear, shape: Shape) -> Stage | None:
    call = layer.sparse_call(shape)
    if call is not None:
        fits = layer.bias is None or layer.bias.shape == (layer.pattern.shape[0],)
        return Sparse(layer, shape, call[1], layer.compiled, call[0]) if fits else None
    if isinstance(layer, MaskedLinear) and layer.pattern.kept == layer.pattern.numel():
        return _full(layer, layer.weight_kept, shape)
    return None


def _full(layer: nn.Linear | MaskedLinear, weight: Tensor, shape: Shape) -> Full | None:
    outputs = layer.out_features
    fits = len(shape) == 2 and shape[0] > 0 and shape[1] == layer.in_features and weight.numel() == outputs * shape[1]
    fits = fits and (layer.bias is None or layer.bias.shape == (outputs,))
    if not fits or not weight.is_cpu or not masked.quick(weight, weight, layer.bias):
        return None
    return Full(layer, shape, (shape[0], outputs))


def looks_of(layer: nn.Module) -> tuple[object, ...]:
    """What a layer's part in a run depends on; () for one that never has any."""
    if type(layer) is nn.Flatten:
        return layer.start_dim, layer.end_dim
    if type(layer) is MaxPool2d:
        how = (layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices)
        return layer.kernel_size, *how
    if type(layer) is nn.Linear:
        return _look(layer.weight), _look(layer.bias)
    if type(layer) in (MaskedConv2d, MaskedLinear):
        weight, bias, mode = layer.weight_kept, layer.bias, getattr(layer, "padding_mode", None)
        return layer.compiled, layer.path, mode, _look(weight), _look(bias)  # type: ignore[arg-type]
    return ()


def _look(t: Tensor | None) -> tuple[object, ...] | None:
    return None if t is None else (t.requires_grad, t.shape, t.dtype, t.device)


def with_weights(run: Sequence[Stage], weights: Sequence[Tensor | None]) -> Iterator[tuple[Stage, Weights]]:
    """Every stage with its own of the run's weights and biases: those it had in the forward pass, whatever its layer
    holds by now."""
    at = 0
    for stage in run:
        number = len(stage.weights())
        yield stage, tuple(weights[at : at + number])
        at += number
