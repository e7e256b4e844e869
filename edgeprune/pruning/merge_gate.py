"""What may be merged: checked before anything of it is summed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, shown
from edgeprune.pruning.submodel import SubmodelPlan

MergeMode = Literal["unit", "worker", "delta"]

_WEIGHTS = (1e-30, 1e30)  # beyond them weight * value leaves float32 for values as networks have them
_ROOM = 1 - 2.0**-20  # of a type's largest number, for what many sums round up


class Gate:
    """What may be summed: names, shapes and types of the model's, finite, and never so much that a sum overflows."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        check_state(state)
        for name, t in state.items():
            if isinstance(t, Tensor) and t.is_complex():
                raise EdgePruneError(
                    f"merge: the model's {name!r} is {t.dtype}, of which there is no mean; hold its real and imaginary "
                    "parts in a tensor of floats (torch.view_as_real)"
                )
        self._base = state
        self._reached = {n: 0.0 for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
        self._weight = 0.0

    def admit(self, plan: SubmodelPlan, local_state: Mapping[str, Tensor], weight: float) -> float:
        """The weight as a number, counted; EdgePruneError, with nothing counted, for what may not be added."""
        weight = checked_weight(weight)
        if not isinstance(plan, SubmodelPlan) or not isinstance(local_state, Mapping):
            raise EdgePruneError(
                f"merge: an update is {shown(plan)} and {shown(local_state)}; give a sub-model's plan (sub.plan) and "
                "its state_dict()"
            )
        largest = plan.check_local(local_state)
        for name, base in self._base.items():
            if not isinstance(base, Tensor):
                continue
            if not plan.holds(name):
                continue
            if name not in local_state:
                raise EdgePruneError(f"the sub-model lacks {name!r}")
            if plan.map.shape(name) != tuple(base.shape):
                raise EdgePruneError(
                    f"the plan was made for {name!r} of shape {plan.map.shape(name)}, not {tuple(base.shape)}"
                )
            if not isinstance(local_state[name], Tensor):
                raise EdgePruneError(f"the sub-model's {name!r} is {shown(local_state[name])}, not a tensor")
            own = local_state[name]
            if own.is_floating_point() != base.is_floating_point() or own.is_complex():
                raise EdgePruneError(f"the sub-model's {name!r} is {local_state[name].dtype}, the model's {base.dtype}")
        if unknown := [n for n in local_state if n not in self._base]:
            raise EdgePruneError(f"the sub-model has {unknown[0]!r}, which the model lacks")
        self._reached.update({name: self._reach(name, value, weight) for name, value in largest.items()})
        self._weight += weight
        return weight

    def closed(self, mode: MergeMode) -> float:
        """The weight of all; EdgePruneError where there is nothing to merge, no such mode, or, for "delta", where the
        base, which counts in the sums too, would make them overflow."""
        if mode not in get_args(MergeMode):
            raise EdgePruneError(f"the merge mode must be 'unit', 'worker' or 'delta', not {mode!r}")
        if not self._weight:
            raise EdgePruneError("there is nothing to merge; add at least one sub-model")
        if mode == "delta":
            for name in self._reached:
                if self._base[name].numel():
                    self._reach(name, float(self._base[name].detach().abs().max()), self._weight, "model")
        return self._weight

    def _reach(self, name: str, largest: float, weight: float, whose: str = "sub-model") -> float:
        """What the sums of a tensor may come to with one more; EdgePruneError where they could overflow."""
        own = self._base[name].dtype
        reached, total = self._reached[name] + largest * weight, summed_as(own)
        if largest > torch.finfo(own).max or reached > torch.finfo(total).max * _ROOM:
            raise EdgePruneError(
                f"the {whose}'s {name!r} holds {largest:.4g}, too large to be summed as {total} with the weight "
                f"{weight:.4g}; leave it out"
            )
        return reached


def check_state(state: object) -> None:
    """EdgePruneError unless it maps names to something."""
    if not isinstance(state, Mapping):
        raise EdgePruneError(f"merge: the state is {shown(state)}; give the full model's state_dict()")


def summed_as(dtype: torch.dtype) -> torch.dtype:
    """The type of a tensor's sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def checked_weight(weight: object) -> float:
    """The weight of an update as a number; EdgePruneError unless it is one from 1e-30 to 1e30."""
    try:
        number = math.nan if isinstance(weight, str | bytes) else float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not _WEIGHTS[0] <= number <= _WEIGHTS[1]:
        raise EdgePruneError(
            f"the weight of a sub-model must be a positive number from 1e-30 to 1e30, such as its samples, not "
            f"{shown(weight)}"
        )
    return number
