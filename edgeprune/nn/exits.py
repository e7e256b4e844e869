"""Exit heads: a classifier behind an early part of a network, so that a device may hold that part alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgePruneError, shown


class ExitHead(nn.Module):
    """Mean over all positions, then one linear layer: features [N, channels, ...] (or [N, ..., width] with
    ``channels_last``) to [N, classes]."""

    def __init__(self, channels: int, classes: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last, self.fc = channels_last, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.movedim(-1, 1)
        return self.fc(x.flatten(2).mean(2) if x.dim() > 2 else x)


Loss = Callable[[Any, Tensor], Tensor]
Reduction = Literal["batchmean", "mean"]


def at_every_exit(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The sum of ``loss_of(output, target)`` over a tuple of outputs, or the loss of a single one."""

    def loss(output: Any, target: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return loss_of(output, target)
        return torch.stack([loss_of(one, target) for one in output]).sum()

    return loss


def with_transfer(loss_of: Loss, weight: float, temperature: float, reduction: Reduction = "batchmean") -> Loss:
    """``loss_of`` plus ``weight`` T^2 times the sum, over all exits but the deepest, of KL(exit || deepest).

    Both are softened by T; the deepest is not taught by the others (detached). "batchmean" is the mean over
    predictions; "mean" divides by the number of classes too (the public code of Co-S2P).
    """

    def loss(output: Any, target: Tensor) -> Tensor:
        total = loss_of(output, target)
        if isinstance(output, Tensor) or len(output) < 2:
            return total
        return total + weight * temperature**2 * _divergence(output, temperature, reduction)

    return loss


def _divergence(outputs: Sequence[Tensor], temperature: float, reduction: Reduction) -> Tensor:
    flat = [(one / temperature).flatten(0, -2) for one in outputs]
    teacher = flat[-1].detach().softmax(-1)
    found = [functional.kl_div(one.log_softmax(-1), teacher, reduction="batchmean") for one in flat[:-1]]
    return torch.stack(found).sum() / (teacher.shape[-1] if reduction == "mean" else 1)


class _Reached(Exception):
    """The last exit that the model still has; nothing behind it needs to run."""


class Exits(nn.Module):
    """A model with heads behind some of its modules.

    ``heads``: by the path of a module ("layer2") the head that reads its output, in the order of the network.
    In training the result is a tuple, first the exits' outputs, then the model's own; in evaluation the last of them
    alone. ``tails`` names, by exit, the modules that run only after it; a sub-model whose plan leaves them out
    (``plan.drop("after layer2")``) ends at that exit: its last output is that head's.

    Raises EdgePruneError when a path is not a module of the model or is not run once, or paths are not in that order.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, nn.Module], example_inputs: tuple[Any, ...] | Tensor):
        super().__init__()
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        if not isinstance(model, nn.Module):
            raise EdgePruneError(f"Exits: the model is {shown(model)}; give a torch.nn.Module")
        if not isinstance(heads, Mapping) or not all(isinstance(head, nn.Module) for head in heads.values()):
            raise EdgePruneError(f"Exits: heads is {shown(heads)}; give a module for each path, in a dict")
        keys: dict[str, str] = {}
        for path in heads:
            if (other := keys.setdefault(path.replace(".", "_"), path)) != path:
                raise EdgePruneError(f"exits at {other!r} and {path!r} would have one name; rename a module")
        self.model, self.paths = model, tuple(heads)
        self.heads = nn.ModuleDict({path.replace(".", "_"): head for path, head in heads.items()})
        order = self._order(inputs)
        self.tails: dict[str, tuple[str, ...]] = {}
        for number, path in enumerate(self.paths):
            if order.count(path) != 1:
                raise EdgePruneError(f"an exit at {path!r}: it must be a module of the model that is run once")
            done = set(order[: order.index(path) + 1])
            held = [n for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
            after = [n for n in held if not any(d == n or d.startswith(f"{n}.") or n.startswith(f"{d}.") for d in done)]
            top = [n for n in after if not any(n.startswith(f"{m}.") for m in after)]
            heads_after = [f"heads.{p.replace('.', '_')}" for p in self.paths[number + 1 :]]
            self.tails[path] = (*(f"model.{n}" for n in top), *heads_after)
            if not top:
                raise EdgePruneError(f"an exit at {path!r}: nothing with parameters runs after it")
            if number and order.index(path) < order.index(self.paths[number - 1]):
                before = self.paths[number - 1]
                raise EdgePruneError(f"an exit at {path!r}: it runs before {before!r}; order the heads as they run")

    def _order(self, inputs: tuple[Any, ...]) -> list[str]:
        """The paths of all modules in the order in which they end."""
        order: list[str] = []
        hooks = [
            m.register_forward_hook(lambda module, args, out, name=name: order.append(name))
            for name, m in self.model.named_modules()
            if name
        ]
        training = self.model.training
        try:
            with torch.no_grad():
                self.model.eval()(*inputs)
        finally:
            self.model.train(training)
            for hook in hooks:
                hook.remove()
        return order

    @property
    def last(self) -> str | None:
        """The exit at which this model ends, None where it is complete."""
        for path, tail in self.tails.items():
            if all(next(self.get_submodule(name).parameters(), None) is None for name in tail):
                return path
        return None

    def forward(self, *inputs: Any) -> Any:
        last, outputs, thread = self.last, [], threading.get_ident()

        def at(path: str) -> Any:
            def hook(module: nn.Module, args: Any, out: Tensor) -> None:
                if threading.get_ident() != thread:
                    return  # the same model runs there too, with hooks of its own
                if self.training or path == last:
                    outputs.append(self.heads[path.replace(".", "_")](out))
                if path == last:
                    raise _Reached

            return hook

        hooks = [self.model.get_submodule(path).register_forward_hook(at(path)) for path in self.paths]
        try:
            outputs.append(self.model(*inputs))
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(outputs) if self.training else outputs[-1]
