"""FedAsync (Xie et al., 2019, arXiv 1903.03934): nobody waits; every update is mixed in when it arrives.

    w <- (1 - alpha_t) w + alpha_t w_c        alpha_t = mixing * s(tau)        tau: rounds since c was sent its weights

A round is one update. Clients may train with FedProx's pull (``prox``), as the paper has it. s: staleness.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from edgeprune.algorithms.barrier import NONE, Barrier
from edgeprune.algorithms.clients import WholeModel
from edgeprune.algorithms.protocol import Setting, State, Update
from edgeprune.algorithms.staleness import Discounting
from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class FedAsync(Discounting, WholeModel):
    """``mixing`` is alpha; the other fields: clients.py, staleness.py."""

    mixing: float = 0.6
    calibrate: int = 0

    name: ClassVar[str] = "fedasync"
    barrier: ClassVar[Barrier] = NONE

    def __post_init__(self) -> None:
        self.check_clients()
        if not 0 < self.mixing <= 1:
            raise EdgePruneError(f"algorithm.mixing is {self.mixing}; it is the new weights' share, in (0, 1]")
        self.check_staleness()

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Mix them in, one after the other."""
        model = dict(state.model)
        for update in updates:
            alpha = self.mixing * self.discount(update.staleness)
            for name, old in model.items():
                new = update.state[name]
                model[name] = torch.lerp(old, new, alpha) if old.is_floating_point() else torch.maximum(old, new)
        return replace(state, round=state.round + 1, model=model)
