"""Gated convolutions: values, work and statistics; channel sets of a device's own; thresholds; export to ONNX."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import engine
from edgeprune.algorithms.adp import ADP, difference, plain, specialised, zero_small
from edgeprune.algorithms.protocol import Recipe, Setting, State, Update
from edgeprune.algorithms.training import LocalData, train_local
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import LatencyTable
from edgeprune.nn.gated import GatedConv2d, GatedNet, active_macs, gate_statistics, gated_layers
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, extract
from edgeprune.tasks import Task
from edgeprune.tasks.gated import VGG_16, gated_vgg


def net(keep: float = 0.5) -> GatedNet:
    """Three gated convolutions whose norms have statistics of their own."""
    torch.manual_seed(0)
    layers = [GatedConv2d(3, 8, keep=keep), nn.MaxPool2d(2), GatedConv2d(8, 12, stride=2, keep=keep)]
    model = GatedNet([*layers, GatedConv2d(12, 16, keep=keep)], 4)
    for layer in gated_layers(model).values():
        layer.bn.running_mean.normal_()
        layer.bn.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(layer.bn.bias)
    return model.eval()


@pytest.fixture(scope="module")
def traced():
    model = net()
    return model, ChannelGraph.trace(model, (torch.zeros(2, 3, 16, 16),))


def test_gates_by_hand():
    layer = GatedConv2d(2, 4, keep=0.5).eval()
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.5, 0.5]]))
    g = layer.gates(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    # 1 + (1, 0, -3, .5) and 1 + (0, 2, 0, 1), without the two smallest of each.
    assert g.tolist() == [[2.0, 0.0, 0.0, 1.5], [0.0, 3.0, 0.0, 2.0]]


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 1.0])
def test_gathered_channels_give_what_zeros_give(batch, keep):
    model, x = net(keep), torch.randn(batch, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        model.gathered = True
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_gathered_layers_compute_no_more_than_what_is_on():
    model, x = net(0.5), torch.randn(2, 3, 16, 16)
    compact = gated_layers(model)["features.0"].forward_gathered((x, None))
    assert compact[0].shape == (2, 4, 16, 16) and compact[1].shape == (2, 4)
    pooled = model.features[1](compact[0])
    values, chosen = gated_layers(model)["features.2"].forward_gathered((pooled, compact[1]))
    assert values.shape == (2, 6, 4, 4) and not torch.equal(chosen[0].sort().values, chosen[1].sort().values)


def test_dead_inputs_turn_on_no_more_channels():
    """All gates are 1 then: as many are on as ever."""
    layer = GatedConv2d(3, 8, keep=0.25).eval()
    assert int((layer.gates(torch.zeros(2, 3)) > 0).sum()) == 2 * 2


def test_training_reaches_gates_and_convolutions():
    model = net().train()
    model(torch.randn(6, 3, 16, 16)).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_multiply_adds_by_hand():
    model = net(0.5)
    dense = 256 * 9 * 3 * 8 + 16 * 9 * 8 * 12 + 16 * 9 * 12 * 16 + 16 * 4
    active = 256 * 9 * 3 * 4 + 16 * 9 * 4 * 6 + 16 * 9 * 6 * 8 + 8 * 4 + (3 * 8 + 8 * 12 + 12 * 16)
    assert active_macs(model, torch.zeros(1, 3, 16, 16)) == (active, dense)


def test_half_of_vgg_16s_work_with_seven_tenths_of_its_channels():
    model = gated_vgg(VGG_16)
    active, dense = active_macs(model, torch.zeros(1, 3, 32, 32))
    assert active / dense <= 0.505
    gates = sum(p.numel() for layer in gated_layers(model).values() for p in layer.gate.parameters())
    assert gates / (sum(p.numel() for p in model.parameters()) - gates) == pytest.approx(0.11, abs=0.005)


def test_statistics_are_means_over_all_samples():
    model, x = net().train(), torch.randn(10, 3, 16, 16)
    model.head.eval()
    whole, parts = gate_statistics(model, [x]), gate_statistics(model, x.split(3))
    layer = gated_layers(model)["features.0"]
    expected = layer.gates(x.mean((2, 3))).mean(0).double()
    torch.testing.assert_close(whole["features.0"], expected, check_dtype=False)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert layer._seen is None
    active_macs(model, x)
    assert model.training and layer.bn.training and not model.head.training  # as it was


def test_a_specialised_model_gives_what_the_gates_give_where_they_keep_its_channels(traced):
    """One sample repeated: its own channels are the device's, so cutting the others changes nothing."""
    model, graph = traced
    x = torch.randn(1, 3, 16, 16)
    plan = specialised(model, graph, [x, x], 0.5)
    small = extract(model, plan).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
        small.gathered = True
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    counts = [layer.conv.out_channels for layer in gated_layers(small).values()]
    assert counts == [4, 6, 8] == [layer.on() for layer in gated_layers(small).values()]
    assert active_macs(small, x)[1] < 0.52 * active_macs(model, x)[1]


