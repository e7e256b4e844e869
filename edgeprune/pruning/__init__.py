"""Structured pruning: which channels belong together, which to keep, and the physically smaller model and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgePruneError, shown
from edgeprune.pruning.budget import Costs, Latency, Scope, check_scope, fit
from edgeprune.pruning.capture import tensors
from edgeprune.pruning.choice import Ranking, check_keep, choose, floors, ranking, steps
from edgeprune.pruning.coupling import Call, Coupling, Norms, rule
from edgeprune.pruning.files import load, save
from edgeprune.pruning.graph import ChannelGraph, ChannelGroup, check_values
from edgeprune.pruning.importance import Measure, scores
from edgeprune.pruning.merge_gate import MergeMode, check_state
from edgeprune.pruning.merging import Merger, merge_all
from edgeprune.pruning.submodel import SubmodelPlan
from edgeprune.pruning.surgery import REPAIRS, expand_state, extract, extract_state, load_local
from edgeprune.pruning.taylor import Batches, Loss

__all__ = [
    "REPAIRS",
    "Call",
    "ChannelGraph",
    "ChannelGroup",
    "Costs",
    "Coupling",
    "Merger",
    "Ranking",
    "Submodel",
    "SubmodelPlan",
    "choose",
    "expand_state",
    "extract",
    "extract_state",
    "fit",
    "load",
    "load_local",
    "merge",
    "prune",
    "ranking",
    "rule",
    "save",
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
    scope: Scope = "layer",
    budget: Mapping[str, float] | None = None,
    latency: Latency | None = None,
    price: str | None = None,
    min_channels: int = 1,
    min_keep: float = 0.0,
    round_to: int = 1,
    whole: Iterable[str] = (),
    norms: Norms = "auto",
    attention: Literal["heads", "width"] = "heads",
    order: Ranking | None = None,
    batches: Batches | None = None,
    loss: Loss = functional.cross_entropy,
    graph: ChannelGraph | None = None,
) -> Submodel:
    """Cut the model down to the share ``keep`` of its prunable channels, or to what fits ``budget``.

    ``example_inputs``: positional inputs of any batch size (2 is best). ``importance``: "l1", "l2", "bn", "taylor" (on
    ``batches`` and ``loss``) or a callable (see importance.scores). ``budget``: limits such as ``{"macs": 0.5}`` or
    ``{"ms": 8.0, "bytes": 4e6}``, which take the place of ``keep``; "ms" asks ``latency(counts)``. ``scope``: "layer",
    "global", or "cost" for widths by what they cost in ``price`` (see budget.fit). ``order``: a frozen Ranking, which
    takes the place of ``importance`` and ``scope``; its plans are nested. ``min_channels``, ``min_keep``,
    ``round_to``: see choice.choose. ``whole``, ``norms``, ``attention``: what may be cut, see ChannelGraph.trace.
    ``graph``: that of this model, if it is there already (then those three are not looked at).
    The network's inputs and outputs keep their size, and so does what the graph cannot follow (``.graph.notes`` names
    it). The model is not changed. Raises EdgePruneError when torch.export cannot capture it, no plan fits the budget,
    the floors (``min_channels``, ``min_keep``, ``round_to``) leave nothing to cut, or there is nothing to cut.
    """
    check_scope(scope, price)
    if graph is None:
        graph = ChannelGraph.trace(model, example_inputs, whole=whole, norms=norms, attention=attention)
    _check(model, graph, keep, budget, order)
    found = scores(model, graph, importance, batches, loss) if order is None else {}
    limits = budget or {"channels": keep}
    if budget is None and scope != "cost":
        if order is None:
            _check_floors(graph, keep, min_channels, round_to, min_keep)
        plan = order.plan(keep) if order else choose(graph, found, keep, scope, min_channels, round_to, min_keep)
    else:
        costs = Costs(model, graph, latency)
        plan = fit(found, costs, limits, scope, min_channels, round_to, min_keep=min_keep, order=order, price=price)
    return Submodel(extract(model, plan), plan, graph)


def _check(model: nn.Module, graph: ChannelGraph, keep: object, budget: object, order: object) -> None:
    for name, value, kind, advice in (
        ("model", model, nn.Module, "a torch.nn.Module"),
        ("graph", graph, ChannelGraph, "what ChannelGraph.trace gave for this model"),
        ("order", order, Ranking | None, "a Ranking (edgeprune.pruning.ranking)"),
        ("budget", budget, Mapping | None, 'limits such as {"macs": 0.5}'),
    ):
        if not isinstance(value, kind):
            raise EdgePruneError(f"prune: {name} is {shown(value)}; give {advice}")
    shapes = {name: tuple(t.shape) for name, t in tensors(model)}
    if shapes != {name: graph.map.shape(name) for name in graph.axes}:
        raise EdgePruneError("prune: the graph was traced for another model; leave graph out, or trace this one")
    check_values(model)
    check_keep(keep)
    if not graph.prunable and (budget is not None or keep != 1):
        reasons = [g.reason for g in graph.groups.values() if g.reason]
        inner = [*(why for why in reasons if why != "the network's output"), *graph.notes, *reasons]
        why = next(iter(inner), "no layer makes channels")
        raise EdgePruneError(
            f"prune: {type(model).__name__} has no channels that can be cut (the first stay because of this: {why}); "
            "change that, or give keep=1"
        )


def _check_floors(graph: ChannelGraph, keep: float, min_channels: int, round_to: int, min_keep: float) -> None:
    """EdgePruneError where floors leave nothing to cut, or keep a larger share of every group than ``keep``."""
    sizes, each = graph.map.groups, steps(graph, round_to)
    least = floors(graph, min_channels, round_to, min_keep)
    count = sum(min(size, max(each[name], least[name])) for name, size in sizes.items())
    given = {"min_channels": (min_channels, 1), "round_to": (round_to, 1), "min_keep": (min_keep, 0)}
    named = " and ".join(f"{name}={value}" for name, (value, default) in given.items() if value != default)
    if named and keep != 1 and (count == graph.map.total or min_keep > keep):
        raise EdgePruneError(
            f"prune: keep is {keep}, but with {named} at least {100 * count / graph.map.total:.3g} % of the "
            f"{graph.map.total} prunable channels stay; lower that, or raise keep"
        )


def merge(
    state: Mapping[str, Tensor],
    updates: Sequence[tuple[SubmodelPlan, Mapping[str, Tensor], float]],
    mode: MergeMode = "unit",
) -> dict[str, Tensor]:
    """The full state with every element replaced by the mean of the sub-models that hold it, weighted by their samples.

    ``updates``: (plan, the sub-model's state dict, number of samples) each; see Merger.finish for ``mode``. Without
    updates the state comes back as it is.
    """
    check_state(state)
    if not isinstance(updates, Iterable) or isinstance(updates, Mapping | str):
        raise EdgePruneError(f"merge: updates is {shown(updates)}; give a list of (plan, state_dict, samples)")
    updates = list(updates)
    if not updates:
        return dict(state)
    for i, update in enumerate(updates):
        if not isinstance(update, Sequence) or len(update) != 3:
            raise EdgePruneError(f"merge: update {i} is {shown(update)}; give (plan, state_dict, samples)")
    return merge_all(state, updates, mode)
