"""Networks of benchmarks/masked.py, and dense training under a mask as published codes do it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import edgeprune
from edgeprune.nn import masks


class _Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked_dense(sparse: nn.Module) -> nn.Module:
    """The same network as ``sparse``, dense, its weights multiplied by the masks in every forward pass."""
    dense = edgeprune.densify(sparse)
    for name, mask in masks(sparse).items():
        parametrize.register_parametrization(dense.get_submodule(name), "weight", _Mask(mask.float()))
    return dense


class Training:
    """One side's network, optimiser and batch; a call is one step and returns its loss."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, rate: float = 0.05) -> None:
        self.model = copy.deepcopy(model).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        self.x, self.labels = x, labels

    def __call__(self, chosen: Tensor | None = None) -> Tensor:
        x, labels = (self.x, self.labels) if chosen is None else (self.x[chosen], self.labels[chosen])
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state_bytes(self, names: set[str]) -> int:
        """Bytes of the named parameters, their gradients and the optimiser's state for them."""
        total = 0
        for name, parameter in self.model.named_parameters():
            if name in names:
                assert parameter.grad is not None
                state = [t for t in self.optimizer.state[parameter].values() if isinstance(t, Tensor)]
                total += sum(t.numel() * t.element_size() for t in (parameter, parameter.grad, *state))
        return total
