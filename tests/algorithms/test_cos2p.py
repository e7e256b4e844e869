"""Co-S2P: weights, coverage and masks by hand; sub-models compute what their mask says; a run on hand-made data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeprune import engine
from edgeprune.algorithms.cos2p import CoS2P
from edgeprune.algorithms.fedrolex import window
from edgeprune.algorithms.mask_learning import channel_makers, masked
from edgeprune.algorithms.protocol import Job, Recipe, Setting, State, Update
from edgeprune.algorithms.rates import dealt, depth_plan
from edgeprune.algorithms.training import Step
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import LatencyTable, size_of
from edgeprune.nn import ExitHead, Exits, LinearInto, at_every_exit, with_transfer
from edgeprune.pruning import ChannelGraph, Merger, SubmodelPlan, choose, extract, extract_state
from edgeprune.pruning.coverage import coverage, holders
from edgeprune.tasks import Task, transformers
from edgeprune.tasks.models import har_net


def small_vit(depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return transformers.vit(width=16, heads=4, depth=depth, patch=8, side=16, classes=3)


@pytest.fixture(scope="module")
def vit():
    """A ViT of four blocks and its graph, traced once."""
    model = small_vit()
    return model, ChannelGraph.trace(model, (torch.zeros(2, 3, 16, 16),))


def two_weights():
    """A model of two channels, so that a sub-model can hold one: fc makes them, head reads them."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    graph = ChannelGraph.trace(model, (torch.zeros(3, 1),))
    return graph, SubmodelPlan.full(graph), SubmodelPlan(graph.map, {"0": (1,)})


# --- merging ---------------------------------------------------------------------------------------------------------


def merged(algorithm, updates, now):
    graph = two_weights()[0]
    setting = Setting(graph, ("a", "b"), {"a": 3, "b": 1}, Recipe(1, 1, 0.1, 0.0, 0.0), 5)
    state = State(0, now, {}, {"learning": [], "coverage": {}, "rates": dealt(algorithm.rates, setting.clients)})
    return algorithm.merge(setting, state, updates)


def state_of(first, second, head=(0.0, 0.0)):
    return {"0.weight": torch.tensor([[first], [second]]), "2.weight": torch.tensor([list(head)])}


def test_an_update_of_large_values_is_merged_in_proportion_and_ends_nothing():
    _, full, _ = two_weights()
    now = state_of(1.0, 2.0)
    huge = {**now, "0.weight": now["0.weight"] + 9e19}
    little = {**now, "0.weight": now["0.weight"] + 1e-15}
    updates = [
        Update("a", full, huge, 3, 0.1, 1.0, received=now),
        Update("b", full, little, 1, 0.1, 1.0, received=now),
    ]
    after = merged(CoS2P(), updates, now)
    assert torch.isfinite(after.model["0.weight"]).all()
    assert sum(after.memory["weights"].values()) == pytest.approx(1.0)


def test_weights_and_merge_by_hand():
    """a (r = 1) holds all, is fresh, changed by |1| + |1|; b (r = 0.5) holds channel 1, changed by 3, drifted by 2."""
    _, full, half = two_weights()
    now = state_of(10.0, 20.0)
    received = extract_state(state_of(10.0, 18.0), half)
    moved = {**received, "0.weight": received["0.weight"] + 3.0}
    updates = [
        Update("a", full, state_of(11.0, 21.0), 3, 0.0, 1.0, received=now),
        Update("b", half, moved, 1, 0.0, 1.0, received=received, staleness=1),
    ]
    a, b = 2.0 / 1.0, (3.0 / 0.5) / (2.0 + 1)
    assert (a, b) == (2.0, 2.0)
    algorithm = CoS2P(rates=(1.0, 0.5))
    after = merged(algorithm, updates, now)
    assert after.memory["weights"] == pytest.approx({"a": 0.5, "b": 0.5})
    # Channel 0: half of a's change, b lacks it. Channel 1: both.
    assert after.model["0.weight"].flatten().tolist() == pytest.approx([10.5, 20.0 + 0.5 + 1.5])
    by_unit = merged(replace(algorithm, merge_by="unit"), updates, now)
    assert by_unit.model["0.weight"].flatten().tolist() == pytest.approx([11.0, 22.0])
    relative = merged(replace(algorithm, staleness="relative"), updates, now)
    share = 6.0 / (2.0 / 3.0 + 1)
    assert relative.memory["weights"]["b"] == pytest.approx(share / (share + 2.0))
    unaware = merged(replace(algorithm, staleness="none", importance=False), updates, now)
    assert unaware.memory["weights"] == pytest.approx({"a": 0.75, "b": 0.25})


