"""What runs on the device: plain SGD on its own data, the same on every machine for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.algorithms.protocol import Recipe


@dataclass(frozen=True)
class LocalData:
    """One client's own samples: ``x`` [N, ...] as stored, ``y`` [N]; ``normalise`` makes a batch a network's input."""

    x: Tensor
    y: Tensor
    normalise: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return int(self.y.shape[0])


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
) -> Trained:
    """Train ``model`` in place for ``recipe.epochs``, or ``recipe.steps`` if that is less.

    Batches are drawn by a generator of ``seed`` alone.

    A last batch of a single sample is dropped (batch-norm has no variance there), unless it is all there is.
    """
    order = torch.Generator().manual_seed(seed)
    # fork_rng: dropout and its like draw from the global generator; the caller's stream stays untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(model, data, loss_of, recipe, order)


def _train(
    model: nn.Module,
    data: LocalData,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    order: torch.Generator,
) -> Trained:
    step = make_step(model, loss_of, recipe)
    model.train()
    steps, total, seen = 0, 0.0, 0
    for _ in range(recipe.epochs):
        if recipe.steps and steps >= recipe.steps:
            break
        total, seen = 0.0, 0
        for batch in torch.randperm(len(data), generator=order).split(recipe.batch_size):
            if len(batch) == 1 and len(data) > 1:
                continue
            if recipe.steps and steps >= recipe.steps:
                break
            loss = step(data.normalise(data.x[batch]), data.y[batch])
            total, seen, steps = total + float(loss) * len(batch), seen + len(batch), steps + 1
    return Trained(total / max(seen, 1), steps)


def make_step(
    model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], recipe: Recipe
) -> Callable[[Tensor, Tensor], Tensor]:
    """One optimiser step on one batch, with a fresh momentum buffer: (x, y) -> detached loss.

    The virtual clock's latency table times this very function.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scales = [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    optimiser = torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=True
    )

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(model(x), y)
        loss.backward()
        if recipe.bn_l1:
            # The subgradient of bn_l1 * sum |scale|, added by hand: cheaper than carrying it through autograd.
            with torch.no_grad():
                for scale in scales:
                    if scale.grad is not None:
                        scale.grad.add_(scale.sign(), alpha=recipe.bn_l1)
        optimiser.step()
        return loss.detach()

    return step
