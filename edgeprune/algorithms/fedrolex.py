"""FedRolex (Alam et al., 2022, arXiv 2212.01548): fixed widths as in HeteroFL, but the window of channels rolls.

    in round t a client of rate r holds, of a layer of C channels, the channels  t, t + 1, ..., t + ceil(r C) - 1  mod C

So every channel of the large model is trained by small clients too, though not all in one round. Merging is HeteroFL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgeprune.algorithms.heterofl import HeteroFL, channels
from edgeprune.algorithms.protocol import Assignment, Setting, State
from edgeprune.pruning import SubmodelPlan


@dataclass(frozen=True)
class FedRolex(HeteroFL):
    """HeteroFL's fields."""

    name: ClassVar[str] = "fedrolex"

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """The windows of the first round."""
        return replace(super().init(setting, model), plans=self._windows(setting, 0))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Each client of the round its window."""
        return super().assign(setting, replace(state, plans=self._windows(setting, state.round)))

    def _windows(self, setting: Setting, round_: int) -> dict[str, SubmodelPlan]:
        made = {rate: window(setting, rate, round_) for rate in self.rates}
        clients = len(setting.clients)
        return {c: made[self.rates[i * len(self.rates) // clients]] for i, c in enumerate(setting.clients)}


def window(setting: Setting, rate: float, start: int) -> SubmodelPlan:
    """``rate`` of the channels of every group from ``start`` on, around the end; at least one."""
    groups = setting.graph.map.groups
    kept = {
        name: tuple(sorted((start + i) % size for i in range(channels(rate, size)))) for name, size in groups.items()
    }
    return SubmodelPlan(setting.graph.map, kept)
