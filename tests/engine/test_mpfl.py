"""MPFL on real digits: masks alone travel in the search, the consensus by hand, and the small model that is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from short_runs import maker, resumed_equals_whole

from edgeprune import engine
from edgeprune.algorithms import mpfl
from edgeprune.algorithms.mpfl import MPFL
from edgeprune.algorithms.protocol import Setting, State, Update
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import extract, extract_state, load_local
from edgeprune.tasks.models import resnet_like


@pytest.fixture
def tiny(latency):
    """``tiny("key.path=value", ...)``: three nodes, two iterations of search, two rounds of training."""

    return maker(
        latency,
        "algorithm.name=mpfl",
        "algorithm.iterations=2",
        "algorithm.step=0.3",
        "run.rounds=4",
        "run.evaluate_every=4",
        "data.samples=150",
        "fleet.devices=3",
    )


def toy():
    """A setting with one layer of four filters, and the plan that keeps all."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 4, 2)
    )
    graph = ChannelGraph.trace(model, (torch.zeros(2, 1, 4, 4),))
    setting = Setting(graph, ("a", "b", "c"), {"a": 1, "b": 1, "c": 1}, None, 4)
    return setting, model, mpfl.filters(graph)[0]


def votes(setting, name, *kept):
    return [
        Update(client, SubmodelPlan(setting.graph.map, {name: keep}), {}, 1, 0.0, 1.0)
        for client, keep in zip(setting.clients, kept, strict=True)
    ]


@pytest.mark.parametrize(
    ("consensus", "step", "expected"),
    [
        ("exact", 0.5, (0, 1)),  # votes to drop: 0, 1, 3, 2; the two with most go
        ("exact", 0.25, (0, 1, 3)),
        ("majority", 0.5, (0, 1)),  # 3 and 2 of three nodes
        ("public", 0.25, (0, 1, 3)),  # all three drop filter 2: unanimity is enough for a quarter
        ("public", 0.5, (0, 1)),  # at two thirds (t = .6) filter 3 goes as well
        ("public", 0.7, (0,)),  # any vote
        ("single", 0.5, (0, 1)),
    ],
)
def test_consensus_by_hand(consensus, step, expected):
    setting, model, name = toy()
    algorithm = MPFL(iterations=1, step=step, consensus=consensus)
    state = algorithm.init(setting, model.state_dict())
    after = algorithm.merge(setting, state, votes(setting, name, (0, 1), (0, 3), (0, 1)))
    assert after.plans["a"].kept[name] == expected
    weight = after.model["0.weight"]
    dropped = [i for i in range(4) if i not in expected]
    assert bool((weight[dropped] == 0).all()) and torch.equal(weight[list(expected)], model[0].weight[list(expected)])
    assert bool((after.model["3.weight"].reshape(2, 4, 4)[:, dropped] == 0).all())


def test_rounds_that_end_with_the_search_are_refused():
    setting, model, _ = toy()
    with pytest.raises(EdgePruneError, match=r"^run\.rounds is 2, .* algorithm\.iterations = 2; "):
        MPFL(iterations=2, step=0.25).init(replace(setting, rounds=2), model.state_dict())


def test_ties_go_to_earlier_votes_then_to_the_initial_norm():
    setting, model, name = toy()
    with torch.no_grad():
        for i, norm in enumerate((1.0, 4.0, 2.0, 3.0)):
            model[0].weight[i].fill_(norm)
    algorithm = MPFL(iterations=1, step=0.5)
    state = algorithm.init(setting, model.state_dict())
    everybody = votes(setting, name, (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))
    assert algorithm.merge(setting, state, everybody).plans["a"].kept[name] == (1, 3)
    remembered = State(0, state.model, state.plans, {"votes": {name: [0, 2, 0, 0]}})
    assert algorithm.merge(setting, remembered, everybody).plans["a"].kept[name] == (2, 3)


def test_agreement_by_hand():
    assert mpfl.agreement({"g": np.array([3, 0, 3])}, 3) == 1.0
    assert mpfl.agreement({"g": np.array([1, 1, 1])}, 3) == 0.0
    # dropped by (2, 1): of the three drops two have one other node in agreement
    assert mpfl.agreement({"g": np.array([2, 1])}, 2) == pytest.approx(2 / 3)


def test_filters_are_the_channels_of_convolutions_alone():
    model = resnet_like((8, 16))
    graph = ChannelGraph.trace(model, (torch.zeros(2, 3, 32, 32),))
    found = mpfl.filters(graph)
    assert sum(graph.map.groups[name] for name in found) == 8 + 8 + 8 + 16 + 16 + 16  # residual sums count once
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    assert mpfl.filters(ChannelGraph.trace(linear, (torch.zeros(2, 1, 2, 2),))) == []


def test_a_node_proposes_its_largest_filters():
    setting, model, name = toy()
    with torch.no_grad():
        for i, norm in enumerate((1.0, 4.0, 2.0, 3.0)):
            model[0].weight[i].fill_(norm)
    plan = SubmodelPlan(setting.graph.map, {name: (0, 1, 2)})
    small = extract_state(model.state_dict(), plan)
    assert mpfl.proposal(small, setting.graph, plan, 1 / 3).kept[name] == (1, 2)


