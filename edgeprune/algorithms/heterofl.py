"""HeteroFL (Diao et al., 2021, arXiv 2010.01264): every client a fixed width; narrow models are the first channels.

    client c of rate r_c holds the first r_c of the channels of every layer and trains that smaller model
    w[i] = sum_c n_c w_c[i] / sum_c n_c  over those who hold i; batch-norm statistics are measured afterwards

Rates are dealt over the fleet from strongest to weakest device. Left out: the scaler (1 / r on activations while
training; a batch-norm behind every convolution undoes it) and the masking of the loss to the classes a client has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgeprune.algorithms.averaging import average
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import ClientSide, assign_plans
from edgeprune.algorithms.protocol import Assignment, Setting, State, Update
from edgeprune.algorithms.running_mean import Summing
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan


@dataclass(frozen=True)
class HeteroFL(ClientSide):
    """``rates``: shares of the channels; the fleet's devices, in its order, are cut into as many equal groups."""

    rates: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    calibrate: int = 3

    name: ClassVar[str] = "heterofl"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        if not self.rates or not all(isinstance(r, (int, float)) and 0 < r <= 1 for r in self.rates):
            raise EdgePruneError(f"algorithm.rates is {list(self.rates)}; give shares of the channels, in (0, 1]")

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Every client its width, for good."""
        made = {rate: first_channels(setting, rate) for rate in self.rates}
        clients = len(setting.clients)
        plans = {c: made[self.rates[i * len(self.rates) // clients]] for i, c in enumerate(setting.clients)}
        return State(0, model, plans)

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Each client of the round its sub-model."""
        return assign_plans(setting, state, self.participants(setting, state.round), self.job())

    def summing(self, setting: Setting, state: State) -> Summing | None:
        """The mean is all that a merge needs."""
        return Summing()

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """The mean over each weight's holders."""
        return replace(state, round=state.round + 1, model=average(state.model, updates))


def first_channels(setting: Setting, rate: float) -> SubmodelPlan:
    """The first ``rate`` of the channels of every group, at least one."""
    groups = setting.graph.map.groups
    return SubmodelPlan(setting.graph.map, {name: tuple(range(channels(rate, size))) for name, size in groups.items()})


def channels(rate: float, size: int) -> int:
    """ceil(``rate`` * ``size``), at least one; 0.55 of 100 are 55, whatever their product is in binary."""
    return max(1, math.ceil(rate * size - 1e-9))
