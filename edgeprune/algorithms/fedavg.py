"""Synchronous federated averaging (McMahan et al., 2017) and what is one step from it: the baselines.

    w-  = sum_c n_c w_c / sum_c n_c                                  over the clients of the round
    v  <- server_momentum v + (w - w-)       w <- w - server_lr v    FedAvgM (Hsu et al., 2019); 0 and 1: FedAvg

"FedAvgM" is said of two things. ``server_momentum`` is Hsu's; ``momentum`` is that of the clients' own SGD, started
anew every round, which is what FedDST's public code compares itself with. FedProx (Li et al., 2020) is ``prox``: the
clients' loss + prox / 2 |w_c - w|^2. ``upload`` and ``density`` < 1 make the clients send less (clients.py,
protocol.Job): float16, int8, or the largest share of the change, with ``feedback`` of what was not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from edgeprune.algorithms.averaging import MergeRule, average, check_averaging, summing
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import WholeModel
from edgeprune.algorithms.protocol import Job, Setting, State, Update
from edgeprune.algorithms.running_mean import Summing
from edgeprune.errors import EdgePruneError
from edgeprune.pruning.robust import STATISTICS

VELOCITY = "velocity/"


@dataclass(frozen=True)
class FedAvg(WholeModel):
    """Every client trains the whole model; the server takes the mean weighted by samples.

    Fields on the clients' side: clients.py. ``density``: share of the change that is sent, the largest (top-k).
    ``merge_rule``, ``trim`` and ``clip_norm``: averaging.py.
    """

    server_momentum: float = 0.0
    server_lr: float = 1.0
    density: float = 1.0
    calibrate: int = 0
    merge_rule: MergeRule = "mean"
    trim: float = 0.1
    clip_norm: float = 0.0

    name: ClassVar[str] = "fedavg"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        check_averaging(self.merge_rule, self.trim, self.clip_norm)
        if not 0 <= self.server_momentum < 1:
            raise EdgePruneError(f"algorithm.server_momentum is {self.server_momentum}; it must be in [0, 1)")
        if not self.server_lr > 0:
            raise EdgePruneError(f"algorithm.server_lr is {self.server_lr}; it must be greater than 0")
        if not 0 < self.density <= 1:
            raise EdgePruneError(f"algorithm.density is {self.density}; it is the share of the change sent, in (0, 1]")

    def job(self) -> Job:
        """The change, where less than all of it is sent."""
        own = super().job()
        return replace(own, change=own.change or self.density < 1, density=self.density)

    def summing(self, setting: Setting, state: State) -> Summing | None:
        """The mean is all that a merge needs."""
        return summing(self.merge_rule, clip_norm=self.clip_norm)

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """The mean, or a step of server momentum towards it."""
        mean = average(state.model, updates, rule=self.merge_rule, trim=self.trim, clip_norm=self.clip_norm)
        if (self.server_momentum == 0 and self.server_lr == 1) or not updates:
            return replace(state, round=state.round + 1, model=mean)
        model, tensors = dict(mean), dict(state.tensors)
        for name, new in mean.items():
            if not new.is_floating_point() or name.endswith(STATISTICS):
                continue  # statistics of the data have no momentum
            old = state.model[name]
            velocity = tensors.get(VELOCITY + name, torch.zeros_like(old)) * self.server_momentum + (old - new)
            tensors[VELOCITY + name] = velocity
            model[name] = old - self.server_lr * velocity
        return replace(state, round=state.round + 1, model=model, tensors=tensors)
