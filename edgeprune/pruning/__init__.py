"""Structured pruning: which channels belong together, which to keep, and the physically smaller model and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from edgeprune.pruning.choice import Ranking, choose, ranking
from edgeprune.pruning.graph import ChannelGraph, ChannelGroup
from edgeprune.pruning.importance import Measure, scores
from edgeprune.pruning.merging import MergeMode, Merger
from edgeprune.pruning.submodel import SubmodelPlan
from edgeprune.pruning.surgery import expand_state, extract, extract_state, load_local

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Merger",
    "Ranking",
    "Submodel",
    "SubmodelPlan",
    "choose",
    "expand_state",
    "extract",
    "extract_state",
    "load_local",
    "merge",
    "prune",
    "ranking",
    "scores",
]


@dataclass(frozen=True)
class Submodel:
    """A physically smaller model, the plan that says which channels it holds, and the graph of the full model."""

    model: nn.Module
    plan: SubmodelPlan
    graph: ChannelGraph


def prune(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Tensor,
    keep: float = 0.5,
    importance: str | Measure = "l2",
    *,
    scope: Literal["layer", "global"] = "layer",
    min_channels: int = 1,
    round_to: int = 1,
    whole: Iterable[str] = (),
) -> Submodel:
    """Cut the model down to the share ``keep`` of its prunable channels.

    ``example_inputs``: positional inputs of any batch size (2 is best). ``importance``: "l1", "l2", "bn" or a callable
    (see importance.scores). ``scope``, ``min_channels``, ``round_to``: see choice.choose. ``whole``: patterns of
    tensors whose channels must stay. The network's inputs and outputs keep their size, and so does what the graph
    cannot follow (``.graph.notes`` names it). The model is not changed. Raises EdgePruneError when torch.export cannot
    capture it.
    """
    graph = ChannelGraph.trace(model, example_inputs, whole=whole)
    plan = choose(graph, scores(model, graph, importance), keep, scope, min_channels, round_to)
    return Submodel(extract(model, plan), plan, graph)


def merge(
    state: Mapping[str, Tensor],
    updates: Sequence[tuple[SubmodelPlan, Mapping[str, Tensor], float]],
    mode: MergeMode = "unit",
) -> dict[str, Tensor]:
    """The full state with every element replaced by the mean of the sub-models that hold it, weighted by their samples.

    ``updates``: (plan, the sub-model's state dict, number of samples) each; see Merger.finish for ``mode``. Without
    updates the state comes back as it is.
    """
    if not updates:
        return dict(state)
    merger = Merger(state)
    for plan, local_state, weight in updates:
        merger.add(plan, local_state, weight)
    return merger.finish(mode)
