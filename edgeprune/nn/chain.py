"""A sequence of layers whose kernels run one after the other as a single node of autograd.

With small batches a training step costs as much around the kernels as in them: each layer is a call of a module, a node
of autograd, an activation's own pass. ``Chain`` is nn.Sequential that runs masked layers, and ReLU, max pooling,
flattening and full linear layers behind the first of them, in one function, forward and backward. Values and gradients
are those of nn.Sequential to the bit; gradients of gradients go through the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from edgeprune.nn.chain_stages import Flatten, Shape, Sparse, Stage, looks_of, stage_of, with_weights
from edgeprune.ops import crossover, masked, observers


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
                self._plans.pop(next(iter(self._plans)), None)
        return plan(x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

    def _together(self, x: Tensor) -> bool:
        """Somebody learns from this call, and nobody but autograd has to hear of what happens inside."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if not _plain(x) or _has_any_global_hook():
            return False
        return not any(
            m._forward_pre_hooks
            or m._forward_hooks
            or m._backward_pre_hooks
            or m._backward_hooks
            or "forward" in m.__dict__
            for m in self
        )


_MOST = 4  # shapes of inputs whose plans are kept: a training has two sizes of batches


def _plain(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_cpu and masked.quick(x, x, None)


class _Plan:
    """For inputs of one shape: which layers run together, from the first sparse product on; some go ``before``, and the
    ``rest`` follow, one by one."""

    def __init__(self, layers: Iterable[nn.Module], shape: Shape) -> None:
        self.layers = tuple(layers)
        stages: list[Stage] = []
        for layer in self.layers:
            stage = stage_of(layer, shape)
            if stage is None:
                break
            stages.append(stage)
            shape = stage.shape
        first = next((i for i, stage in enumerate(stages) if isinstance(stage, Sparse)), len(stages))
        while stages and isinstance(stages[-1], Flatten):  # a view that leaves could not be written to
            stages.pop()
        self.run = tuple(stages[first:])
        self.before = self.layers[:first]
        self.rest = self.layers[first + len(self.run) :]
        self._made_in = _circumstances()
        self._made_for = [(layer, looks) for layer in self.layers if (looks := looks_of(layer))]

    def holds(self, layers: Iterable[nn.Module]) -> bool:
        """Whether the layers, and what decides how they run, are as they were when this was made."""
        if self._made_in != _circumstances() or self.layers != tuple(layers):
            return False
        return all(looks_of(layer) == looks for layer, looks in self._made_for)

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.before:
            x = layer(x)
        if self.run:
            x = _Together.apply(self.run, x, *(t for stage in self.run for t in stage.weights()))
        for layer in self.rest:
            x = layer(x)
        return x


def _circumstances() -> tuple[object, ...]:
    """What the choice between sparse and dense depends on beside the layers."""
    return torch.get_num_threads(), crossover.in_force()


class _Together(torch.autograd.Function):
    """A run as one node. It keeps what its layers' own would: inputs and weights of products, outputs of ReLU, places
    of maxima."""

    @staticmethod
    def forward(ctx: Any, run: tuple[Stage, ...], x: Tensor, *weights: Tensor | None) -> Tensor:
        kept: list[Tensor | None] = []
        for stage, its in with_weights(run, weights):
            x, saved = stage.forward(x, its)
            kept.append(saved)
        ctx.run, ctx.biases = run, weights[1::2]  # whose values no gradient needs
        ctx.save_for_backward(*kept, *weights[::2])
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: tuple[Stage, ...] = ctx.run
        saved = ctx.saved_tensors  # this also finds out where something was written over
        kept = saved[: len(run)]
        weights = [t for both in zip(saved[len(run) :], ctx.biases, strict=True) for t in both]
        wanted: tuple[bool, ...] = ctx.needs_input_grad
        if torch.is_grad_enabled() or observers.batched(grads[0]):  # gradients of gradients: by the layers' own
            return _differentiable(run, kept[0], weights, grads[0], wanted)
        out: list[Tensor | None] = [None] * len(wanted)
        grad: Tensor | None = grads[0].resolve_neg().contiguous()
        at = len(wanted)
        for number, (stage, its) in reversed(list(enumerate(with_weights(run, weights)))):
            assert grad is not None
            which = True, False, False
            if its:
                at -= 2
                which = number > 0 or wanted[1], wanted[at], wanted[at + 1]
                grad, out[at], out[at + 1] = stage.backward(kept[number], its, grad, which)
            else:
                grad, _, _ = stage.backward(kept[number], its, grad, which)
        out[1] = grad
        return tuple(out)


def _differentiable(
    run: Sequence[Stage], x: Tensor, weights: Sequence[Tensor | None], grad: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Names of their own: a weight may come twice, and x may have been made of the weights.
        given, *lent = [None if t is None else t.view_as(t) for t in (x, *weights)]
        assert given is not None
        y = given
        for stage, its in with_weights(run, lent):
            stage.check()
            names = ("weight" if type(stage.layer) is nn.Linear else "weight_kept", "bias")
            own = {name: t for name, t in zip(names, its, strict=False) if t is not None}
            y = torch.func.functional_call(stage.layer, own, (y,)) if own else stage.layer(y)
        slots = [None, given, *lent]
        of = [t for t, needed in zip(slots, wanted, strict=True) if needed and t is not None]
        found = iter(torch.autograd.grad(y, of, grad, create_graph=again))
    return tuple(next(found) if needed and t is not None else None for t, needed in zip(slots, wanted, strict=True))
