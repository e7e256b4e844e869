"""The batched executor against the serial one, round by round, on real digits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from short_runs import maker, resumed_equals_whole, weights
from torch import nn
from torch.nn import functional

from edgeprune import engine, tasks
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.training import LocalData
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine.executor import Batched, Serial, check_device
from edgeprune.engine.worker import ModelShelf, Order
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan, masks
from edgeprune.tasks.task import initial_model

SHARED = ("run.rounds=3", "run.evaluate_every=1", "data.partition=classes", "data.per_class=10", "fleet.devices=6")
TWO = ("algorithm.sample=3", "algorithm.epochs=2")
MOVING = ("algorithm.name=feddst", *TWO, "algorithm.interval=2", "algorithm.alpha=0.2", "algorithm.end=4")
PUBLIC = ("grow_any=true", "growth_data=batch", "softmax=true", "after=2", "distribution=public", "prox_detached=true")
FEDAVG = ("algorithm.name=fedavg", *TWO)
UNEQUAL = ("data.partition=dirichlet", "data.samples=240")
IID = ("data.partition=iid", "data.samples=90")
MPFL = ("algorithm.name=mpfl", "algorithm.iterations=2", "algorithm.step=0.3", *IID)
ADAPTCL = ("algorithm.name=adaptcl", "algorithm.interval=1", "algorithm.calibrate=0", *UNEQUAL, "fleet.devices=3")

EXACT = {
    "feddst": (*MOVING, "algorithm.prox=0.1"),
    "feddst-as-public": (*MOVING, *(f"algorithm.{way}" for way in PUBLIC)),
    "prunefl-like": (*MOVING, "algorithm.moves=server"),
    "random-mask": (*MOVING, "algorithm.moves=never", "algorithm.start=random"),
    "server-momentum": (*FEDAVG, "algorithm.server_momentum=0.9", "algorithm.prox=0.1"),
    "unequal": (*FEDAVG, *UNEQUAL, "algorithm.sample=6"),
    "mpfl": MPFL,
    "not-batched": ("algorithm.name=adp", "algorithm.every=0", "algorithm.threshold=0.01", *IID),
    "adaptcl": (*ADAPTCL, "algorithm.bn_l1=0.01"),
}
ROUNDED = {
    "fp16": (*MOVING, "algorithm.upload=fp16"),
    "int8-feedback": (*MOVING, "algorithm.upload=int8", "algorithm.feedback=true"),
    "topk": (*FEDAVG, "algorithm.density=0.1", "algorithm.feedback=true"),
}


@pytest.fixture
def both(latency, tmp_path):
    """``both("key.path=value", ...)``: each executor's records and last checkpoint."""

    def run(*sets: str, device: str = "cpu"):
        prepared = engine.prepare(maker(latency, *SHARED)(*sets))
        found = []
        for kind in ("serial", "batched"):
            run_ = replace(prepared.experiment.run, executor=kind, device=device if kind == "batched" else "cpu")
            engine.start(replace(prepared, experiment=replace(prepared.experiment, run=run_)), tmp_path / kind)
            there = engine.RunDir(tmp_path / kind)
            assert there.summary()["executor"] == kind
            found.append((there.metrics(), weights(tmp_path / kind)))
        return found

    return run


