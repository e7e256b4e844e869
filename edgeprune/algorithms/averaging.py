"""The average of unequal sub-models that several algorithms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from edgeprune.algorithms.protocol import Update
from edgeprune.pruning.merging import MergeMode, Merger


def average(model: Mapping[str, Tensor], updates: Sequence[Update], mode: MergeMode = "unit") -> dict[str, Tensor]:
    """``model`` with every coordinate replaced by the sample-weighted mean of what its holders returned.

    ``"unit"``: divide by the holders' weight, keep the old value where nobody holds it. ``"worker"``: divide by the
    weight of all updates, a missing coordinate counts as zero. ``"delta"``: the same, but a missing coordinate counts
    as unchanged. Without updates the model stays as it is. Updates are
    added in the given order: the same order gives the same bits.
    """
    if not updates:
        return dict(model)
    merger = Merger(dict(model))
    for update in updates:
        merger.add(update.plan, dict(update.state), float(update.samples))
    return merger.finish(mode)
