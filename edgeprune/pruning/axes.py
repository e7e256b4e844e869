"""How the dimensions of a model's tensors are made of channel groups: the map that a plan carries.

A dimension is a row of segments. A segment of a group holds, ``repeat`` times over, the group's ``size`` channels in
order, each as ``block`` neighbouring positions: position ``(rep * size + channel) * block + inner``. A segment without
a group is ``size`` positions that always stay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class Segment:
    """A run of positions of one dimension; ``group`` None means that all of it stays."""

    group: str | None
    size: int
    block: int = 1
    repeat: int = 1

    @property
    def length(self) -> int:
        return self.size * self.block * self.repeat


Axis = tuple[Segment, ...]
"""One tensor dimension."""


@dataclass(frozen=True)
class AxisMap:
    """``groups``: prunable channels per group; ``tensors``: the axes of every parameter and buffer by name;
    ``sizes``: attributes of modules that hold the length of a dimension ("blocks.0.attn.num_heads"); ``blocks``: what
    can be left out as a whole, each with the modules that go (depth.py)."""

    groups: Mapping[str, int]
    tensors: Mapping[str, tuple[Axis, ...]]
    sizes: Mapping[str, Axis] = field(default_factory=dict)
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def total(self) -> int:
        """All prunable channels."""
        return sum(self.groups.values())

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the groups and axes in a canonical text; maps with one digest are the same map."""
        text = [f"{name}={size}" for name, size in self.groups.items()]
        text += [f"{name}:{axes!r}" for name, axes in sorted(self.tensors.items())]
        text += [f"{name}:={axis!r}" for name, axis in sorted(self.sizes.items())]
        return hashlib.sha256("\n".join(text).encode()).digest()

    def axes(self, tensor: str) -> tuple[Axis, ...]:
        """The axes of one tensor, or EdgePruneError if the map does not know it."""
        try:
            return self.tensors[tensor]
        except KeyError:
            raise EdgePruneError(f"the plan knows no tensor {tensor!r}; it was made for another model") from None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of the tensor in the full model."""
        return tuple(sum(s.length for s in axis) for axis in self.axes(tensor))


def axis_indices(axis: Axis, kept: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64] | None:
    """The kept positions of one dimension (increasing), or None when all of it stays."""
    if all(s.group is None or len(kept[s.group]) == s.size for s in axis):
        return None
    parts, start = [], 0
    for s in axis:
        if s.group is None:
            parts.append(np.arange(start, start + s.size, dtype=np.int64))
        else:
            channels = np.arange(s.repeat)[:, None] * s.size + kept[s.group][None, :]
            parts.append((start + channels[:, :, None] * s.block + np.arange(s.block)).reshape(-1))
        start += s.length
    return np.concatenate(parts)


def axis_length(axis: Axis, counts: Mapping[str, int]) -> int:
    """The number of kept positions of one dimension, from the number of kept channels per group."""
    return sum(s.size if s.group is None else counts[s.group] * s.block * s.repeat for s in axis)


def local_size(axes: tuple[Axis, ...], counts: Mapping[str, int]) -> int:
    """The number of kept elements of a tensor."""
    return math.prod(axis_length(axis, counts) for axis in axes)