@pytest.mark.parametrize("name", EXACT)
def test_same_masks_plans_and_accuracy_round_by_round(both, name):
    (serial, one), (together, other) = both(*EXACT[name])
    for a, b in zip(serial, together, strict=True):
        assert not b["rejected"]
        for key in ("participants", "retention", "accuracy", "client_accuracy", "facts"):
            assert a.get(key) == b.get(key)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        # An update's header holds its training loss in decimals: a few digits more or less a client.
        assert abs(a["upload_bytes"] - b["upload_bytes"]) <= 6 * len(b["participants"])
        assert a["download_bytes"] == b["download_bytes"]
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(other[key], tensor), key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", EXACT)
def test_a_cuda_device_trains_and_judges_alike(both, name):
    (serial, one), (together, other) = both(*EXACT[name], device="cuda")
    for a, b in zip(serial, together, strict=True):
        assert a["participants"] == b["participants"] and not b["rejected"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=0.02)
    for key, tensor in one.items():
        if tensor.is_floating_point() and not key.startswith(checkpoints.SERVER):
            # Where two weights or gradients are nearly equal, another one may be pruned or grown.
            off = (other[key] - tensor).abs() > 1e-3 * max(1.0, float(tensor.abs().max()))
            assert float(off.double().mean()) < 0.02, key


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_on_the_way_may_fall_either_side_but_ends_alike(both, name):
    (serial, one), (together, other) = both(*ROUNDED[name])
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        if not key.startswith((checkpoints.SERVER, checkpoints.DEVICES)):
            # A value beside a border is coded one step further, or not sent: that may happen to few of them.
            off = (other[key] - tensor).abs() > 2e-3
            assert float(off.double().mean()) < 0.02, key
    for a, b in zip(serial, together, strict=True):
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=0.01)
        assert a["participants"] == b["participants"] and not b["rejected"]


def test_a_batched_run_resumes_bit_for_bit(latency, tmp_path, monkeypatch):
    resumed_equals_whole(maker(latency, *SHARED)(*MOVING, "run.executor=batched"), tmp_path, monkeypatch, 2)


def test_more_clients_than_the_width_come_in_turns(latency, monkeypatch, tmp_path):
    sizes = []
    together = Batched._together
    monkeypatch.setattr(Batched, "_together", lambda self, group: sizes.append(len(group)) or together(self, group))
    monkeypatch.setattr(Batched.__init__, "__defaults__", (4,))
    experiment = maker(latency, *SHARED)("algorithm.name=fedavg", "run.executor=batched", "run.rounds=1")
    engine.start(engine.prepare(experiment), tmp_path / "run")
    assert sizes == [4, 2]


@pytest.mark.parametrize("key", ["run.executor=fast", "run.device=tpu"])
def test_an_unknown_executor_or_device_is_one_sentence(key):
    with pytest.raises(EdgePruneError, match="run."):
        engine.load_experiment(None, [key])


