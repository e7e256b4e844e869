"""SubmodelPlan: which channels of every group a sub-model keeps, in global numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, nearest, shown
from edgeprune.pruning import codec
from edgeprune.pruning.axes import Axis, AxisMap, axis_indices, axis_length, local_size

if TYPE_CHECKING:
    from edgeprune.pruning.graph import ChannelGraph


class SubmodelPlan:
    """The kept channels of every prunable group, the blocks left out, and the map from channels to tensor elements.
    Immutable.

    ``kept``: strictly increasing channel numbers per group, at least one each; groups left out keep all their channels.
    ``dropped``: blocks of the map (``ChannelGraph.blocks``) that the sub-model does without.
    Raises EdgePruneError on unknown groups and blocks and on numbers that are out of range, repeated or out of order.
    """

    def __init__(
        self, axes: ChannelGraph | AxisMap, kept: Mapping[str, Iterable[int]], dropped: Iterable[str] = ()
    ) -> None:
        axes = _map(axes)
        for name, channels in kept.items():
            if not isinstance(channels, Iterable | None):
                raise EdgePruneError(f"the kept channels of {name!r} are {shown(channels)}; give numbers")
            if name not in axes.groups:
                raise EdgePruneError(f"the plan names an unknown group {name!r}{nearest(name, axes.groups)}")
        self.map = axes
        self.kept: dict[str, tuple[int, ...]] = {}
        self._kept: dict[str, npt.NDArray[np.int64]] = {}
        for name, size in axes.groups.items():
            given = kept.get(name)
            self.kept[name] = tuple(range(size)) if given is None else tuple(given)
            self._kept[name] = _checked(name, size, self.kept[name])
        gone = set(dropped)
        for name in gone:
            if name not in axes.blocks:
                raise EdgePruneError(f"the plan drops an unknown block {name!r}{nearest(name, axes.blocks)}")
        self.dropped = tuple(name for name in axes.blocks if name in gone)
        self.dropped_modules = tuple(dict.fromkeys(m for name in self.dropped for m in axes.blocks[name]))
        self._gone = tuple(f"{m}." for m in self.dropped_modules)
        self._indices: dict[Axis, Tensor | None] = {}
        self._tensors: dict[str, tuple[Tensor | None, ...]] = {}

    @staticmethod
    def full(graph: ChannelGraph | AxisMap) -> SubmodelPlan:
        """The plan that keeps everything."""
        return SubmodelPlan(_map(graph), {})

    # --- what it says ---

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        """Per tensor name one Axis per dimension."""
        return self.map.tensors

    def drop(self, *blocks: str) -> SubmodelPlan:
        """This plan without these blocks too."""
        return SubmodelPlan(self.map, self.kept, (*self.dropped, *blocks))

    def holds(self, tensor: str) -> bool:
        """Whether the sub-model has this tensor, or a part of it; False for those of blocks left out."""
        return not self._gone or not tensor.startswith(self._gone)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of kept channels per group."""
        return {name: len(channels) for name, channels in self.kept.items()}

    @cached_property
    def retention(self) -> float:
        """Kept channels over all prunable channels (1.0 when nothing is prunable)."""
        return sum(self.counts.values()) / self.map.total if self.map.total else 1.0

    @cached_property
    def parameters(self) -> int:
        """Elements of all parameters and buffers of the sub-model, by name: tied ones count under each of their names
        (``Costs`` counts them once)."""
        return sum(local_size(axes, self.counts) for name, axes in self.map.tensors.items() if self.holds(name))

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of sha256 over the map and the kept channels: equal plans have equal ids."""
        return hashlib.sha256(self.map.digest + self.kept_bytes()).hexdigest()[:16]

    def indices(self, tensor: str) -> tuple[Tensor | None, ...]:
        """Per dimension the kept positions (int64, increasing), None where all are kept; what ops.gather takes."""
        found = self._tensors.get(tensor)
        if found is None:
            found = tuple(self._index(axis) for axis in self.map.axes(tensor))
            self._tensors[tensor] = found
        return found

    def _index(self, axis: Axis) -> Tensor | None:
        if axis not in self._indices:
            index = axis_indices(axis, self._kept)
            self._indices[axis] = None if index is None else torch.from_numpy(index)
        return self._indices[axis]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of the tensor in the sub-model."""
        return tuple(axis_length(axis, self.counts) for axis in self.map.axes(tensor))

    def check_local(self, local_state: Mapping[str, Tensor]) -> dict[str, float]:
        """The largest magnitude of every floating tensor that holds anything; EdgePruneError unless every tensor is one
        of this sub-model, in its shape, and finite."""
        largest = {}
        for name, t in local_state.items():
            if not isinstance(t, Tensor):
                continue
            if not self.holds(name):
                raise EdgePruneError(f"the sub-model has {name!r}, which is in a block that its plan leaves out")
            if tuple(t.shape) != self.shape(name):
                raise EdgePruneError(
                    f"the sub-model's {name!r} has shape {tuple(t.shape)}, its plan says {self.shape(name)}"
                )
            if t.is_floating_point() and t.numel():
                low, high = map(float, torch.aminmax(t.detach()))  # one pass without temporaries; NaN goes through
                largest[name] = max(-low, high)
                if not math.isfinite(low) or not math.isfinite(high):
                    raise EdgePruneError(f"the sub-model's {name!r} holds NaN or infinity")
        return largest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubmodelPlan) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        blocks = f", {len(self.dropped)} of {len(self.map.blocks)} blocks left out" if self.dropped else ""
        return f"SubmodelPlan({self.id}, {sum(self.counts.values())} of {self.map.total} channels{blocks})"

    # --- as text and bytes ---

    def to_json(self) -> str:
        """The whole plan, map included, as a small JSON text (format: codec.py)."""
        return codec.encode(self.map, self._kept, self.dropped)

    @staticmethod
    def from_json(text: str | bytes) -> SubmodelPlan:
        """Raises EdgePruneError (one sentence) on anything that is not a plan; allocates nothing on a count's word."""
        return SubmodelPlan(*codec.decode(text))

    def kept_bytes(self) -> bytes:
        """One bitmap per group, in the map's order, each filled up to whole bytes (lowest bit first); where blocks are
        left out, one more of the kept blocks."""
        channels = b"".join(codec.bitmap(kept, self.map.groups[name]) for name, kept in self._kept.items())
        if not self.dropped:
            return channels
        held = [i for i, name in enumerate(self.map.blocks) if name not in self.dropped]
        return channels + codec.bitmap(np.array(held, np.int64), len(self.map.blocks))

    @staticmethod
    def from_kept_bytes(graph: ChannelGraph | AxisMap, data: bytes) -> SubmodelPlan:
        """The way back from kept_bytes() for one who already has the graph or its map."""
        axes = _map(graph)
        need = sum((size + 7) // 8 for size in axes.groups.values())
        depth = (len(axes.blocks) + 7) // 8
        if len(data) not in (need, need + depth):
            raise EdgePruneError(f"the kept channels of this model take {need} bytes, not {len(data)}")
        kept, start = {}, 0
        for name, size in axes.groups.items():
            part = data[start : start + (size + 7) // 8]
            kept[name] = codec.from_bitmap(part, size, name)
            start += len(part)
        held = codec.from_bitmap(data[start:], len(axes.blocks), "the blocks") if len(data) > need else None
        dropped = () if held is None else [name for i, name in enumerate(axes.blocks) if i not in set(held)]
        return SubmodelPlan(axes, kept, dropped)


def check_plan(op: str, plan: object) -> None:
    """EdgePruneError for what is no plan."""
    if not isinstance(plan, SubmodelPlan):
        raise EdgePruneError(f"{op}: the plan is {shown(plan)}; give a SubmodelPlan, such as sub.plan of prune")


def _map(graph: ChannelGraph | AxisMap) -> AxisMap:
    found = graph if isinstance(graph, AxisMap) else getattr(graph, "map", None)
    if not isinstance(found, AxisMap):
        raise EdgePruneError(f"a plan is of a graph or its map, not of {shown(graph)}; give that of ChannelGraph.trace")
    return found


def _checked(name: str, size: int, channels: tuple[int, ...]) -> npt.NDArray[np.int64]:
    if not channels:
        raise EdgePruneError(f"the plan keeps no channel of {name!r}; keep at least one")
    if len(channels) > size:
        raise EdgePruneError(f"the plan keeps {len(channels)} channels of {name!r}, which has {size}")
    if any(type(c) is not int for c in channels):
        raise EdgePruneError(f"the kept channels of {name!r} must be whole numbers")
    if channels[0] < 0 or max(channels) >= size:
        raise EdgePruneError(f"the plan keeps a channel of {name!r} outside 0..{size - 1}")
    array = np.array(channels, dtype=np.int64)
    if (np.diff(array) <= 0).any():
        raise EdgePruneError(f"the kept channels of {name!r} must be strictly increasing")
    return array