def test_without_gates_one_sample_is_served_as_with_them(traced):
    """Its own gates are the mean gates, so folding them into the norms changes nothing."""
    model, graph = traced
    x = torch.randn(1, 3, 16, 16)
    small = extract(model, specialised(model, graph, [x], 0.5)).eval()
    folded = plain(small, gate_statistics(small, [x])).eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), small(x), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, GatedConv2d) for module in folded.modules())


def test_sets_follow_the_data(traced):
    model, graph = traced
    red, blue = torch.zeros(2, 8, 3, 16, 16)
    red[:, 0], blue[:, 2] = 4.0, 4.0
    noise = 0.3 * torch.randn(4, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sets = [specialised(model, graph, [kind + n], 0.5) for kind, n in zip((red, red, blue, blue), noise, strict=True)]
    assert difference(sets[0], sets[1]) < difference(sets[0], sets[2]) > difference(sets[2], sets[3])
    assert difference(sets[0], sets[0]) == 0


def test_a_specialised_model_runs_in_onnx_runtime(traced, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, graph = traced
    small = extract(model, specialised(model, graph, [torch.randn(20, 3, 16, 16)], 0.5)).eval()
    for name, each in {"small": small, "gated": model}.items():
        x = torch.randn(3, 3, 16, 16)
        edgeprune.export_onnx(each, (x,), tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, each(x).numpy(), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * (tmp_path / "gated.onnx").stat().st_size


# --- server ----------------------------------------------------------------------------------------------------------


def test_a_set_is_replaced_when_its_data_drift(traced):
    model, graph = traced
    full = SubmodelPlan.full(graph)
    setting = Setting(graph, ("a",), {"a": 1}, Recipe(1, 1, 0.1, 0.0, 0.0), 10)
    algorithm = ADP(drift=0.2)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    state = algorithm.init(setting, weights)
    first = choose(graph, {n: torch.arange(s) for n, s in graph.map.groups.items()}, 0.5)
    kept = first.kept["features.0.gate"]
    near = SubmodelPlan(graph.map, {**first.kept, "features.0.gate": (kept[0] - 1, *kept[1:])})
    far = choose(graph, {n: -torch.arange(s) for n, s in graph.map.groups.items()}, 0.5)
    for proposed, held in ((full, full), (first, first), (near, first), (far, far)):
        update = Update("a", proposed, weights, 1, 0.0, 1.0, received=weights)
        state = algorithm.merge(setting, state, [update])
        assert state.plans["a"] == held
    assert isinstance(state, State) and state.round == 4


def test_the_first_set_is_taken_over_whatever_drift_is(traced):
    model, graph = traced
    setting = Setting(graph, ("a",), {"a": 1}, Recipe(1, 1, 0.1, 0.0, 0.0), 10)
    algorithm = ADP(keep=0.5, drift=0.6)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    state = algorithm.init(setting, weights)
    first = choose(graph, {n: torch.arange(s) for n, s in graph.map.groups.items()}, 0.5)
    kept = first.kept["features.0.gate"]
    near = SubmodelPlan(graph.map, {**first.kept, "features.0.gate": (kept[0] - 1, *kept[1:])})
    for proposed in (first, near):
        state = algorithm.merge(setting, state, [Update("a", proposed, weights, 1, 0.0, 1.0)])
        assert state.plans["a"] == first
    assert state.memory["moved"]["a"] > 0


def test_small_weights_become_zero_after_each_epoch_and_may_grow_again():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0.05, -0.05, -0.5], [0.5, 0.01, 0.2, -0.09]]))
    zero_small(model, 0.1)(1, None, None)
    expected = torch.tensor([[0.5, 0.0, 0.0, -0.5], [0.5, 0.0, 0.2, 0.0]])
    assert torch.equal(model.weight, expected)
    bias = model.bias.detach().clone()
    zero_small(model, 10.0)(2, None, None)
    assert not model.weight.any() and torch.equal(model.bias, bias)
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    recipe = Recipe(1, 8, 1.0, 0.0, 0.0)
    train_local(model, LocalData(x, y, lambda t: t), nn.functional.cross_entropy, recipe, 0)
    assert model.weight.any()


