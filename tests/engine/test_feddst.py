"""FedDST on real digits: bytes, density, masks that move, and what must be refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from short_runs import maker, resumed_equals_whole, weights

from edgeprune import engine, ops, wire
from edgeprune.algorithms.clients import ClientSide
from edgeprune.algorithms.cohort import Cohort
from edgeprune.algorithms.feddst import FedDST, masks_of, mean_of_holders
from edgeprune.algorithms.protocol import Assignment, Job, Recipe, Update
from edgeprune.algorithms.readjustment import dense_gradients, readjust
from edgeprune.algorithms.training import LocalData, train_local
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine.acceptance import accept
from edgeprune.engine.run import begun
from edgeprune.engine.transport import Reply
from edgeprune.errors import EdgePruneError
from edgeprune.nn import densify, sparsify
from edgeprune.nn.batched import batched


@pytest.fixture
def tiny(latency):
    """``tiny("key.path=value", ...)``: six devices with two classes each, three of them a round."""

    return maker(
        latency,
        "algorithm.name=feddst",
        "run.rounds=4",
        "run.evaluate_every=4",
        "data.partition=classes",
        "data.per_class=10",
        "fleet.devices=6",
    )


MOVING = ("algorithm.sample=3", "algorithm.epochs=2", "algorithm.interval=2", "algorithm.alpha=0.2", "algorithm.end=4")


def directory_bytes(state, masked) -> int:
    """Of format.md: an entry has 8 + 4 a dimension + the name; 16 more where there are positions, 8 where known."""
    return sum(8 + 4 * t.dim() + len(name) for name, t in state.items()) + sum(masked.values())


def messages(monkeypatch):
    """Every update of a run as (bytes, message with packed tensors), as the worker wrote it."""
    sent = []
    encode = wire.encode

    def noted(message):
        blob = encode(message)
        if message.kind == "update":
            sent.append((blob, message))
        return blob

    monkeypatch.setattr(wire, "encode", noted)
    return sent


def test_upload_is_the_formula_and_density_is_exact_every_round(tiny, tmp_path, monkeypatch):
    sent = messages(monkeypatch)
    prepared = engine.prepare(tiny(*MOVING))
    engine.start(prepared, tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    state = prepared.model.state_dict()
    weights = sum(state[name].numel() for name in prepared.setting.maskable)
    kept = sum(
        (ops.mask_count(mask) if mask is not None else state[name].numel())
        for name, mask in {
            name: prepared.experiment.algorithm.init(prepared.setting, dict(state)).tensors.get(f"mask/{name}")
            for name in prepared.setting.maskable
        }.items()
    )
    assert kept == round(0.2 * weights)
    others = sum(t.numel() * t.element_size() for name, t in state.items() if name not in prepared.setting.maskable)
    assert [len(r["participants"]) for r in records] == [3, 3, 3, 3]
    assert len(sent) == 12
    for i, (blob, message) in enumerate(sent):
        moving = records[i // 3]["round"] % 2 == 0
        known = sum(one.known for one in message.packed.values())
        assert known == (0 if moving else len(message.packed))
        positions = sum(
            len(wire.positions.encode(one.mask, one.numel, one.kept).data)
            for one in message.packed.values()
            if not one.known and one.mask is not None
        )
        if moving:
            assert 0 < positions <= weights / 8  # at most one bit a weight
        meta = len(json.dumps(dict(message.header), sort_keys=True, separators=(",", ":")))
        listed = directory_bytes(state, {n: 8 if one.known else 16 for n, one in message.packed.items()})
        assert len(blob) == 72 + len(message.client) + meta + listed + 4 * kept + others + positions + 4
    assert all(r["facts"]["density"] == kept / weights for r in records)
    assert [r["facts"]["moved"] > 0 for r in records] == [False, True, False, True]
    assert sum(r["upload_bytes"] for r in records) == sum(len(blob) for blob, _ in sent)


def test_served_weights_are_zero_outside_the_masks(tiny, tmp_path):
    prepared = engine.prepare(tiny(*MOVING, "run.rounds=2"))
    engine.start(prepared, tmp_path / "run")
    state = checkpoints.load(tmp_path / "run" / checkpoints.FILE, prepared.graph).state
    before = masks_of(prepared.experiment.algorithm.init(prepared.setting, prepared.model.state_dict()))
    for name, mask in masks_of(state).items():
        flat = state.model[name].reshape(-1)
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[ops.mask_to_indices(mask, len(flat))] = True
        assert bool((flat[~kept] == 0).all())
        assert ops.mask_count(mask) == ops.mask_count(before[name])
    assert any(not torch.equal(mask, before[name]) for name, mask in masks_of(state).items())


def update(state, masks, samples):
    return Update("c", None, state, samples, 0.0, 1.0, masks)


def test_a_merge_by_hand():
    model = {"w": torch.tensor([1.0, 2.0, 0.0, 0.0]), "b": torch.tensor([0.0])}

    def mask(places):
        return {"w": ops.mask_from_indices(torch.tensor(places), 4)}

    updates = [
        update({"w": torch.tensor([4.0, 0.0, 2.0, 0.0]), "b": torch.tensor([1.0])}, mask([0, 2]), 1),
        update({"w": torch.tensor([8.0, 6.0, 0.0, 0.0]), "b": torch.tensor([5.0])}, mask([0, 1]), 3),
    ]
    merged = mean_of_holders(model, updates)
    # first: (4 + 3 * 8) / 4; second and third: their one holder; fourth: nobody's, stays; bias: (1 + 15) / 4
    assert merged["w"].tolist() == [7.0, 6.0, 2.0, 0.0] and merged["b"].tolist() == [4.0]
    assert all(torch.equal(merged[n], t) for n, t in mean_of_holders(model, updates[::-1]).items())


def test_annealing_and_when_masks_move():
    algorithm = FedDST(alpha=0.1, interval=5)
    assert algorithm.alpha_at(0, 100) == pytest.approx(0.1)
    assert algorithm.alpha_at(25, 100) == pytest.approx(0.05)
    assert algorithm.alpha_at(50, 100) == 0.0
    assert FedDST(alpha=0.1, anneal="constant").alpha_at(25, 100) == 0.1
    assert FedDST(alpha=0.1, anneal="squared").alpha_at(25, 100) == pytest.approx(0.005)


def one_layer(seed=0):
    torch.manual_seed(seed)
    model = sparsify(torch.nn.Sequential(torch.nn.Linear(6, 2, bias=False)), 0.5)
    data = LocalData(torch.randn(8, 6), torch.randint(0, 2, (8,)), lambda x: x)
    return model, data


@pytest.mark.parametrize("batch_size", [3, 1])  # batches of 3, 3 and 2: weighted by their samples
def test_dense_gradients_are_those_of_the_dense_network(batch_size):
    model, data = one_layer()
    recipe = Recipe(1, batch_size, 0.1, 0.9, 0.0)
    weight = model[0].weight.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(data.x.double() @ weight.T, data.y).backward()
    found = dense_gradients(model, data, torch.nn.functional.cross_entropy, recipe)
    torch.testing.assert_close(found["0.weight"].double(), weight.grad, rtol=1e-5, atol=1e-6)
    bits, twice = {"0.weight": [model[0].pattern.bits] * 2}, batched(densify(model), 2, torch.device("cpu"))
    states, loss_of = [model.state_dict()] * 2, torch.nn.functional.cross_entropy
    cohort = Cohort(twice, states, bits, [data, data], loss_of, recipe, torch.device("cpu"))
    for each in cohort.dense_gradients()["0.weight"]:
        torch.testing.assert_close(each.double(), weight.grad, rtol=1e-5, atol=1e-6)


def test_training_goes_on_after_the_move_and_the_reference_of_fedprox_follows():
    model, data = one_layer()
    before = model[0].pattern
    recipe = Recipe(2, 4, 0.1, 0.9, 0.0, prox=0.5)
    job = Job(readjust=0.34, after=1)
    loss = torch.nn.functional.cross_entropy
    train_local(model, data, loss, recipe, 0, readjust(model, data, loss, recipe, job))
    new = ops.mask_to_indices(model[0].pattern.bits & (model[0].pattern.bits ^ before.bits), 12)
    assert model[0].pattern.kept == before.kept and len(new)
    assert bool((model[0].weight.reshape(-1)[new] != 0).all())  # grown at zero, and trained since


def test_moving_after_the_last_epoch_leaves_grown_weights_at_zero():
    model, data = one_layer()
    before = model[0].pattern
    recipe, loss = Recipe(2, 4, 0.1, 0.9, 0.0), torch.nn.functional.cross_entropy
    train_local(model, data, loss, recipe, 0, readjust(model, data, loss, recipe, Job(readjust=0.34, after=2)))
    new = ops.mask_to_indices(model[0].pattern.bits & (model[0].pattern.bits ^ before.bits), 12)
    assert len(new) and model[0].weight.reshape(-1)[new].tolist() == [0.0] * len(new)


@pytest.mark.parametrize("kind", ["nan", "shape", "truncated", "forged", "drop"])
def test_a_faulty_client_is_refused_and_the_others_go_on(tiny, tmp_path, kind):
    fault = f'fleet.fault=[{{device="device-2", kind="{kind}", first=1, last=1}}]'
    engine.start(engine.prepare(tiny("run.rounds=1", "algorithm.epochs=1", fault)), tmp_path / "run")
    (record,) = engine.RunDir(tmp_path / "run").metrics()
    assert list(record["rejected"]) == ["device-2"] and len(record["participants"]) == 5


def test_a_client_may_not_keep_more_or_other_weights(tiny):
    prepared = engine.prepare(tiny())
    algorithm, setting = prepared.experiment.algorithm, prepared.setting
    asked: Assignment = algorithm.assign(setting, algorithm.init(setting, prepared.model.state_dict()))[0]
    name = sorted(asked.masks)[0]
    other = ~asked.masks[name]

    def reply(masks, known=False):
        packed = {n: wire.pack_tensor(torch.ones_like(asked.state[n]), m, known=known) for n, m in masks.items()}
        whole = {n: t for n, t in asked.state.items() if n not in masks}
        message = wire.Message(
            "update", 1, asked.client, asked.plan.id, whole, {"loss": 1.0, "steps": 1}, 20,
            mask=wire.mask_id(masks) if known else "", packed=packed,
        )  # fmt: skip
        return Reply(asked.client, wire.encode(message), 1.0)

    fine = accept(reply(asked.masks, known=True), asked, 10**6, 1, 20)
    assert {n: m.tolist() for n, m in fine.masks.items()} == {n: m.tolist() for n, m in asked.masks.items()}
    with pytest.raises(EdgePruneError, match="not the one that was sent"):
        accept(reply({**asked.masks, name: other}), asked, 10**6, 1, 20)
    moving = replace(asked, job=Job(readjust=0.1, after=1))
    with pytest.raises(EdgePruneError, match="keeps"):
        accept(reply({**asked.masks, name: other}), moving, 10**6, 1, 20)
    with pytest.raises(EdgePruneError, match="not held here"):
        accept(reply({**asked.masks, name: other}, known=True), moving, 10**6, 1, 20)


@pytest.mark.parametrize("round_", [1, 2, 3])
@pytest.mark.parametrize("extra", [(), ("algorithm.upload=int8", "algorithm.feedback=true")], ids=["fp32", "feedback"])
def test_resuming_equals_never_stopping(tiny, tmp_path, monkeypatch, round_, extra):
    sets = (*MOVING, *extra, "algorithm.sample=4")
    resumed_equals_whole(tiny(*sets), tmp_path, monkeypatch, round_)
    assert any(name.startswith(checkpoints.DEVICES) for name in weights(tmp_path / "whole")) == bool(extra)


@pytest.mark.parametrize(
    "sets",
    [
        ("algorithm.moves=server",),
        ("algorithm.moves=never", "algorithm.start=random"),
        ("algorithm.grow_any=true", "algorithm.growth_data=batch", "algorithm.softmax=true", "algorithm.after=2"),
        ("algorithm.sparsity=0.0",),
        ("algorithm.upload=fp16", "algorithm.prox=0.1"),
    ],
    ids=["prunefl", "random", "public", "dense", "fp16-prox"],
)
def test_every_variant_runs_and_keeps_its_density(tiny, tmp_path, sets):
    engine.start(engine.prepare(tiny(*MOVING, *sets, "run.rounds=2")), tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert not any(record["rejected"] for record in records)
    density = records[1]["facts"]["density"]
    due = 1.0 if "algorithm.sparsity=0.0" in sets else 0.2
    # Public growth may lose weights at the clients; the union at the server holds what it can.
    assert density == pytest.approx(due, abs=2e-3 if "algorithm.grow_any=true" in sets else 1e-4)


def test_sampling_is_the_same_for_every_algorithm_and_without_repetition(tiny):
    prepared = engine.prepare(tiny())
    setting = prepared.setting
    drawn = [FedDST(sample=4).participants(setting, r) for r in range(20)]
    assert drawn == [ClientSide(sample=4).participants(setting, r) for r in range(20)]
    assert all(len(set(clients)) == 4 for clients in drawn) and len({tuple(c) for c in drawn}) > 5
    assert any(len(FedDST(sample=4, replacement=True).participants(setting, r)) < 4 for r in range(20))
    with pytest.raises(EdgePruneError, match="6 devices"):
        FedDST(sample=7).participants(setting, 0)


@pytest.mark.parametrize(
    "fields",
    [{"sparsity": 1.0}, {"alpha": -0.1}, {"interval": 0}, {"after": 11}, {"moves": "sometimes"}, {"upload": "fp8"}],
    ids=str,
)
def test_a_configuration_that_means_nothing_is_one_sentence(fields):
    with pytest.raises(EdgePruneError, match="algorithm"):
        FedDST(**fields)


def test_masks_that_could_never_move_are_refused_where_the_task_says_how_many_epochs(tiny):
    prepared = engine.prepare(tiny("algorithm.epochs=0", "algorithm.after=2"))
    with pytest.raises(EdgePruneError, match=r"algorithm.after is 2, there are 1 epochs"):
        begun(prepared)


def whole_update(client, samples, **state):
    return Update(client, None, state, samples, 0.1, 1.0, {})


def test_a_large_value_in_one_tensor_leaves_the_mean_of_the_others_exact():
    generator = torch.Generator().manual_seed(0)
    fine = [torch.randn(1000, generator=generator) for _ in range(2)]
    updates = [
        whole_update("a", 30_000, fine=fine[0], coarse=torch.tensor([1e19])),
        whole_update("b", 10_000, fine=fine[1], coarse=torch.tensor([0.0])),
    ]
    found = mean_of_holders(updates[0].state, updates)
    expected = (3 * fine[0].double() + fine[1].double()) / 4
    assert (found["fine"].double() - expected).abs().max() < 2e-7
    assert found["coarse"].item() == pytest.approx(7.5e18)


@pytest.mark.parametrize("most", [1, 1 << 44])
def test_any_number_of_samples_can_be_averaged(most):
    updates = [
        whole_update("a", 3 * 10_000_000 * most, w=torch.ones(4)),
        whole_update("b", 10_000_000 * most, w=-torch.ones(4)),
    ]
    assert torch.allclose(mean_of_holders(updates[0].state, updates)["w"], torch.full((4,), 0.5), atol=1e-5)
