"""The baselines that are switches of federated averaging, by hand and on real digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from short_runs import maker, resumed_equals_whole

from edgeprune import engine, wire
from edgeprune.algorithms.adaptcl import AdaptCL
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.algorithms.fedrolex import FedRolex
from edgeprune.algorithms.heterofl import HeteroFL
from edgeprune.algorithms.protocol import Job, Recipe, State, Update
from edgeprune.algorithms.training import LocalData, train_local
from edgeprune.engine.answers import answer_with
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan


@pytest.fixture
def tiny(latency):
    """``tiny(algorithm, "key.path=value", ...)``: four devices, two rounds."""

    def make(algorithm, *sets: str):
        short = maker(latency, "run.rounds=2", "run.evaluate_every=2", "data.samples=200", "fleet.devices=4")
        return replace(short(*sets), algorithm=algorithm)

    return make


def line():
    """A model of one weight, its plan, and an update that says it is now ``value``."""
    model = torch.nn.Linear(1, 1, bias=False)
    graph = ChannelGraph.trace(model, (torch.zeros(2, 1),))
    plan = SubmodelPlan.full(graph)
    return (
        {"weight": torch.tensor([[1.0]])},
        plan,
        lambda v: Update("c", plan, {"weight": torch.tensor([[v]])}, 1, 0.0, 1.0),
    )


def test_server_momentum_by_hand():
    model, plan, says = line()
    algorithm = FedAvg(server_momentum=0.5, server_lr=0.1)
    state = State(0, model, {"c": plan})
    state = algorithm.merge(None, state, [says(0.0)])  # v = 1, w = 1 - .1
    assert state.model["weight"].item() == pytest.approx(0.9)
    state = algorithm.merge(None, state, [says(0.5)])  # v = .5 + .4, w = .9 - .09
    assert state.model["weight"].item() == pytest.approx(0.81)
    assert state.round == 2


def test_fedprox_pulls_back_by_hand():
    # loss = 0 * w: the pull alone. w0 = 1; after the first step nothing has moved, so it starts from a loss of w.
    model = torch.nn.Linear(1, 1, bias=False)
    data = LocalData(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), lambda x: x)
    for prox, expected in ((0.0, 0.8), (1.0, 0.81)):  # 1 - .1 - .1; with the pull: .9, then .9 - .1 (1 + (.9 - 1))
        with torch.no_grad():
            model.weight.fill_(1.0)
        recipe = Recipe(2, 1, 0.1, 0.0, 0.0, prox=prox)
        train_local(model, data, lambda output, target: output.sum(), recipe, 0)
        assert model.weight.item() == pytest.approx(expected)


def test_the_public_proximal_term_has_no_effect():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    start = {name: t.clone() for name, t in model.state_dict().items()}
    data = LocalData(torch.randn(6, 3), torch.randint(0, 2, (6,)), lambda x: x)
    found = []
    for fields in ({}, {"prox": 1.0, "prox_detached": True}, {"prox": 1.0}):
        model.load_state_dict(start)
        train_local(model, data, torch.nn.functional.cross_entropy, Recipe(3, 2, 0.1, 0.9, 0.0, **fields), 0)
        found.append(model.weight.detach().clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_what_is_not_sent_is_owed_and_sent_later():
    received = {"w": torch.zeros(4)}
    state = {"w": torch.tensor([4.0, 3.0, 2.0, 1.0])}
    job = Job(change=True, density=0.5, feedback=True)
    first = answer_with(state, received, {}, {}, {}, job, {})
    assert first.packed["w"].tensor().tolist() == [4.0, 3.0, 0.0, 0.0]
    assert first.residual["w"].tolist() == [0.0, 0.0, 2.0, 1.0]
    second = answer_with({"w": torch.tensor([0.5, 0.0, 1.0, 2.5])}, received, {}, {}, {}, job, first.residual)
    assert second.packed["w"].tensor().tolist() == [0.0, 0.0, 3.0, 3.5]
    assert second.residual["w"].tolist() == [0.5, 0.0, 0.0, 0.0]


def test_outside_a_mask_nothing_is_owed():
    mask = {"w": wire.to_bitmap(torch.tensor([True, True, False, False]))}
    state, received = {"w": torch.tensor([0.3, 100.0, 0.0, 0.0])}, {"w": torch.zeros(4)}
    job = Job(change=True, dtype="int8", feedback=True)
    owed = {"w": torch.tensor([0.0, 0.0, 5.0, 5.0])}
    done = answer_with(state, received, mask, mask, {}, job, owed)
    assert done.residual["w"][2:].tolist() == [0.0, 0.0]
    sent = done.packed["w"].tensor()
    torch.testing.assert_close(sent + done.residual["w"], state["w"])
    assert abs(done.residual["w"][0]) > 0  # a step of the scale is 100 / 127


@pytest.mark.parametrize(
    ("algorithm", "share"),
    [
        (FedAvg(upload="fp16"), 0.5),
        (FedAvg(upload="int8"), 0.25 * (1 + 4 / 256)),
        (FedAvg(upload="int8", feedback=True), 0.25 * (1 + 4 / 256)),
        (FedAvg(density=0.1, feedback=True), 0.1 + 0.47 / 32),  # positions: the entropy of a tenth, or less
        (AdaptCL(upload="int8", feedback=True, prox=0.01, calibrate=0), 0.25 * (1 + 4 / 256)),  # all are whole yet
    ],
    ids=["fp16", "int8", "int8-feedback", "topk", "adaptcl"],
)
def test_narrow_uploads_take_their_share_and_still_learn(tiny, tmp_path, algorithm, share):
    engine.start(engine.prepare(tiny(FedAvg())), tmp_path / "dense")
    engine.start(engine.prepare(tiny(algorithm)), tmp_path / "narrow")
    dense, narrow = (engine.RunDir(tmp_path / name).metrics() for name in ("dense", "narrow"))
    # Headers, names and float32 leftovers of tiny tensors are a few kilobytes.
    room = 4 * 3000
    assert narrow[0]["upload_bytes"] <= share * dense[0]["upload_bytes"] * 1.03 + room
    assert not any(record["rejected"] for record in narrow)
    assert narrow[-1]["loss"] == pytest.approx(dense[-1]["loss"], abs=0.5)


def test_what_is_owed_follows_its_weights_after_an_answer_that_was_lost(tiny, tmp_path, monkeypatch):
    """The server forgets the plan of a device that did not answer; what that device owes belongs to it all the same."""
    lost = 'fleet.fault=[{device="device-1", kind="drop", first=2, last=2}]'
    algorithm = FedRolex(rates=(0.5,), upload="int8", feedback=True, calibrate=0)
    resumed_equals_whole(tiny(algorithm, "run.rounds=4", lost), tmp_path, monkeypatch, 2)


def test_adaptcl_shrinks_and_resumes_with_what_averaging_has(tiny, tmp_path, monkeypatch):
    """Narrow uploads with feedback whose sub-models change at every stage, of three devices a round."""
    algorithm = AdaptCL(interval=2, upload="int8", feedback=True, prox=0.01, sample=3, calibrate=0)
    resumed_equals_whole(tiny(algorithm, "run.rounds=6"), tmp_path, monkeypatch, 4)
    records = engine.RunDir(tmp_path / "whole").metrics()
    assert all(len(record["participants"]) == 3 and not record["rejected"] for record in records)
    assert min(records[-1]["retention"].values()) < 1


def test_heterofl_deals_nested_widths(tiny, tmp_path):
    prepared = engine.prepare(tiny(HeteroFL(rates=(1.0, 0.5), calibrate=1)))
    engine.start(prepared, tmp_path / "run")
    retention = engine.RunDir(tmp_path / "run").metrics()[0]["retention"]
    assert list(retention.values()) == [1.0, 1.0, 0.5, 0.5]
    plans = prepared.experiment.algorithm.init(prepared.setting, {}).plans
    assert all(kept == tuple(range(len(kept))) for plan in plans.values() for kept in plan.kept.values())


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (FedAvg, {"server_momentum": 1.0}),
        (FedAvg, {"density": 0.0}),
        (FedAvg, {"prox": -1.0}),
        (FedAvg, {"sample": -1}),
        (HeteroFL, {"rates": (1.5,)}),
    ],
    ids=str,
)
def test_a_configuration_that_means_nothing_is_one_sentence(cls, fields):
    with pytest.raises(EdgePruneError, match=r"algorithm\."):
        cls(**fields)
