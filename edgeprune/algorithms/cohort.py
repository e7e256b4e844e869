"""Many clients trained at once on one device (nn/batched.py): what training.py and readjustment.py do for one.

The same minibatches in the same order, the same SGD, the same masks and moves; what differs is rounding. Under a mask
this computes densely with zeros, so it says nothing of a masked kernel's time: it is for simulating fleets fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.readjustment import moved
from edgeprune.algorithms.training import LocalData, Trained, on_softmax
from edgeprune.nn.batched import BatchedBatchNorm, load_states, split_states, unpacked_masks


class Cohort:
    """Clients with equally many samples each, their weights on ``device``.

    ``model``: :func:`~edgeprune.nn.batched.batched` for as many; what it held is overwritten. ``states``: the dense
    weights each received; ``masks``: by the weight's name a bitmap for each client. The clients' normalised data stay
    on the device while they train.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Mapping[str, Tensor]],
        masks: Mapping[str, Sequence[Tensor]],
        data: Sequence[LocalData],
        loss_of: Callable[[Tensor, Tensor], Tensor],
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self._model = model
        load_states(model, states)
        self._recipe, self._device = recipe, device
        self._loss_of = torch.func.vmap(on_softmax(loss_of) if recipe.softmax else loss_of)
        x = torch.stack([part.x for part in data]).to(device)
        self._x = data[0].normalise(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        self._y = torch.stack([part.y for part in data]).to(device)
        self._row = torch.arange(len(data), device=device)[:, None]
        self._parameters = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        norms = (m for m in self._model.modules() if isinstance(m, BatchedBatchNorm))
        self._scales = [norm.weight for norm in norms if norm.weight is not None]
        self._optimizer = torch.optim.SGD(
            list(self._parameters.values()),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            **{"fused" if device.type == "cuda" else "foreach": True},
        )
        self._received: dict[str, Tensor] = {}
        if recipe.prox and not recipe.prox_detached:
            self._received = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._bits = {name: list(each) for name, each in masks.items()}
        self._masks = {name: self._unpacked(name) for name in masks}

    @property
    def masks(self) -> dict[str, list[Tensor]]:
        """By the weight's name, each client's bitmap."""
        return self._bits

    def states(self) -> list[dict[str, Tensor]]:
        """Each client's dense weights, on the CPU; zero where its mask keeps nothing."""
        return split_states(self._model)

    def train(self, seeds: Sequence[int], job: Job) -> list[Trained]:
        """All of the recipe's epochs, each client's batches drawn from its seed; masks move after epoch ``job.after``.

        As :func:`train_local`. Nothing waits for the device between two steps.
        """
        recipe, samples = self._recipe, self._y.shape[1]
        order = self._order(seeds, samples)
        total = torch.zeros(len(seeds), dtype=torch.float64, device=self._device)
        steps, seen = 0, 0
        for epoch in range(recipe.epochs):
            if recipe.steps and steps >= recipe.steps:
                break
            total.zero_()
            seen = 0
            last = order[epoch][:, :0]
            for batch in order[epoch].split(recipe.batch_size, dim=1):
                if batch.shape[1] == 1 < min(recipe.batch_size, samples):
                    continue
                if recipe.steps and steps >= recipe.steps:
                    break
                total += self._step(batch) * batch.shape[1]
                seen, steps, last = seen + batch.shape[1], steps + 1, batch
            if job.readjust and self._masks and epoch + 1 == job.after and seen:
                self._readjust(job, last)
        return [Trained(loss / max(seen, 1), steps) for loss in total.tolist()]

    def dense_gradients(self, batch: Tensor | None = None) -> dict[str, Tensor]:
        """dL/dw [clients, ...] of every masked layer's dense weight, over all samples or those of ``batch``."""
        samples = self._y.shape[1]
        whole = torch.arange(samples, device=self._device).expand(len(self._y), -1) if batch is None else batch
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}
        weights = [self._parameters[name] for name in self._masks]
        total = [torch.zeros_like(weight) for weight in weights]
        for part in whole.split(self._recipe.batch_size, dim=1):
            if part.shape[1] == 1 < min(self._recipe.batch_size, whole.shape[1]):
                continue
            parts = torch.autograd.grad(self._losses(part).sum(), weights, materialize_grads=True)
            for one, gradient in zip(total, parts, strict=True):
                one += gradient * (part.shape[1] / whole.shape[1])
        for name, b in self._model.named_buffers():
            b.copy_(buffers[name])
        return dict(zip(self._masks, total, strict=True))

    def _order(self, seeds: Sequence[int], samples: int) -> Tensor:
        """[epochs, clients, samples], on the device: what each client's own generator draws."""
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn += [torch.randperm(samples, generator=generator) for _ in range(self._recipe.epochs)]
        return torch.stack(drawn).view(len(seeds), -1, samples).transpose(0, 1).contiguous().to(self._device)

    def _losses(self, batch: Tensor) -> Tensor:
        """Each client's mean loss on its ``batch`` [clients, batch] of places."""
        out = self._model(self._x[self._row, batch].flatten(0, 1))
        losses: Tensor = self._loss_of(out.unflatten(0, batch.shape), self._y[self._row, batch])
        return losses

    def _step(self, batch: Tensor) -> Tensor:
        recipe = self._recipe
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        losses.sum().backward()
        with torch.no_grad():
            if recipe.bn_l1:
                for scale in self._scales:
                    if scale.grad is not None:
                        scale.grad.add_(scale.sign(), alpha=recipe.bn_l1)
            for name, received in self._received.items():
                gradient = self._parameters[name].grad
                if gradient is not None:
                    gradient.add_(self._parameters[name] - received, alpha=recipe.prox)
            for name, mask in self._masks.items():
                gradient = self._parameters[name].grad
                if gradient is not None:
                    gradient.mul_(mask)
        self._optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def _readjust(self, job: Job, batch: Tensor) -> None:
        """Each client's masks move as readjustment.py moves them, by the same functions, on the CPU: ties alike."""
        with torch.enable_grad():
            gradients = self.dense_gradients(batch if job.growth_data == "batch" else None)
        for name, gradient in gradients.items():
            parameter = self._parameters[name]
            each = zip(parameter.detach().cpu(), gradient.cpu(), self._bits[name], strict=True)
            moves = [moved(weight, mask, dense, job) for weight, dense, mask in each]
            stay = unpacked_masks([stay for stay, _ in moves], parameter.shape[1:], self._device)
            self._bits[name] = [new for _, new in moves]
            self._masks[name] = self._unpacked(name)
            # What is grown starts at zero, without momentum, and FedProx pulls it to zero.
            parameter.mul_(stay)
            if name in self._received:
                self._received[name].mul_(stay)
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                momentum.mul_(stay)

    def _unpacked(self, name: str) -> Tensor:
        return unpacked_masks(self._bits[name], self._parameters[name].shape[1:], self._device)