def test_a_client_that_changed_nothing_weighs_nothing():
    _, full, _ = two_weights()
    now = state_of(1.0, 2.0)
    same = Update("a", full, now, 3, 0.0, 1.0, received=now)
    assert all(torch.equal(t, now[name]) for name, t in merged(CoS2P(), [same], now).model.items())
    assert all(torch.equal(t, now[name]) for name, t in merged(CoS2P(), [], now).model.items())


def test_coverage_by_hand():
    graph, full, half = two_weights()
    assert holders(graph, "0.weight", [full, half, half]).tolist() == [[1], [3]]
    assert holders(graph, "2.weight", [full, half]).tolist() == [[1, 2]]
    found = coverage(graph, [full, half, half], ["0.weight", "2.weight"])
    assert (found.least, found.mean, found.at_least, found.uncovered) == (1, 2.0, 0.5, 0.0)
    assert coverage(graph, [half], ["0.weight"]).uncovered == 0.5


def test_coverage_agrees_with_what_a_merge_counts(vit):
    model, graph = vit
    plans = [choose(graph, {n: torch.rand(s) for n, s in graph.map.groups.items()}, 0.5) for _ in range(3)]
    plans.append(depth_plan(graph, 0.5))
    merger = Merger(model.state_dict())
    for plan in plans:
        merger.add(plan, extract_state(model.state_dict(), plan), 1.0)
    for name, count in merger._sums._counts.items():
        assert torch.equal(count.long(), holders(graph, name, plans)), name


# --- depth, width, exits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "blocks"), [(1.0, 4), (0.99, 3), (0.75, 3), (0.5, 2), (0.3, 1), (0.01, 1)])
def test_depth_by_rate(vit, rate, blocks):
    model, graph = vit
    small = extract(model, depth_plan(graph, rate)).train()
    held = [n for n, _ in small.named_parameters() if n.startswith("model.blocks") and n.endswith("fc1.weight")]
    assert len(held) == blocks and len(small(torch.zeros(2, 3, 16, 16))) == blocks


def test_a_sub_model_computes_what_the_masked_model_does(vit):
    model, graph = vit
    x = torch.randn(3, 3, 16, 16)
    scores = {n: torch.rand(s, generator=torch.Generator().manual_seed(1)) for n, s in graph.map.groups.items()}
    plan = choose(graph, scores, 0.5).drop("after blocks.2")
    small = extract(model, plan).eval()
    deep = extract(model, SubmodelPlan.full(graph).drop("after blocks.2")).eval()
    masks = {n: torch.zeros(s).index_fill(0, torch.tensor(plan.kept[n]), 1.0) for n, s in graph.map.groups.items()}
    weights = masked(dict(deep.state_dict()), masks, channel_makers(graph, plan))
    with torch.no_grad():
        expected = torch.func.functional_call(deep, weights, (x,))
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, deep(x), atol=1e-3)
    # What it costs is read off the plan: parameters, and multiply-adds without the blocks left out.
    assert size_of(graph, plan.counts, plan.dropped).macs == graph.macs(plan.counts, plan.dropped)
    assert size_of(graph, plan.counts, plan.dropped).parameters == plan.parameters
    own = sum(t.numel() for t in small.state_dict().values())
    assert own == plan.parameters


