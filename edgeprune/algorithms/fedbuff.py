"""A buffered baseline after FedBuff (Nguyen et al., 2022, arXiv 2106.06639): the server steps once K answers are in.

    w <- w + server_lr / K  sum_c s(tau_c) (w_c - w_c,received)            s: staleness.py, (tau + 1)^-1/2 by default

FedBuff's clients are many more than train at a time, and who has answered is replaced at once by another. Here the
fleet is all there is: who has answered waits for the step, so one client is at most once in a buffer. With ``grace``
the buffer also takes who comes shortly after the K-th.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from edgeprune.algorithms.barrier import Barrier
from edgeprune.algorithms.clients import WholeModel
from edgeprune.algorithms.protocol import Setting, State, Update
from edgeprune.algorithms.staleness import Discounting
from edgeprune.errors import EdgePruneError
from edgeprune.pruning.robust import STATISTICS


@dataclass(frozen=True)
class FedBuff(Discounting, WholeModel):
    """``buffer`` is K, in clients (at least 1); ``grace``: barrier.py; the other fields: staleness.py."""

    buffer: int = 3
    grace: float = 0.0
    server_lr: float = 1.0
    calibrate: int = 0

    name: ClassVar[str] = "fedbuff"

    def __post_init__(self) -> None:
        self.check_clients()
        if self.buffer < 1:
            raise EdgePruneError(f"algorithm.buffer is {self.buffer}; give a number of answers, 1 or more")
        if not self.server_lr > 0:
            raise EdgePruneError(f"algorithm.server_lr is {self.server_lr}; it must be greater than 0")
        self.check_staleness()
        _ = self.barrier

    @property
    def barrier(self) -> Barrier:
        """K of those who are asked."""
        return Barrier(self.buffer, self.grace)

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """One step along the buffered changes."""
        if not updates:
            return replace(state, round=state.round + 1)
        model = dict(state.model)
        for name, old in state.model.items():
            if not old.is_floating_point():
                model[name] = torch.stack([old, *(u.state[name] for u in updates)]).amax(0)
            elif name.endswith(STATISTICS):  # of the data: a change of them has no meaning elsewhere
                model[name] = torch.stack([u.state[name] for u in updates]).mean(0)
            else:
                step = sum(self.discount(u.staleness) * (u.state[name] - u.received[name]) for u in updates)
                model[name] = old + self.server_lr / len(updates) * step
        return replace(state, round=state.round + 1, model=model)
