"""The mean of a round's updates, summed as they come: three models of memory, however many clients there are.

The sums are those of ``wire.Accumulator``: exact, so the order in which answers come changes no bit. An update with a
value far beyond the model's own (``REACH`` times) would cost all others their precision: it waits, whole, and is summed
apart at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from torch import Tensor

from edgeprune import wire
from edgeprune.algorithms.protocol import Update
from edgeprune.pruning.merge_gate import MergeMode
from edgeprune.pruning.robust import STATISTICS, clip_update

REACH = 64.0  # times the largest magnitude of a tensor, or times 1
REACH_OF_STATISTICS = 1024 * REACH  # from 0 and 1 they go to whatever the data have


@dataclass(frozen=True)
class Summing:
    """Which mean: what a client counts for where it holds nothing (averaging.average's ``mode``), and the L2 norm that
    its change is cut to before (0: not)."""

    mode: MergeMode = "unit"
    clip_norm: float = 0.0


class RunningMean:
    """The mean over updates of ``model``, of clients with at most these ``samples`` (by name)."""

    def __init__(self, model: Mapping[str, Tensor], samples: Mapping[str, int], how: Summing) -> None:
        self._model, self.how = model, how
        self._weights = dict(zip(samples, whole_weights(list(samples.values())), strict=True))
        self._sums = self._accumulator({n: _reach(n, t) for n, t in model.items() if t.is_floating_point()})
        self._large: list[Update] = []

    def add(self, update: Update) -> Update:
        """Count ``update``; what is left of it without its weights. Raises EdgePruneError, with nothing counted, where
        it does not fit the model."""
        if self.how.clip_norm:
            clipped = clip_update(self._model, update.plan, update.state, self.how.clip_norm)
            update = replace(update, state=clipped)
        try:
            self._add(self._sums, update)
        except wire.BeyondReachError:
            self._large.append(update)
        return replace(update, state={}, masks={}, gradient={}, received={})

    def finish(self) -> dict[str, Tensor]:
        """The mean, in new memory; nothing can be added after it."""
        beside = None
        if self._large:
            floating = [n for n, t in self._model.items() if t.is_floating_point()]
            beside = self._accumulator(
                {n: largest([u.state[n] for u in self._large if n in u.state]) for n in floating}
            )
            for update in self._large:
                self._add(beside, update)
            self._large = []
        return self._sums.finish(self._model, self.how.mode, beside)

    def _accumulator(self, reach: Mapping[str, float]) -> wire.Accumulator:
        return wire.Accumulator(self._model, total_weight=sum(self._weights.values()), reach=reach)

    def _add(self, sums: wire.Accumulator, update: Update) -> None:
        indices = {name: update.plan.indices(name) for name in update.state}
        sums.add(update.state, self._weights[update.client], indices)


class Summed(Sequence[Update]):
    """Updates in the order of the fleet, without their weights, and the mean of these."""

    def __init__(self, updates: Sequence[Update], running: RunningMean) -> None:
        self._updates, self._running, self.how = tuple(updates), running, running.how

    @overload
    def __getitem__(self, at: int) -> Update: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Update]: ...
    def __getitem__(self, at: int | slice) -> Update | Sequence[Update]:
        return self._updates[at]

    def __len__(self) -> int:
        return len(self._updates)

    def __iter__(self) -> Iterator[Update]:
        return iter(self._updates)

    def mean(self) -> dict[str, Tensor]:
        """Once: the sums are used up."""
        return self._running.finish()


def largest(tensors: Sequence[Tensor]) -> float:
    """The largest magnitude in ``tensors``, at least 1; 1 for whole numbers and where there is nothing."""
    return max([1.0, *(wire.peak(t) for t in tensors if t.is_floating_point())])


def whole_weights(samples: Sequence[int]) -> list[int]:
    """``samples``, or where they come to more than the accumulator holds, whole numbers in the same proportions, at
    least 1 and right to 1 in 2^22 of all."""
    total, most = sum(samples), 1 << wire.MAX_WEIGHT_BITS
    if total < most:
        return list(samples)
    return [max(1, round(count * (most / 4) / total)) for count in samples]


def _reach(name: str, tensor: Tensor) -> float:
    return (REACH_OF_STATISTICS if name.endswith(STATISTICS) else REACH) * largest([tensor])
