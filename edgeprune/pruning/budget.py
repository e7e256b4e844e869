"""How much may be kept: a limit on channels, multiply-adds, parameters, bytes or measured milliseconds, and the widths
that meet it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError, is_number, nearest, shown
from edgeprune.pruning.axes import local_size
from edgeprune.pruning.choice import Ranking, best, checked_scores, choose, floors, ranking, steps
from edgeprune.pruning.graph import ChannelGraph
from edgeprune.pruning.submodel import SubmodelPlan

Counts = Mapping[str, int]
Latency = Callable[[Counts], float]
"""Milliseconds of a sub-model with so many channels per group."""
Scope = Literal["layer", "global", "cost"]
UNITS = ("channels", "macs", "parameters", "bytes", "ms")


class Costs:
    """What a sub-model needs, from its channel counts alone. ``latency`` answers for "ms"; without it "ms" is refused.

    Tensors that two modules share count once; "bytes" are those of all parameters and buffers in their own types.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, latency: Latency | None = None) -> None:
        if latency is not None and not callable(latency):
            raise EdgePruneError(f"budget: latency is {shown(latency)}; give a function of the channel counts")
        self.graph, self.latency = graph, latency
        self._sizes = [(graph.axes[n], t.element_size(), isinstance(t, nn.Parameter)) for n, t in _distinct(model)]

    def __call__(self, unit: str, counts: Counts) -> float:
        """The cost in one of UNITS."""
        if unit == "channels":
            return sum(counts.values())
        if unit == "macs":
            return self.graph.macs(counts)
        if unit == "parameters":
            return sum(local_size(axes, counts) for axes, _, own in self._sizes if own)
        if unit == "bytes":
            return sum(local_size(axes, counts) * size for axes, size, _ in self._sizes)
        if unit != "ms":
            raise EdgePruneError(f"budget: unknown unit {unit!r}{nearest(unit, UNITS)}")
        if self.latency is None:
            raise EdgePruneError("budget: milliseconds need measured times; give latency=, or --latency on the command")
        answer: object = self.latency(counts)
        if not is_number(answer) and not (isinstance(answer, Tensor) and answer.numel() == 1):
            raise EdgePruneError(f"budget: latency gave {shown(answer)}; give milliseconds as a number")
        found = float(answer)  # type: ignore[arg-type]
        if not (math.isfinite(found) and found > 0):
            raise EdgePruneError(f"budget: the latency of a sub-model came out as {found} ms; measure the table again")
        return found


def fit(
    scores: Mapping[str, Tensor],
    costs: Costs,
    budget: Mapping[str, float],
    scope: Scope = "layer",
    min_channels: int = 1,
    round_to: int = 1,
    *,
    min_keep: float = 0.0,
    order: Ranking | None = None,
    price: str | None = None,
) -> SubmodelPlan:
    """The largest plan within every limit of ``budget``: unit -> limit.

    A limit of at most 1 is a share of the full model's cost, except for "ms", which is absolute. "layer" and "global":
    as ``choose``, with the largest share that meets the limits. ``order``: a frozen ranking (then ``scope``,
    ``round_to``, ``min_channels`` and ``min_keep`` play no part, the plans of one ranking are nested). "cost": widths
    by what they cost. From the full model on, the group gives up ``round_to`` channels next that loses the least

        log(score of its kept channels before / after)   for each unit of ``price`` saved

    (``price``: a unit, by default the first of the budget), which tends to the largest product over the groups of the
    kept shares of their score at that cost; then groups get steps back where they still fit. Groups keep
    ``min_channels``, and ``min_keep`` of their channels, at least. After D. Yang et al., NetAdapt, arXiv 1804.03230,
    with scores in the place of short training.
    Raises EdgePruneError where no plan meets the limits.
    """
    check_scope(scope, price)
    limits = _limits(budget, costs)
    if scope == "cost" and order is None:
        return _by_cost(scores, costs, limits, min_channels, round_to, min_keep, price or next(iter(limits)))
    share_of = cast(Literal["layer", "global"], scope)
    graph = costs.graph
    total = graph.map.total
    frozen = ranking(graph, scores, min_channels) if scope == "global" and order is None else None

    def plan(count: int) -> SubmodelPlan:
        if order is not None:
            return order.plan(count / total)
        return choose(graph, scores, count / total, share_of, min_channels, round_to, min_keep, frozen)

    low, high = 0, max(1, total)  # low is too small or the last that met the limits
    found: SubmodelPlan | None = None
    if total == 0 or _within(costs, limits, plan(total).counts):
        low, found = high, plan(total) if total else SubmodelPlan.full(graph)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = plan(middle)
        if _within(costs, limits, candidate.counts):
            low, found = middle, candidate
        else:
            high = middle
    if found is None:
        found = plan(1)
    if not _within(costs, limits, found.counts):
        raise _too_tight(costs, limits, found.counts)
    return found


