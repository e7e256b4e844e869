"""Coordinate-wise median and trimmed mean of sub-models, and clipping of what one of them may change.

For small cohorts in which a device may send anything finite (Yin et al., 2018: coordinate median and trimmed mean; Sun
et al., 2019: norm clipping). Samples carry no weight here: a device could claim any number of them. Every coordinate
is decided by those who hold it; sorting makes the result independent of the order. Memory: one model for each
sub-model of the tensor at hand, so for tens of devices, not for thousands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning.merge_gate import MergeMode
from edgeprune.pruning.submodel import SubmodelPlan
from edgeprune.pruning.surgery import extract_state

RobustRule = Literal["median", "trimmed"]
STATISTICS = ("running_mean", "running_var")  # of the data, not trained: no part of an update's norm


def merge_robust(
    state: Mapping[str, Tensor],
    submodels: Sequence[tuple[SubmodelPlan, Mapping[str, Tensor]]],
    rule: RobustRule,
    *,
    trim: float = 0.1,
    mode: MergeMode = "unit",
) -> dict[str, Tensor]:
    """The full state with each floating element the median, or the mean without the floor(``trim`` x holders) largest
    and as many smallest, of what its holders sent. ``mode`` as in Merger.finish: who lacks an element does not count
    ("unit"), counts as zero ("worker") or as unchanged ("delta"). Of integer tensors the largest value wins.
    """
    if rule not in get_args(RobustRule):
        raise EdgePruneError(f"the merge rule is {rule!r}{nearest(str(rule), get_args(RobustRule))}")
    if mode not in get_args(MergeMode):
        raise EdgePruneError(f"the merge mode must be 'unit', 'worker' or 'delta', not {mode!r}")
    check_trim(trim, "trim")
    if not submodels:
        raise EdgePruneError("there is nothing to merge; add at least one sub-model")
    for plan, local in submodels:
        largest = plan.check_local(local)
        if odd := sorted(local.keys() ^ {n for n in state if plan.holds(n)}):
            raise EdgePruneError(f"a sub-model and the model differ in tensor {odd[0]!r}")
        for name, base in state.items():
            if name in local and local[name].is_floating_point() != base.is_floating_point():
                raise EdgePruneError(f"the sub-model's {name!r} is {local[name].dtype}, the model's {base.dtype}")
            if name in largest and largest[name] > torch.finfo(base.dtype).max:
                raise EdgePruneError(f"the sub-model's {name!r} holds {largest[name]:.4g}, too large for {base.dtype}")
    return {name: _merged(name, base, submodels, rule, trim, mode) for name, base in state.items()}


def check_trim(trim: float, where: str) -> None:
    """EdgePruneError unless something is left in the middle."""
    if not 0 <= trim < 0.5:
        raise EdgePruneError(f"{where} is {trim}; it is the share cut off at either end, in [0, 0.5)")


def clip_update(
    state: Mapping[str, Tensor], plan: SubmodelPlan, local: Mapping[str, Tensor], clip_norm: float
) -> dict[str, Tensor]:
    """``local`` with its change against ``state`` scaled down to an L2 norm of at most ``clip_norm``, over all trained
    floating tensors together (batch-norm statistics are left as they are and do not count)."""
    base = extract_state(dict(state), plan)
    trained = [n for n, t in local.items() if t.is_floating_point() and not n.endswith(STATISTICS)]
    changes = {name: local[name].double() - base[name].double() for name in trained}
    norm = math.sqrt(sum(float(change.square().sum()) for change in changes.values()))
    if norm <= clip_norm:
        return dict(local)
    share = clip_norm / norm
    return {
        name: (base[name].double() + changes[name] * share).to(t.dtype) if name in changes else t
        for name, t in local.items()
    }


def _merged(
    name: str,
    base: Tensor,
    submodels: Sequence[tuple[SubmodelPlan, Mapping[str, Tensor]]],
    rule: RobustRule,
    trim: float,
    mode: MergeMode,
) -> Tensor:
    if not base.is_floating_point():
        every = [_placed(base.clone(), plan, name, local) for plan, local in submodels]
        return torch.stack([base, *every]).amax(0) if base.dtype != torch.bool else torch.stack([base, *every]).any(0)
    missing = {"unit": math.nan, "worker": 0.0, "delta": 0.0}[mode]
    fill = base.detach().double() if mode == "delta" else torch.full_like(base, missing, dtype=torch.float64)
    stacked = torch.stack([_placed(fill.clone(), plan, name, local) for plan, local in submodels])
    held = (~stacked.isnan()).sum(0)
    if rule == "median":
        first, last = (held - 1).div(2, rounding_mode="floor"), held.div(2, rounding_mode="floor")
    else:
        share = Fraction(
            str(float(trim))
        )  # as it was written: .42 of 150 is 63, in float32 and at times in float64 less
        cut = torch.tensor([math.floor(n * share) for n in range(len(submodels) + 1)], device=held.device)[held]
        first, last = cut, held - 1 - cut
    ranked = stacked.sort(0).values  # not-a-number, a missing element, comes last
    place = torch.arange(len(submodels), device=base.device).reshape(-1, *[1] * base.dim())
    inside = (place >= first) & (place <= last) & (place < held)
    mean = torch.where(inside, ranked, 0.0).sum(0) / inside.sum(0)
    return torch.where(held > 0, mean.to(base.dtype), base)


def _placed(into: Tensor, plan: SubmodelPlan, name: str, local: Mapping[str, Tensor]) -> Tensor:
    """``into`` [shape of the full tensor] with the sub-model's values, if it has any, at the plan's positions."""
    if not plan.holds(name):
        return into
    mesh = []
    for d, index in enumerate(plan.indices(name)):
        kept = torch.arange(into.shape[d], device=into.device) if index is None else index
        mesh.append(kept.reshape([-1 if e == d else 1 for e in range(into.dim())]))
    into[tuple(mesh) if mesh else ...] = local[name].detach().to(into.dtype)
    return into
