"""What runs on the device: plain SGD on its own data, the same on every machine for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.algorithms.protocol import Recipe

AfterEpoch = Callable[[int, torch.optim.Optimizer, Tensor], None]

_NORMALISED_ONCE = 1 << 20  # values: 4 MB in float32, 8 in int64, which every device has


@dataclass(frozen=True)
class LocalData:
    """One client's own samples: ``x`` [N, ...] as stored, ``y`` [N]; ``normalise`` makes a batch a network's input."""

    x: Tensor
    y: Tensor
    normalise: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def ready(self) -> Callable[[Tensor], Tensor]:
        """Gives the inputs of samples by their indices, for many passes: few samples are normalised once, where that
        is value by value (``by_value``) and not, say, an augmentation that draws anew each time."""
        if self.x.numel() > _NORMALISED_ONCE or not getattr(self.normalise, "by_value", False):
            return lambda batch: self.normalise(self.x[batch])
        x = self.normalise(self.x)
        return lambda batch: x[batch]


@dataclass(frozen=True)
class Trained:
    """Mean training loss of the last epoch, and optimiser steps done."""

    loss: float
    steps: int


def train_local(
    model: nn.Module,
    data: LocalData,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    seed: int,
    after_epoch: AfterEpoch | None = None,
) -> Trained:
    """Train ``model`` in place for ``recipe.epochs``, or ``recipe.steps`` if that is less.

    Batches are drawn by a generator of ``seed`` alone. ``after_epoch(epoch, optimizer, batch)`` is called after each
    epoch (counted from 1) with the indices of its last batch; it may change masks.

    A last batch of a single sample is dropped (batch-norm has no variance there), unless it is all there is or
    batches of one were asked for.
    """
    order = torch.Generator().manual_seed(seed)
    # fork_rng: dropout and its like draw from the global generator; the caller's stream stays untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(model, data, loss_of, recipe, order, after_epoch)


def _train(
    model: nn.Module,
    data: LocalData,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    order: torch.Generator,
    after_epoch: AfterEpoch | None,
) -> Trained:
    step = make_step(model, loss_of, recipe)
    inputs_of = data.ready()
    model.train()
    steps, total, seen = 0, 0.0, 0
    for epoch in range(1, recipe.epochs + 1):
        if recipe.steps and steps >= recipe.steps:
            break
        total, seen, last = 0.0, 0, torch.empty(0, dtype=torch.int64)
        for batch in torch.randperm(len(data), generator=order).split(recipe.batch_size):
            if len(batch) == 1 < min(recipe.batch_size, len(data)):
                continue
            if recipe.steps and steps >= recipe.steps:
                break
            loss = step(inputs_of(batch), data.y[batch])
            total, seen, steps, last = total + float(loss) * len(batch), seen + len(batch), steps + 1, batch
        if after_epoch is not None and seen:
            after_epoch(epoch, step.optimizer, last)
    return Trained(total / max(seen, 1), steps)


def planned_steps(samples: int, recipe: Recipe) -> int:
    """Optimiser steps that ``train_local`` takes over so many samples."""
    full, left = divmod(samples, recipe.batch_size)
    steps = recipe.epochs * max(1, full + (left > 1))
    return min(steps, recipe.steps) if recipe.steps else steps


class Step:
    """One optimiser step on one batch, with a fresh momentum buffer: ``step(x, y)`` gives the detached loss.

    The virtual clock's latency table times this very call.
    """

    def __init__(self, model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], recipe: Recipe) -> None:
        self._model, self._loss_of, self._recipe = model, on_softmax(loss_of) if recipe.softmax else loss_of, recipe
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine)
        self._scales = [norm.weight for norm in norms]
        self.optimizer = torch.optim.SGD(
            self._parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            **{"fused" if _fusible(model) else "foreach": True},
        )
        if recipe.momentum:
            for parameter in self._parameters:
                # As the first step would, but for every parameter: one may get its first gradient later.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        if recipe.prox and not recipe.prox_detached:
            for parameter in self._parameters:
                # Kept as optimiser state: where a mask moves, it follows as momentum does (nn.layers.set_mask).
                self.optimizer.state[parameter]["received"] = parameter.detach().clone()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        recipe = self._recipe
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(self._model(x), y)
        loss.backward()
        with torch.no_grad():
            # Added to the gradient by hand: cheaper than carrying these terms through autograd.
            if recipe.bn_l1:  # the subgradient of bn_l1 * sum |scale|
                for scale in self._scales:
                    if scale.grad is not None:
                        scale.grad.add_(scale.sign(), alpha=recipe.bn_l1)
            if recipe.prox and not recipe.prox_detached:  # the gradient of prox / 2 |w - w_received|^2
                for parameter in self._parameters:
                    if parameter.grad is not None:
                        away = parameter - self.optimizer.state[parameter]["received"]
                        parameter.grad.add_(away, alpha=recipe.prox)
        if recipe.momentum:
            self._check_momenta()
        self.optimizer.step()
        return loss.detach()

    def _check_momenta(self) -> None:
        """One of another size makes torch's fused SGD read and write out of bounds; it does not look."""
        for parameter in self._parameters:
            momentum = self.optimizer.state[parameter]["momentum_buffer"]
            if momentum.shape != parameter.shape:
                raise RuntimeError(
                    f"a parameter of shape {tuple(parameter.shape)} has a momentum of shape {tuple(momentum.shape)}; "
                    "a mask moved without the optimizer: layer.set_mask(mask, optimizer)"
                )


make_step = Step


def _fusible(model: nn.Module) -> bool:
    """Whether torch's fused SGD, the fastest, takes the model's parameters and gradients: it walks through memory."""
    if any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse for module in model.modules()):
        return False
    return all(p.is_floating_point() and p.is_contiguous() for p in model.parameters() if p.requires_grad)


def on_softmax(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of softmax outputs, at every exit: what comes of a softmax in front of a cross-entropy that has its own.

    Classes are the last dimension where every row before it has a target (characters), else the second.
    """

    def shares(output: Tensor, target: Tensor) -> Tensor:
        return output.softmax(dim=-1 if output.shape[:-1] == target.shape else 1)

    def loss(output: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
        if isinstance(output, tuple):
            output = tuple(shares(each, target) for each in output)
        else:
            output = shares(output, target)
        return loss_of(output, target)  # type: ignore[arg-type]

    return loss