def test_thresholds_leave_gates_alone():
    model = net()
    before = [layer.gate.weight.clone() for layer in gated_layers(model).values()]
    zero_small(model, 100.0)(1, None, None)
    for layer, gate in zip(gated_layers(model).values(), before, strict=True):
        assert torch.equal(layer.gate.weight, gate) and not layer.conv.weight.any()


def blobs() -> Task:
    """Pictures of 16x16 whose class is a colour: gates see it in the mean."""
    from edgeprune.data.types import DataSet, Split

    generator = torch.Generator().manual_seed(0)

    def part(n):
        y = torch.arange(n) % 3
        x = 0.5 * torch.randn(n, 3, 16, 16, generator=generator)
        x[torch.arange(n), y] += 1.0
        return Split(x, y)

    return Task(
        "blobs",
        lambda: DataSet("blobs", part(240), part(60), ("red", "green", "blue"), lambda x: x),
        lambda: gated_vgg((8, "pool", 8, "pool", 12), 3, keep=0.5),
        lambda: (torch.zeros(2, 3, 16, 16),),
        batch_size=16,
        lr=0.05,
    )


def test_a_run_ends_with_a_channel_set_for_each_device(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    table = LatencyTable("blobs", 16, (1_000, 100_000), (0.5, 6.0), (0.2, 2.0), 0.1)
    (tmp_path / "table.json").write_text(json.dumps(table.to_json()))
    sets = [f"task.name={__name__}:blobs", "run.rounds=6", "run.evaluate_every=6", "fleet.devices=3"]
    sets += ["data.partition=dirichlet", "data.alpha=0.3", f"fleet.latency={json.dumps(str(tmp_path / 'table.json'))}"]
    experiment = replace(engine.load_experiment(None, sets), algorithm=ADP(keep=0.5, every=2, drift=0.0, prox=0.01))
    engine.start(engine.prepare(experiment), tmp_path / "run")
    run = engine.RunDir(tmp_path / "run")
    records = run.metrics()
    assert [sorted(r["facts"]["moved"]) for r in records] == [[], ["device-0", "device-1", "device-2"]] * 3
    assert not any(r["rejected"] for r in records)
    assert records[1]["facts"]["moved"]["device-0"] == pytest.approx(0.5)  # from everything to a half
    assert records[-1]["facts"]["difference"] > 0
    assert {record["retention"]["device-0"] for record in records} == {1.0}  # training is of the whole model
    assert records[-1]["accuracy"] > 0.6
    small, plan = run.model("device-1")
    assert plan.retention == 0.5 and [m.conv.out_channels for m in gated_layers(small).values()] == [4, 4, 6]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ADP(keep=0.0),
        lambda: ADP(every=-1),
        lambda: ADP(drift=1.0),
        lambda: ADP(threshold=-0.1),
        lambda: GatedConv2d(3, 4, keep=0.0),
        lambda: GatedNet([nn.MaxPool2d(2)], 3),
        lambda: ADP().init(None, {"fc.weight": torch.zeros(1)}),
    ],
)
def test_what_means_nothing_is_one_sentence(make):
    with pytest.raises(EdgePruneError):
        make()