def test_masks_of_convolutions_reach_the_norm():
    torch.manual_seed(0)
    model = har_net((8, 8, 8, 8)).eval()
    graph = ChannelGraph.trace(model, (torch.zeros(2, 9, 128),))
    plan = choose(graph, {n: torch.rand(s) for n, s in graph.map.groups.items()}, 0.5)
    masks = {n: torch.zeros(s).index_fill(0, torch.tensor(plan.kept[n]), 1.0) for n, s in graph.map.groups.items()}
    weights = masked(dict(model.state_dict()), masks, channel_makers(graph, plan))
    x = torch.randn(4, 9, 128)
    with torch.no_grad():
        expected = torch.func.functional_call(model, weights, (x,))
        torch.testing.assert_close(extract(model, plan).eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_exits_of_what_is_no_model_is_one_sentence():
    with pytest.raises(EdgePruneError, match="Exits: the model is None; give a torch.nn.Module"):
        Exits(None, {}, torch.zeros(1))


def test_linear_into_adds_at_its_index():
    layer = LinearInto(2, 4)
    stream, x = torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    torch.testing.assert_close(layer(x, stream), stream + functional.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a sum's type, and gradients of all of them
        out = layer(x, stream)
        assert torch.equal(out, stream + functional.linear(x, layer.weight, layer.bias))
        assert layer(x, stream.bfloat16()).dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_random_masks_take_the_largest_seed_there_is(vit):
    model, graph = vit
    clients, recipe = ("a", "b"), Recipe(1, 1, 0.1, 0.0, 0.0)
    setting = Setting(graph, clients, dict.fromkeys(clients, 1), recipe, 5, seed=2**63 - 1)
    plans = CoS2P(masks="random", rates=(0.5,)).init(setting, dict(model.state_dict())).plans
    assert plans["a"].id != plans["b"].id and plans["a"].retention < 1


# --- knowledge transfer ----------------------------------------------------------------------------------------------


def test_transfer_by_hand():
    shallow, deep = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    target = torch.tensor([0, 1])
    plain = at_every_exit(functional.cross_entropy)
    softmax = [[[math.exp(v / 2) for v in row] for row in t.tolist()] for t in (shallow, deep)]
    q, p = ([[v / sum(row) for v in row] for row in t] for t in softmax)
    kl = sum(b * math.log(b / a) for row_q, row_p in zip(q, p, strict=True) for a, b in zip(row_q, row_p, strict=True))
    expected = float(plain((shallow, deep), target)) + 0.5 * 4 * kl / 2
    assert float(with_transfer(plain, 0.5, 2.0)((shallow, deep), target)) == pytest.approx(expected)
    public = float(plain((shallow, deep), target)) + 0.5 * 4 * kl / 4
    assert float(with_transfer(plain, 0.5, 2.0, "mean")((shallow, deep), target)) == pytest.approx(public)


def test_the_teacher_learns_nothing_from_the_pupil():
    outputs = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    with_transfer(lambda output, target: torch.zeros(()), 1.0, 3.0)(tuple(outputs), torch.zeros(4)).backward()
    assert outputs[-1].grad is None and all(float(o.grad.abs().sum()) > 0 for o in outputs[:-1])


def test_text_counts_predictions_not_windows():
    deep, shallow = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    flat = with_transfer(lambda output, target: torch.zeros(()), 1.0, 3.0)
    whole = float(flat((shallow, deep), torch.zeros(2)))
    assert float(flat((shallow.flatten(0, 1), deep.flatten(0, 1)), torch.zeros(10))) == pytest.approx(whole)


def test_exits_train_in_a_plain_step():
    torch.manual_seed(0)
    model = Exits(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), {"0": ExitHead(4, 2)}, torch.zeros(1, 4))
    step = Step(model.train(), at_every_exit(functional.cross_entropy), Recipe(1, 8, 0.5, 0.0, 0.0))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    first = float(step(x, y))
    assert all(float(step(x, y)) < first for _ in range(3))


# --- FedRolex --------------------------------------------------------------------------------------------------------


def test_the_window_rolls_around():
    graph, _, _ = two_weights()
    setting = Setting(graph, ("a",), {"a": 1}, Recipe(1, 1, 0.1, 0.0, 0.0), 5)
    assert [window(setting, 0.5, t).kept["0"] for t in range(3)] == [(0,), (1,), (0,)]
    assert window(setting, 1.0, 7).kept["0"] == (0, 1)


# --- runs ------------------------------------------------------------------------------------------------------------


def stripes() -> Task:
    """Pictures of 16x16 of three kinds of stripes: a ViT of four blocks learns them in a few rounds."""
    from edgeprune.data.types import DataSet, Split

    generator = torch.Generator().manual_seed(0)

    def part(n):
        y = torch.arange(n) % 3
        x = 0.3 * torch.randn(n, 3, 16, 16, generator=generator)
        x[y == 1, :, ::2] += 1.0
        x[y == 2, :, :, ::2] += 1.0
        return Split(x, y)

    def dataset():
        return DataSet("stripes", part(240), part(60), ("none", "rows", "columns"), lambda x: x)

    return Task(
        "stripes",
        dataset,
        small_vit,
        lambda: (torch.zeros(2, 3, 16, 16),),
        batch_size=16,
        lr=0.05,
        loss=at_every_exit(functional.cross_entropy),
    )


@pytest.fixture
def run(tmp_path):
    """``run(algorithm, "key.path=value", ...)``: records of a run on stripes, and its folder."""
    table = LatencyTable("stripes", 16, (1_000, 100_000), (0.5, 6.0), (0.2, 2.0), 0.1)
    (tmp_path / "table.json").write_text(json.dumps(table.to_json()))
    made = []

    def go(algorithm, *sets):
        shared = ["run.rounds=8", "run.evaluate_every=8", "fleet.devices=4", "fleet.heterogeneity=2"]
        latency = f"fleet.latency={json.dumps(str(tmp_path / 'table.json'))}"
        experiment = engine.load_experiment(None, [f"task.name={__name__}:stripes", *shared, latency, *sets])
        made.append(tmp_path / f"run-{len(made)}")
        engine.start(engine.prepare(replace(experiment, algorithm=algorithm)), made[-1])
        return engine.RunDir(made[-1]).metrics(), made[-1]

    return go


def test_a_run_learns_widths_then_trains(run, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    records, path = run(CoS2P(wait_for=3, transfer_from=3, calibrate=0))
    assert not any(record["rejected"] for record in records)
    facts = [record["facts"] for record in records]
    # Everybody but the strongest learns first; whoever is late does so in a later round, with the others at work.
    assert records[0]["facts"]["weights"].keys() <= {"device-0"} and len(facts[0]["learning"]) <= 1
    assert facts[-1]["learning"] == []
    assert facts[-1]["coverage"]["least"] == 1 and facts[-1]["coverage"]["uncovered"] == 0
    assert sum(facts[-1]["weights"].values()) == pytest.approx(1.0)
    assert any(max(record["staleness"].values()) > 0 for record in records)
    assert records[-1]["accuracy"] > 0.6
    small, plan = engine.RunDir(path).model("device-3")
    assert plan.dropped and len(small.train()(torch.zeros(2, 3, 16, 16))) == 1
    own, whole = (
        sum(p.numel() for n, p in m.named_parameters() if "blocks." in n and "norm" not in n)
        for m in (small, small_vit())
    )
    assert own < 0.06 * whole  # of what can be cut; the stream's embedding, norms and heads stay as wide


def test_a_proposal_for_other_blocks_is_refused(vit):
    from edgeprune.algorithms.protocol import Assignment
    from edgeprune.engine.acceptance import accept
    from edgeprune.engine.transport import Reply
    from edgeprune.wire import Message, encode

    model, graph = vit
    asked = Assignment("a", depth_plan(graph, 0.5), {}, Recipe(1, 1, 0.1, 0.0, 0.0), job=Job(learn=0.5))

    def answer(plan):
        message = Message("update", 1, "a", asked.plan.id, {}, {"loss": 0.0}, samples=1, kept=plan.kept_bytes())
        return accept(Reply("a", encode(message), 1.0), asked, 1000, 1, 1)

    assert answer(choose(graph, {n: torch.ones(s) for n, s in graph.map.groups.items()}, 0.5).drop(
        *asked.plan.dropped)).plan.dropped == asked.plan.dropped  # fmt: skip
    for plan in (SubmodelPlan.full(graph), depth_plan(graph, 0.25)):
        with pytest.raises(EdgePruneError, match="other blocks"):
            answer(plan)


@pytest.mark.parametrize("spoilt", [2**63 - 1, 0], ids=["outside the stream", "another channel"])
def test_positions_that_a_model_looks_up_come_back_as_they_were_sent(vit, spoilt):
    """Of whole numbers the largest wins: one device could give every device's model other channels to add to."""
    from edgeprune.algorithms.protocol import Assignment
    from edgeprune.engine.acceptance import accept
    from edgeprune.engine.transport import Reply
    from edgeprune.wire import Message, encode

    model, graph = vit
    asked = Assignment("a", SubmodelPlan.full(graph), model.state_dict(), Recipe(1, 1, 0.1, 0.0, 0.0))

    def answer(state):
        message = Message("update", 1, "a", asked.plan.id, state, {"loss": 0.0}, samples=1)
        return accept(Reply("a", encode(message), 1.0), asked, 10**8, 1, 1)

    name = next(name for name in asked.state if name.endswith("proj.index"))
    assert answer(asked.state).state[name].equal(asked.state[name])
    with pytest.raises(EdgePruneError, match=f"{name!r} holds other whole numbers than were sent"):
        answer({**asked.state, name: torch.full_like(asked.state[name], spoilt)})


@pytest.mark.parametrize(
    "fields",
    [
        {"rates": ()},
        {"rates": (1.5,)},
        {"masks": "lerned"},
        {"mask_epochs": 0},
        {"temperature": 0.0},
        {"temperature": 1e300},
        {"temperature": 1e-300},
        {"transfer": -1.0},
        {"staleness": "stale"},
        {"merge_by": "units"},
        {"wait_for": -1},
    ],
    ids=str,
)
def test_a_configuration_that_means_nothing_is_one_sentence(fields):
    with pytest.raises(EdgePruneError):
        CoS2P(**fields)
