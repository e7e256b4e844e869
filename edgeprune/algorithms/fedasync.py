"""FedAsync (Xie et al., 2019, arXiv 1903.03934): nobody waits; every update is mixed in when it arrives.

    w <- (1 - alpha_t) w + alpha_t w_c        alpha_t = mixing * s(tau)        tau: rounds since c was sent its weights

A round is one update. Clients may train with FedProx's pull (``prox``), as the paper has it. s: staleness.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from edgeprune.algorithms.barrier import NONE, Barrier
from edgeprune.algorithms.clients import ClientSide, assign_plans
from edgeprune.algorithms.protocol import Assignment, Setting, State, Update
from edgeprune.algorithms.staleness import Discount, Kind
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan


@dataclass(frozen=True)
class FedAsync(ClientSide):
    """``mixing`` is alpha; ``staleness``, ``staleness_a`` and ``staleness_b`` choose s (staleness.py)."""

    mixing: float = 0.6
    staleness: Kind = "polynomial"
    staleness_a: float = 0.5
    staleness_b: int = 4
    calibrate: int = 0

    name: ClassVar[str] = "fedasync"
    barrier: ClassVar[Barrier] = NONE

    def __post_init__(self) -> None:
        self.check_clients()
        if not 0 < self.mixing <= 1:
            raise EdgePruneError(f"algorithm.mixing is {self.mixing}; it is the new weights' share, in (0, 1]")
        self.discount()

    def discount(self) -> Discount:
        """s."""
        return Discount(self.staleness, self.staleness_a, self.staleness_b)

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody holds everything."""
        return State(0, model, dict.fromkeys(setting.clients, SubmodelPlan.full(setting.graph)))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """The global model to whoever is idle."""
        return assign_plans(setting, state, self.participants(setting, state.round), self.job())

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Mix them in, one after the other."""
        model, share = dict(state.model), self.discount()
        for update in updates:
            alpha = self.mixing * share(update.staleness)
            for name, old in model.items():
                new = update.state[name]
                model[name] = torch.lerp(old, new, alpha) if old.is_floating_point() else torch.maximum(old, new)
        return replace(state, round=state.round + 1, model=model)
