"""A sequence of layers whose kernels run one after the other as a single node of autograd.

With small batches a training step costs as much around the kernels as in them: each layer is a call of a module, a node
of autograd, an activation's own pass. ``Chain`` is nn.Sequential that runs masked layers, ReLU, max pooling and
flattening between them in one function, forward and backward. Values and gradients are those of nn.Sequential, to the
bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from edgeprune import ops
from edgeprune.errors import EdgePruneError
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear
from edgeprune.nn.pooling import MaxPool2d
from edgeprune.ops import _masked_core, crossover, masked, masked_autograd
from edgeprune.ops._masked_core import Padding
from edgeprune.ops.sparsity import CompiledPattern

Shape = tuple[int, ...]


class Chain(nn.Sequential):
    """nn.Sequential, sooner through training where its layers are masked, float32 and on the CPU."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._plans: dict[Shape, _Plan] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output of the first one's input."""
        if not self._together(x):
            out: Tensor = super().forward(x)
            return out
        plan = self._plans.get(x.shape)
        if plan is None or not plan.holds(self):
            plan = self._plans[tuple(x.shape)] = _Plan(self, tuple(x.shape))
            while len(self._plans) > _MOST:
                del self._plans[next(iter(self._plans))]
        x = plan(x)
        for layer in plan.rest:
            x = layer(x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

    def _together(self, x: Tensor) -> bool:
        """Somebody learns from this call, and nobody but autograd has to hear of what happens inside."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if not _plain(x) or _has_any_global_hook():
            return False
        return not any(
            m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks for m in self
        )


_MOST = 4  # shapes of inputs whose plans are kept: a training has two sizes of batches


def _plain(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_cpu and masked.quick(x, x, None)


# ---- what runs together ---------------------------------------------------------------------------------------------

Wanted = tuple[bool, bool, bool]  # of the gradients of a product's input, weight and bias
Weights = tuple[Tensor | None, ...]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Stage:
    """One layer of a run, behind something of shape ``given``; ``shape`` is that of what comes out."""

    layer: Any
    given: Shape
    shape: Shape

    def weights(self) -> Weights:
        """Weight and bias; () for a layer without."""
        return ()

    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, Tensor | None]:
        """(y, what the gradient needs). ``own``: x is of this run's making, and nobody else's."""
        raise NotImplementedError

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        """Gradients of x, weight and bias."""
        raise NotImplementedError


class _Relu(_Stage):
    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, Tensor]:
        y = torch.relu_(x) if own else torch.relu(x)
        return y, y

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        return torch.ops.aten.threshold_backward.default(dy, saved, 0), None, None


class _Flatten(_Stage):
    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, None]:
        return x.reshape(self.shape), None

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        return dy.reshape(self.given), None, None


class _Pool(_Stage):
    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, Tensor]:
        return ops.max_pool(x, self.layer.kernel_size)

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        assert saved is not None
        return ops.max_pool_backward(dy, saved, self.given, self.layer.kernel_size), None, None


class _Full(_Stage):
    """A linear layer with all its weights."""

    def weights(self) -> Weights:
        return self.layer.weight if type(self.layer) is nn.Linear else self.layer.weight_kept, self.layer.bias

    def _matrix(self, weights: Weights) -> Tensor:
        assert weights[0] is not None
        return weights[0].view(self.shape[1], self.given[1])

    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, Tensor]:
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
class _Sparse(_Stage):
    """A masked layer whose product goes to the sparse kernels; ``compiled``: its pattern when this was planned."""

    compiled: CompiledPattern
    padding: Padding

    def weights(self) -> Weights:
        return self.layer.weight_kept, self.layer.bias

    def forward(self, x: Tensor, weights: Weights, own: bool) -> tuple[Tensor, Tensor]:
        weight, bias = weights
        assert weight is not None
        bias = None if bias is None else bias.detach()
        return _masked_core.forward(self.compiled, self.padding, x, weight.detach(), bias), x

    def backward(self, saved: Tensor | None, weights: Weights, dy: Tensor, wanted: Wanted) -> Gradients:
        (weight, _), (for_x, for_weight, for_bias), x = weights, wanted, saved
        assert weight is not None and x is not None
        if self.layer.compiled is not self.compiled:
            raise EdgePruneError("backward: a mask was moved since the forward pass; set masks between steps")
        dx = None
        if for_x:
            dx = _masked_core.input_gradient(self.compiled, self.padding, dy, weight.detach(), x.shape)
        return (
            dx,
            _masked_core.weight_gradient(self.compiled, self.padding, x, dy) if for_weight else None,
            masked_autograd.bias_gradient(dy, self.padding is None) if for_bias else None,
        )


def _stage(layer: nn.Module, shape: Shape) -> _Stage | None:
    """How ``layer`` takes part in a run behind something of ``shape``; None: not at all."""
    if type(layer) is nn.ReLU:
        return _Relu(layer, shape, shape)
    if type(layer) is nn.Flatten and len(shape) > 1 and layer.start_dim == 1 and layer.end_dim == -1:
        return _Flatten(layer, shape, (shape[0], math.prod(shape[1:])))
    if type(layer) is MaxPool2d and layer.takes(shape):
        less = layer.kernel_size - 1  # type: ignore[operator]
        return _Pool(layer, shape, (*shape[:2], shape[2] - less, shape[3] - less))
    if type(layer) is nn.Linear:
        return _full(layer, layer.weight, shape)
    if isinstance(layer, MaskedConv2d | MaskedLinear) and layer.weight_kept.requires_grad:
        call = layer.sparse_call(shape)
        if call is not None:
            return _Sparse(layer, shape, call[1], layer.compiled, call[0])
        if isinstance(layer, MaskedLinear) and layer.pattern.kept == layer.pattern.numel():
            return _full(layer, layer.weight_kept, shape)
    return None


def _full(layer: nn.Linear | MaskedLinear, weight: Tensor, shape: Shape) -> _Full | None:
    fits = len(shape) == 2 and shape[0] > 0 and shape[1] == layer.in_features
    if not fits or not weight.is_cpu or not masked.quick(weight, weight, layer.bias):
        return None
    return _Full(layer, shape, (shape[0], layer.out_features))


class _Plan:
    """For inputs of one shape: the layers, from the first on, that run together; the ``rest`` follow one by one."""

    def __init__(self, layers: Iterable[nn.Module], shape: Shape) -> None:
        self.layers = tuple(layers)
        stages: list[_Stage] = []
        for layer in self.layers:
            stage = _stage(layer, shape)
            if stage is None:
                break
            stages.append(stage)
            shape = stage.shape
        self.run = tuple(stages) if any(isinstance(stage, _Sparse) for stage in stages) else ()
        self.rest = self.layers[len(self.run) :]
        self._made_in = _circumstances()
        self._made_for = [(layer, _looks(layer)) for layer in self.layers if isinstance(layer, _PRODUCTS)]

    def holds(self, layers: Iterable[nn.Module]) -> bool:
        """Whether the layers, and what decides how they run, are as they were when this was made."""
        if self._made_in != _circumstances() or self.layers != tuple(layers):
            return False
        return all(_looks(layer) == looks for layer, looks in self._made_for)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.run:
            return x
        out: Tensor = _Together.apply(self.run, x, *(t for stage in self.run for t in stage.weights()))
        return out


_PRODUCTS = (nn.Linear, MaskedConv2d, MaskedLinear)


def _circumstances() -> tuple[object, ...]:
    """What the choice between sparse and dense depends on beside the layers."""
    return torch.get_num_threads(), crossover.in_force()


def _looks(layer: Any) -> tuple[object, ...]:
    """What a layer's part in a run depends on."""
    dense = isinstance(layer, nn.Linear)
    weight = layer.weight if dense else layer.weight_kept
    mask = None if dense else (layer.compiled, layer.path)
    return mask, weight.requires_grad, weight.dtype, weight.device, layer.bias is None


class _Together(torch.autograd.Function):
    """A run as one node. It keeps what its layers' own would: inputs of products, outputs of ReLU, places of maxima."""

    @staticmethod
    def forward(ctx: Any, run: tuple[_Stage, ...], x: Tensor, *weights: Tensor | None) -> Tensor:
        kept: list[Tensor | None] = []
        given, own = x, False
        for stage, its in _with_weights(run, weights):
            x, saved = stage.forward(x, its, own)
            kept.append(saved)
            own = own or not isinstance(stage, _Flatten)
        ctx.run = run
        ctx.save_for_backward(given, *kept, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: tuple[_Stage, ...] = ctx.run
        x, *saved = ctx.saved_tensors  # this also finds out where something was written over
        kept, weights = saved[: len(run)], saved[len(run) :]
        wanted: tuple[bool, ...] = ctx.needs_input_grad
        if torch.is_grad_enabled():  # gradients of gradients: by the layers' own
            return _differentiable(run, x, weights, grads[0], wanted)
        out: list[Tensor | None] = [None] * len(wanted)
        grad: Tensor | None = grads[0].contiguous()
        at = len(wanted)
        for number, (stage, its) in reversed(list(enumerate(_with_weights(run, weights)))):
            assert grad is not None
            for_x = number > 0 or wanted[1]
            if its:
                at -= 2
                which = for_x, wanted[at], wanted[at + 1]
                grad, out[at], out[at + 1] = stage.backward(kept[number], its, grad, which)
            elif for_x:
                grad, _, _ = stage.backward(kept[number], its, grad, (True, False, False))
        out[1] = grad if wanted[1] else None
        return tuple(out)


def _with_weights(run: Sequence[_Stage], weights: Sequence[Tensor | None]) -> Iterator[tuple[_Stage, Weights]]:
    """Every stage with its own of the run's weights and biases: those it had in the forward pass, whatever its layer
    holds by now."""
    at = 0
    for stage in run:
        number = len(stage.weights())
        yield stage, tuple(weights[at : at + number])
        at += number


def _differentiable(
    run: Sequence[_Stage], x: Tensor, weights: Sequence[Tensor | None], grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    tensors = [None, x, *weights]
    of = [t for t, needed in zip(tensors, wanted, strict=True) if needed and t is not None]
    with torch.enable_grad():
        y = x
        for stage, its in _with_weights(run, weights):
            names = ("weight" if type(stage.layer) is nn.Linear else "weight_kept", "bias")
            own = {name: t for name, t in zip(names, its, strict=False) if t is not None}
            y = torch.func.functional_call(stage.layer, own, (y,)) if own else stage.layer(y)
        found = iter(torch.autograd.grad(y, of, grad, create_graph=True))
    return tuple(next(found) if needed and t is not None else None for t, needed in zip(tensors, wanted, strict=True))