def test_the_search_moves_masks_only_and_the_training_the_small_model(tiny, tmp_path):
    prepared = engine.prepare(tiny())
    engine.start(prepared, tmp_path / "run")
    run = engine.RunDir(tmp_path / "run")
    records = run.metrics()
    filters = sum((size + 7) // 8 for size in prepared.graph.map.groups.values())
    for record in records[:2]:
        assert record["upload_bytes"] / 3 < 72 + 8 + 60 + filters + 4  # header, name, JSON, one bit a filter, checksum
    small, plan = run.model("device-0")
    values = sum(t.numel() * t.element_size() for t in small.state_dict().values())
    for record in records[2:]:
        assert values < record["upload_bytes"] / 3 < values + 2000
    assert [round(record["retention"]["device-0"], 2) for record in records] == pytest.approx(
        [1, 0.7, 0.4, 0.4], abs=0.02
    )
    full, _ = run.model()
    assert sum(p.numel() for p in small.parameters()) < 0.25 * sum(p.numel() for p in full.parameters())
    x = prepared.data.normalise(prepared.data.test.x[:50])
    with torch.no_grad():  # the global model computes what the small one does
        torch.testing.assert_close(small.eval()(x), full.eval()(x), rtol=1e-4, atol=1e-4)


def test_the_training_starts_from_the_initial_weights(tiny):
    prepared = engine.prepare(tiny())
    algorithm, setting = prepared.experiment.algorithm, prepared.setting
    state = algorithm.init(setting, dict(prepared.model.state_dict()))
    full = SubmodelPlan.full(setting.graph)
    for _ in range(2):
        state = algorithm.merge(setting, state, [Update(c, full, {}, 50, 0.0, 1.0) for c in setting.clients])
    (asked, *_) = algorithm.assign(setting, state)
    expected = extract_state(prepared.model.state_dict(), asked.plan)
    assert all(torch.equal(t, expected[name]) for name, t in asked.state.items())
    load_local(extract(prepared.model, asked.plan), asked.state)


@pytest.mark.parametrize("kind", ["nan", "truncated", "drop"])
def test_a_faulty_node_has_no_vote(tiny, tmp_path, kind):
    fault = f'fleet.fault=[{{device="device-1", kind="{kind}", first=1, last=3}}]'
    engine.start(engine.prepare(tiny(fault)), tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert [list(record["rejected"]) for record in records] == [["device-1"]] * 3 + [[]]


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_resuming_equals_never_stopping(tiny, tmp_path, monkeypatch, round_):
    resumed_equals_whole(tiny(), tmp_path, monkeypatch, round_)


@pytest.mark.parametrize(
    "fields", [{"iterations": 0}, {"iterations": 10, "step": 0.1}, {"consensus": "unanimous"}], ids=str
)
def test_a_configuration_that_means_nothing_is_one_sentence(fields):
    with pytest.raises(EdgePruneError, match=r"algorithm\."):
        MPFL(**fields)


def test_unanimity_is_enough_whatever_the_share_is_in_binary():
    """Six of 20 filters are dropped by all ten nodes, six more by one; due are .3 of 20, which in binary is above 6."""
    assert 3 * 0.1 * 20 > 6
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 20, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(80, 2))
    graph = ChannelGraph.trace(model, (torch.zeros(2, 1, 4, 4),))
    setting = Setting(graph, tuple("abcdefghij"), dict.fromkeys("abcdefghij", 1), None, 9)
    state = State(2, model.state_dict(), {}, {"votes": {}})
    cast = np.array([10] * 6 + [1] * 6 + [0] * 8)
    algorithm = MPFL(iterations=7, step=0.1, consensus="public")
    (name,) = mpfl.filters(graph)
    assert algorithm._agreed(setting, name, tuple(range(20)), cast, None, 3, state, 10) == tuple(range(6, 20))


@pytest.mark.parametrize(("consensus", "kept"), [("exact", 2), ("majority", 3), ("public", 3)])
def test_a_last_vote_that_nobody_casts_still_ends_the_search(consensus, kept):
    """The exact budget is kept by the votes so far; rules that need votes drop nothing more. The whole model is the
    small one in any case."""
    setting, model, name = toy()
    algorithm = MPFL(iterations=2, step=0.25, consensus=consensus)
    start = algorithm.init(setting, {n: t.clone() for n, t in model.state_dict().items()})
    once = algorithm.merge(setting, start, votes(setting, name, *[(0, 1, 3)] * 3))
    ended = algorithm.merge(setting, once, [])
    plan = ended.plans["a"]
    assert len(plan.kept[name]) == kept and 2 not in plan.kept[name]
    small = load_local(extract(model, plan), extract_state(ended.model, plan))
    model.load_state_dict(ended.model)
    x = torch.randn(3, 1, 4, 4)
    assert torch.allclose(model(x), small(x), atol=1e-6)