def check_scope(scope: object, price: object = None) -> None:
    """EdgePruneError unless there is such a scope, and it has a price where one is given."""
    if scope not in get_args(Scope):
        raise EdgePruneError(f"scope must be 'layer', 'global' or 'cost', not {shown(scope)}")
    if price is not None and scope != "cost":
        raise EdgePruneError(f"price is {shown(price)}, and scope {scope!r} asks for none; give scope='cost' with it")


def _by_cost(
    scores: Mapping[str, Tensor],
    costs: Costs,
    limits: Mapping[str, float],
    min_channels: int,
    round_to: int,
    min_keep: float,
    price: str,
) -> SubmodelPlan:
    graph = costs.graph
    values = checked_scores(graph, scores)
    held = {name: np.log(_kept_score(values[name])) for name in graph.map.groups}
    least, each = floors(graph, min_channels, round_to, min_keep), steps(graph, round_to)
    sizes = dict(graph.map.groups)
    counts = dict(sizes)
    while not _within(costs, limits, counts):
        now = costs(price, counts)
        cheapest, change = math.inf, None
        for name, count in counts.items():
            fewer = (count - 1) // each[name] * each[name]
            if fewer < max(1, least[name]):
                continue
            saved = now - costs(price, {**counts, name: fewer})
            loss = float(held[name][count - 1] - held[name][fewer - 1])
            # What saves nothing is taken last: only when it is all that is left to try.
            rate = loss / saved if saved > 0 else 1e30 * (1 + loss)
            if rate < cheapest:
                cheapest, change = rate, (name, fewer)
        if change is None:
            raise _too_tight(costs, limits, counts)
        counts[change[0]] = change[1]
    while True:  # the last step may have saved more than was needed: give back what still fits
        now = costs(price, counts)
        dearest, change = 0.0, None
        for name, count in counts.items():
            more = min(sizes[name], count + each[name])
            if more == count or not _within(costs, limits, {**counts, name: more}):
                continue
            gain = float(held[name][more - 1] - held[name][count - 1])
            rate = gain / max(costs(price, {**counts, name: more}) - now, 1e-30)
            if rate > dearest:
                dearest, change = rate, (name, more)
        if change is None:
            return SubmodelPlan(graph.map, {name: best(values[name], counts[name]) for name in counts})
        counts[change[0]] = change[1]


def _kept_score(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[i]: the score of the i + 1 best channels; all channels count alike in a group where none scores."""
    ordered = np.sort(np.maximum(values, 0.0))[::-1]
    mean = float(ordered.mean())
    # A channel of no weight at all still costs a little, else whole groups of them would go at once.
    return np.cumsum(ordered + (1e-3 * mean if mean > 0 else 1.0))


def _limits(budget: Mapping[str, float], costs: Costs) -> dict[str, float]:
    if not budget:
        raise EdgePruneError(f"budget: it names no limit; give one of {', '.join(UNITS)}")
    full = costs.graph.map.groups
    limits = {}
    for unit, limit in budget.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not (math.isfinite(limit) and limit > 0):
            raise EdgePruneError(f"budget: {unit} is {limit!r}; give a share up to 1, or an amount")
        whole = costs(unit, full)
        limits[unit] = limit * whole if limit <= 1 and unit != "ms" else float(limit)
    return limits


def _within(costs: Costs, limits: Mapping[str, float], counts: Counts) -> bool:
    return all(costs(unit, counts) <= limit * (1 + 1e-12) for unit, limit in limits.items())


def _too_tight(costs: Costs, limits: Mapping[str, float], counts: Counts) -> EdgePruneError:
    unit, limit = next((u, v) for u, v in limits.items() if costs(u, counts) > v)
    return EdgePruneError(
        f"budget: the smallest plan allowed needs {costs(unit, counts):,.6g} {unit}, the limit is {limit:,.6g}; "
        "lower the minimum width, protect less, or raise the limit"
    )


def _distinct(model: nn.Module) -> list[tuple[str, Tensor]]:
    found: dict[int, tuple[str, Tensor]] = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(id(t), (name, t))
    return list(found.values())
