"""The average of unequal sub-models that several algorithms share, and its robust relatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor

from edgeprune.algorithms.protocol import Update
from edgeprune.algorithms.running_mean import Summed, Summing
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning.merge_gate import MergeMode
from edgeprune.pruning.merging import Merger, merge_all
from edgeprune.pruning.robust import check_trim, clip_update, merge_robust

MergeRule = Literal["mean", "median", "trimmed"]


def average(
    model: Mapping[str, Tensor],
    updates: Sequence[Update],
    mode: MergeMode = "unit",
    *,
    rule: MergeRule = "mean",
    trim: float = 0.1,
    clip_norm: float = 0.0,
) -> dict[str, Tensor]:
    """``model`` with every coordinate replaced by the sample-weighted mean of what its holders returned.

    ``"unit"``: divide by the holders' weight, keep the old value where nobody holds it. ``"worker"``: divide by the
    weight of all updates, a missing coordinate counts as zero. ``"delta"``: the same, but a missing coordinate counts
    as unchanged. ``rule``: ``"median"`` or ``"trimmed"`` instead of the mean, without weights, for small cohorts
    (pruning/robust.py). ``clip_norm``: before that, every update's change is cut to this L2 norm (0: not).
    Without updates the model stays as it is. Means are added in the given order: the same order gives the same bits.
    Of updates that were summed as they came (``summing``), theirs is the mean, whose bits no order changes.
    """
    if not updates:
        return dict(model)
    if isinstance(updates, Summed):
        if rule != "mean" or updates.how != Summing(mode, clip_norm):
            raise EdgePruneError("average: the updates were summed in another way than they are to be merged in")
        return updates.mean()
    sent = ((u, dict(u.state) if not clip_norm else clip_update(model, u.plan, u.state, clip_norm)) for u in updates)
    if rule != "mean":
        return merge_robust(model, [(u.plan, state) for u, state in sent], rule, trim=trim, mode=mode)
    if not clip_norm:
        return merge_all(model, [(update.plan, state, float(update.samples)) for update, state in sent], mode)
    merger = Merger(model)  # one clipped update in memory at a time
    for update, state in sent:
        merger.add(update.plan, state, float(update.samples))
    return merger.finish(mode)


def summing(rule: MergeRule, mode: MergeMode = "unit", clip_norm: float = 0.0) -> Summing | None:
    """How updates that ``average`` gets can be summed as they come; None where it needs all of them at once."""
    return Summing(mode, clip_norm) if rule == "mean" else None


def check_averaging(rule: str, trim: float, clip_norm: float) -> None:
    """One sentence of EdgePruneError for a configuration that means nothing."""
    if rule not in get_args(MergeRule):
        raise EdgePruneError(f"algorithm.merge_rule is {rule!r}{nearest(rule, get_args(MergeRule))}")
    check_trim(trim, "algorithm.trim")
    if not (clip_norm >= 0 and math.isfinite(clip_norm)):
        raise EdgePruneError(f"algorithm.clip_norm is {clip_norm}; give a positive L2 norm, or 0 for no clipping")