def test_a_device_that_cannot_train_is_one_sentence():
    with pytest.raises(EdgePruneError, match="only run.executor = 'batched'"):
        check_device("serial", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(EdgePruneError, match="torch sees no CUDA device"):
            check_device("batched", "cuda")


def test_only_models_of_the_plans_used_last_are_kept(latency):
    prepared = engine.prepare(maker(latency, *SHARED)("algorithm.name=fedavg"))
    executor = Batched(ModelShelf(prepared.model), prepared.task.loss, torch.device("cpu"))
    plan = prepared.experiment.algorithm.init(prepared.setting, {}).plans["device-0"]
    models = [executor._model(plan, clients) for clients in range(1, 7)]
    assert executor._model(plan, 6) is models[5] and executor._model(plan, 1) is not models[0]


class Centred(nn.Module):
    """What it says of a sample depends on the others of its batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.body(x.flatten(1))
        return self.head(torch.relu(x - x.mean(0)))


class Tilted(Centred):
    """A weight at work outside its layer."""

    def forward(self, x):
        return functional.linear(torch.relu(self.body(x.flatten(1))), self.head.weight)


class Told(Centred):
    """An output with a name."""

    def forward(self, x):
        return {"digit": self.head(torch.relu(self.body(x.flatten(1))))}


def of_told(function):
    return lambda output, y: function(output["digit"], y)


@pytest.mark.parametrize("model", [Centred, Tilted, Told])
def test_a_users_network_that_cannot_be_batched_is_trained_one_by_one(both, monkeypatch, model):
    task = replace(tasks.get("digits"), make_model=model)
    if model is Told:
        task = replace(task, loss=of_told(task.loss), correct=of_told(task.correct))
    monkeypatch.setattr("edgeprune.engine.run.get_task", lambda name: task)
    (serial, alone), (together, batched) = both("algorithm.name=fedavg", "run.rounds=2")
    assert [record["loss"] for record in together] == [record["loss"] for record in serial]
    assert all(torch.equal(tensor, batched[name]) for name, tensor in alone.items())


def test_a_normalisation_that_draws_draws_for_every_batch_of_a_client(latency, monkeypatch, tmp_path):
    rows = []
    plain = tasks.get("digits").load_data()

    def drawing(x):  # not from torch's generator
        rows.append(len(x))
        return plain.normalise(x) + random.random()

    task = replace(tasks.get("digits"), dataset=lambda: replace(plain, normalise=drawing))
    monkeypatch.setattr("edgeprune.engine.run.get_task", lambda name: task)
    sets = ("algorithm.name=fedavg", "algorithm.epochs=2", "run.executor=batched", "fleet.devices=2", "run.rounds=1")
    engine.start(engine.prepare(maker(latency, *SHARED)(*sets, "data.per_class=20")), tmp_path / "run")
    assert rows.count(32) == rows.count(8) == 2 * 2  # the batches of two clients with 40 samples, in two epochs


class Partly(torch.nn.Module):
    """A frozen layer, one that nothing goes through, and two that are trained."""

    def __init__(self):
        super().__init__()
        self.frozen, self.idle = torch.nn.Linear(64, 32), torch.nn.Linear(32, 32)
        self.hidden, self.head = torch.nn.Linear(32, 32), torch.nn.Linear(32, 10)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(torch.relu(self.frozen(x.flatten(1))))))


def partly_trained():
    """Digits by half a network."""
    return replace(tasks.get("digits"), make_model=Partly)


@pytest.mark.parametrize("moves", ["clients", "server"])
def test_masks_move_beside_layers_that_are_not_trained(both, moves):
    sets = (*MOVING, f"task.name={__name__}:partly_trained", f"algorithm.moves={moves}")
    begun = initial_model(partly_trained(), 0).frozen
    for records, kept in both(*sets):
        assert not any(record["rejected"] for record in records) and records[1]["facts"]["moved"] > 0
        assert torch.equal(kept["frozen.weight"], begun.weight)
        assert f"{checkpoints.SERVER}mask/frozen.weight" not in kept


class Dropped(torch.nn.Module):
    """Dropout as a function: no layer says that it is there."""

    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("where", ["layer", "function", "inputs"])
@pytest.mark.parametrize("kind", [Serial, lambda *one: Batched(*one, torch.device("cpu"))], ids=["serial", "batched"])
def test_what_training_draws_belongs_to_each_clients_seed(kind, where, masked):
    torch.manual_seed(0)
    between = {"layer": torch.nn.Dropout(0.5), "function": Dropped(), "inputs": torch.nn.Tanh()}[where]
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), between, torch.nn.Linear(16, 2))
    plan = SubmodelPlan.full(ChannelGraph.trace(model.eval(), (torch.zeros(2, 6),)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights_ = {name: tensor for name, tensor in state.items() if name.endswith("weight")}
    held = masks.start(weights_, 0.5, "uniform", "random", 0) if masked else {}
    state |= {name: masks.applied(state[name], mask) for name, mask in held.items()}

    def noisy(x):
        return x + torch.randn_like(x) if where == "inputs" else x

    def made(seed):
        data = LocalData(torch.randn(8, 6), torch.arange(8) % 2, noisy)
        return Order(None, plan, Recipe(2, 4, 0.1, 0.9, 0.0), Job(gradient=masked), seed, state, held, data, False)

    orders = [made(seed) for seed in (1, 2, 3)]
    executor = kind(ModelShelf(model), torch.nn.functional.cross_entropy)

    def trained(some):
        found = {}
        for order, done in executor(some):
            found |= {f"{order.seed}/{n}": t.clone() for n, t in {**done.state, **done.gradients}.items()}
        return found

    before = torch.get_rng_state()
    first = trained(orders)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's stream stays untouched
    torch.manual_seed(5)
    again = trained(orders[:1]) | trained(orders[1:])
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
