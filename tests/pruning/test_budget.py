"""Budgets are met and used up, in every unit; widths by cost follow what is dear; frozen orders give nested plans."""

from __future__ import annotations

import math

import pytest
import torch
from pruning_cases import traced
from torch import nn
from zoo_attention import ATTENTION

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import ChannelGraph, Costs, choose, cost, extract, fit, ranking, scores
from edgeprune.pruning.choice import steps


def real_cost(unit, model, x):
    """The same figure counted on the extracted module."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    if unit == "macs":
        return cost.macs(model, x)
    if unit == "parameters":
        return sum(p.numel() for p in model.parameters())
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("scope", ["layer", "global", "cost"])
@pytest.mark.parametrize("unit", ["macs", "parameters", "bytes"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vgg"])
def test_the_small_model_is_within_the_budget_and_one_step_more_is_not(name, unit, scope):
    model, x, graph = traced(name)
    costs = Costs(model, graph)
    found = scores(model, graph)
    plan = fit(found, costs, {unit: 0.6}, scope)
    full, small = real_cost(unit, model, x), real_cost(unit, extract(model, plan), x)
    assert costs(unit, graph.map.groups) == full and costs(unit, plan.counts) == small
    assert small <= 0.6 * full
    if scope != "cost":
        total = graph.map.total
        larger = [choose(graph, found, c / total, scope) for c in range(1, total + 1)]
        assert max(s for p in larger if (s := costs(unit, p.counts)) <= 0.6 * full) == small
    else:  # one channel back in any one group, and the limit no longer holds
        grown = [{**plan.counts, n: c + 1} for n, c in plan.counts.items() if c < graph.map.groups[n]]
        assert grown and all(costs(unit, counts) > 0.6 * full for counts in grown)


def test_several_limits_hold_at_once_and_absolute_ones_are_amounts():
    model, x, graph = traced("resnet")
    costs = Costs(model, graph)
    sub = edgeprune.prune(model, x, budget={"macs": 0.7, "parameters": 3000}, scope="cost", graph=graph)
    assert real_cost("parameters", sub.model, x) <= 3000
    assert cost.macs(sub.model, x) <= 0.7 * cost.macs(model, x)
    assert costs("channels", fit(scores(model, graph), costs, {"channels": 20}, "global").counts) == 20


def test_milliseconds_come_from_the_callers_table():
    model, x, graph = traced("resnet")
    dear = "blocks.1.c1"

    def latency(counts):
        return 1.0 + 10.0 * counts[dear] + 0.01 * sum(counts.values())

    full = latency(graph.map.groups)
    plan = edgeprune.prune(model, x, budget={"ms": full / 2}, latency=latency, scope="cost", graph=graph).plan
    assert latency(plan.counts) <= full / 2
    others = {n: c / graph.map.groups[n] for n, c in plan.counts.items() if n != dear}
    assert plan.counts[dear] / graph.map.groups[dear] < 0.5 and min(others.values()) == 1.0
    priced = edgeprune.prune(model, x, budget={"macs": 0.9}, latency=latency, scope="cost", price="ms", graph=graph)
    assert priced.plan.counts[dear] < graph.map.groups[dear]


def test_widths_by_cost_keep_steps_and_floors():
    model, x, graph = traced("resnet")
    plan = edgeprune.prune(model, x, budget={"macs": 0.4}, scope="cost", round_to=4, min_keep=0.5, graph=graph).plan
    for name, count in plan.counts.items():
        size = graph.map.groups[name]
        assert count == size or (count % 4 == 0 and count >= size / 2)
    with pytest.raises(EdgePruneError, match="smallest plan allowed needs"):
        edgeprune.prune(model, x, budget={"macs": 0.01}, scope="cost", min_keep=0.5, graph=graph)
    with pytest.raises(EdgePruneError, match="smallest plan allowed needs"):
        edgeprune.prune(model, x, budget={"macs": 1.0001}, scope="layer", min_keep=1.0, graph=graph)


def test_whole_heads_are_multiples_of_what_they_are_wide():
    factory, inputs = ATTENTION["vit"]
    model, x = factory(), inputs()
    graph = ChannelGraph.trace(model, x)
    found, scored = steps(graph, 4), scores(model, graph)
    heads = {
        n
        for n, s in graph.map.groups.items()
        if any(seg.group == n and seg.block % 4 == 0 for a in graph.axes.values() for axis in a for seg in axis)
    }
    assert heads and all(found[n] == (1 if n in heads else 4) for n in graph.prunable)
    for scope in ("layer", "cost"):
        plan = fit(scored, Costs(model, graph), {"macs": 0.6}, scope, round_to=4)
        small = extract(model, plan)
        assert all(c % found[n] == 0 or c == graph.map.groups[n] for n, c in plan.counts.items())
        assert cost.macs(small, x) <= 0.6 * cost.macs(model, x)


def test_widths_by_cost_on_two_equal_layers_by_hand():
    """Two layers of four equal channels, the second three times as dear: log(4/3) / 3 < log(4/3) / 1, so the second is
    cut first, to log(3/2) / 3 = 0.135 and log(2/1) / 3 = 0.231 still below log(4/3) = 0.288: 4 and 1."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
    x = torch.randn(2, 3)
    a, b = edgeprune.prune(net, x, keep=1.0).plan.counts
    sub = edgeprune.prune(
        net, x, budget={"ms": 7.0}, latency=lambda c: float(c[a] + 3 * c[b]), scope="cost", importance="l1"
    )
    assert sub.plan.counts == {a: 4, b: 1}


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_plans_of_one_order_are_nested_under_any_budget(name):
    model, x, graph = traced(name)
    order = ranking(graph, scores(model, graph), 1)
    plans = [edgeprune.prune(model, x, budget={"macs": b}, order=order, graph=graph).plan for b in (0.3, 0.5, 0.8)]
    for small, large in zip(plans, plans[1:], strict=False):
        assert all(set(small.kept[g]) <= set(large.kept[g]) for g in graph.prunable)
    assert edgeprune.prune(model, x, keep=0.5, order=order, graph=graph).plan == order.plan(0.5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"budget": {"mac": 0.5}}, "unknown unit 'mac'; did you mean 'macs'"),
        ({"budget": {"macs": 0.0}}, "macs is 0.0"),
        ({"budget": {"macs": math.nan}}, "macs is nan"),
        ({"budget": {"macs": "half"}}, "macs is 'half'"),
        ({"budget": {"ms": 2.0}}, "milliseconds need measured times"),
        ({"budget": {"ms": 2.0}, "latency": lambda counts: -1.0}, "came out as -1.0 ms"),
        ({"budget": {"macs": 1e-9}}, "smallest plan allowed needs"),
        ({"budget": {"macs": 0.5}, "price": "money", "scope": "cost"}, "unknown unit 'money'"),
        ({"budget": {"macs": 0.5}, "min_keep": 2.0}, "min_keep must be a share"),
        ({"budget": {"macs": 0.5}, "scope": "cosy"}, "scope must be"),
        ({"importance": "taylor"}, "needs the model and data"),
        ({"importance": "tailor"}, "unknown importance 'tailor'; did you mean 'taylor'"),
    ],
)
def test_what_cannot_be_met_is_one_sentence(kwargs, words):
    model, x, graph = traced("resnet")
    with pytest.raises(EdgePruneError, match=words):
        edgeprune.prune(model, x, graph=graph, **kwargs)
