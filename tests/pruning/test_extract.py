"""A sub-model holds exactly the elements that its plan names, computes what the full model computes with those channels
at zero, and is a module like any other."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import CASES, made, positions, random_plan, trace, traced
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan, cost, expand_state, extract, extract_state, load_local

SEEDS = (1, 2, 3)


def tagged(model):
    """A copy in which every element holds its own flat coordinate in its tensor."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.copy_(torch.arange(t.numel()).reshape(t.shape))
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_remaining_element_is_the_one_the_plan_names(name, seed):
    model, _, graph = traced(name)
    plan = random_plan(graph, seed)
    full, small = tagged(model).state_dict(), extract(tagged(model), plan).state_dict()
    assert small.keys() == full.keys() == plan.axes.keys()
    for tensor, values in full.items():
        expected = values.numpy()[np.ix_(*positions(plan, tensor))] if values.dim() else values.numpy()
        np.testing.assert_array_equal(small[tensor].numpy(), expected, err_msg=tensor)
        assert small[tensor].shape == plan.shape(tensor)


def silenced(model, graph, plan):
    """A double copy in which the layers that make channels (weight, bias, batch norm) make zeros for removed ones."""
    model = copy.deepcopy(model).double()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in graph.prunable.values():
            for member in group.members:
                if member.role == "in" or "running" in member.tensor:
                    continue
                kept = positions(plan, member.tensor)[member.dim]
                gone = [i for i in range(tensors[member.tensor].shape[member.dim]) if i not in kept]
                tensors[member.tensor].index_fill_(member.dim, torch.tensor(gone, dtype=torch.int64), 0.0)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_sub_model_computes_what_the_full_model_computes_with_zero_channels(name, training):
    model, (x,), graph = traced(name)
    for seed in SEEDS:
        plan = random_plan(graph, seed)
        full = silenced(model, graph, plan)
        small = extract(copy.deepcopy(model).double(), plan)
        for m in (full, small):
            m.train(training)
            for dropout in (d for d in m.modules() if isinstance(d, nn.Dropout)):
                dropout.eval()
        expected = full(x.double()).detach()
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(small(x.double()).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_of_a_plan_are_those_of_the_model_built(name):
    model, inputs, graph = traced(name)
    assert cost.macs(model, inputs) == cost.plan_macs(graph, SubmodelPlan.full(graph)) > 0
    for seed in SEEDS:
        plan = random_plan(graph, seed)
        assert cost.plan_macs(graph, plan) == cost.macs(extract(model, plan), inputs)


def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    assert cost.macs(model, (torch.zeros(2, 3, 6, 6),)) == 6 * 6 * 8 * 3 * 9 + 8 * 36 * 5


PRODUCTS = {
    "all named": lambda q, k: torch.einsum("bth,bsh->bts", q, k),
    "dots": lambda q, k: torch.einsum("...th,...sh->...ts", q, k),
    "no arrow": lambda q, k: torch.einsum("bth,bsh", q, k),
    "baddbmm": lambda q, k: torch.baddbmm(q @ k.mT, q, k.mT),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_written_in_other_ways_follow_and_are_counted(name):
    def forward(self, x):
        return self.b(self.a(PRODUCTS[name](self.q(x), self.k(x)).relu()))

    x = torch.randn(2, 5, 4)
    layers = {"q": nn.Linear(4, 8), "k": nn.Linear(4, 8), "a": nn.Linear(5, 6), "b": nn.Linear(6, 3)}
    graph = trace(forward, tuple(x.shape), **layers)
    assert dict(graph.map.groups) == {"q": 8, "a": 6} and not graph.notes
    model = made(forward, **layers)
    plan = SubmodelPlan(graph.map, {"q": (1, 4, 6), "a": (0, 5)})
    assert cost.plan_macs(graph, plan) == cost.macs(extract(model, plan), x) >= 2 * 5 * 4 * 3 + 5 * 5 * 3


@pytest.mark.parametrize("inputs", [({"x": torch.ones(4, 8)},), (torch.ones(1), torch.ones(4, 8))])
def test_multiply_adds_are_those_of_one_sample_wherever_the_batch_comes_in(inputs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, first, x=None):
            return self.b(self.a(first["x"] if x is None else x * first))

    model = Net()
    graph = ChannelGraph.trace(model, inputs)
    assert cost.macs(model, inputs) == cost.plan_macs(graph, SubmodelPlan.full(graph)) == 16 * (8 + 3)


def test_a_forward_that_writes_into_its_input_does_not_change_the_example():
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x.add_(1))

    x = torch.zeros(2, 4)
    model = Net(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    cost.macs(edgeprune.prune(model, x).model, x)
    assert not x.any()


@pytest.mark.parametrize("name", CASES)
def test_sub_model_trains_copies_and_saves(name):
    model, (x,), graph = traced(name)
    small = extract(model, random_plan(graph, 5)).train()
    optimiser = torch.optim.SGD(small.parameters(), 0.01)
    small(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    optimiser.step()
    twin = copy.deepcopy(small)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(twin.eval()(x), small.eval()(x))


@pytest.mark.parametrize("name", ["lenet", "mobilenet", "densenet", "shuffle"])
def test_sub_model_exports_to_onnx_and_computes_the_same(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, (x,), graph = traced(name)
    small = extract(model, random_plan(graph, 7)).eval()
    path = str(tmp_path / "small.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # the exporter's own deprecations
        torch.onnx.export(small, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, small(x).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_the_users_model_is_not_changed():
    model, inputs, _ = traced("resnet")
    model = copy.deepcopy(model)
    model.train()
    model.blocks[1].eval()
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sub = edgeprune.prune(model, inputs)
    assert torch.equal(torch.rand(1), expected)  # nor the random numbers it will draw
    assert [m.training for m in model.modules()] == flags == [m.training for m in sub.model.modules()]
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    with torch.no_grad():
        for p in sub.model.parameters():
            p.zero_()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_sizes_in_the_modules_follow():
    _, _, graph = traced("multiplier")
    model = traced("multiplier")[0]
    kept = dict.fromkeys(graph.map.groups, (0, 2))
    small = extract(model, SubmodelPlan(graph.map, kept))
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (2, 6, 2)
    assert (small.d.in_channels, small.d.out_channels, small.d.groups) == (2, 2, 2)
    assert (small.e.in_features, small.e.out_features, small.slope.num_parameters) == (2, 2, 2)
    resnext, _, graph = traced("resnext")
    small = extract(resnext, SubmodelPlan(graph.map, {"layer1.0.body.0.0": (1, 3)}))
    grouped = small.layer1[0].body[1][0]
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 8, 2)
    assert small.layer1[0].body[0][1].num_features == 4


@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_state_goes_there_and_back(name, seed):
    model, _, graph = traced(name)
    plan = random_plan(graph, seed)
    state = model.state_dict()
    local = extract_state(state, plan)
    for tensor, t in extract(model, plan).state_dict().items():
        assert torch.equal(local[tensor], t)
    restored = expand_state(local, plan, state)
    assert all(torch.equal(restored[n], t) for n, t in state.items())
    zeros = expand_state(local, plan, 0.0)
    again = extract_state(zeros, plan)
    assert all(torch.equal(again[n], t) for n, t in local.items())
    assert all(int((zeros[n] != 0).sum()) == int((t != 0).sum()) for n, t in local.items())


def test_a_weight_that_is_computed_in_training_is_not_stepped_by_cutting():
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    sub = edgeprune.prune(model, torch.randn(2, 6))
    assert sub.model.training and sub.plan.counts == {"2": 3} and sub.model[0].parametrizations.weight[0].training
    local = extract_state(model.state_dict(), sub.plan)
    assert all(torch.equal(local[name], t) for name, t in sub.model.state_dict().items())


def test_loading_into_a_built_module_replaces_all_or_nothing():
    model, _, graph = traced("vgg")
    plan = random_plan(graph, 2)
    small = extract(model, plan)
    local = {n: t + 1 for n, t in extract_state(model.state_dict(), plan).items()}
    pointers = [p.data_ptr() for p in small.parameters()]
    assert load_local(small, local) is small
    assert [p.data_ptr() for p in small.parameters()] == pointers
    assert all(torch.equal(t, local[n]) for n, t in small.state_dict().items())
    before = copy.deepcopy(small.state_dict())
    last = list(local)[-1]
    wrong = {n: t + 1 for n, t in local.items()}
    wrong[last] = torch.zeros(99)
    with pytest.raises(EdgePruneError, match="shape"):
        load_local(small, wrong)
    with pytest.raises(EdgePruneError, match="lacks"):
        load_local(small, {n: t for n, t in wrong.items() if n != last})
    with pytest.raises(EdgePruneError, match="stranger"):
        load_local(small, {**local, "stranger": torch.zeros(1)})
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())


def test_a_plan_for_another_model_is_refused():
    model, _, _ = traced("resnet")
    plan = SubmodelPlan.full(traced("vgg")[2])
    with pytest.raises(EdgePruneError, match="another model"):
        extract(model, plan)
    state = traced("vgg")[0].state_dict()
    state["features.0.0.weight"] = torch.zeros(2, 2)
    with pytest.raises(EdgePruneError, match="features.0.0.weight"):
        extract_state(state, plan)


def test_structure_is_copied_as_deepcopy_does():
    class Own(nn.Module):
        """Says itself how it is copied."""

        def __deepcopy__(self, memo):
            twin = Own()
            twin.copied = True
            return twin

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.again, self.own = self.a, Own()
            self.config = {"sizes": [1, 2], ("odd", 1): self.b}
            self.nested = (self.b, [self.config])
            self.calls = []
            self.a.register_forward_hook(lambda m, args, out: self.calls.append(1))

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    model = Net()
    sub = edgeprune.prune(model, torch.randn(2, 4))
    small = sub.model
    assert small.again is small.a is not model.a and small.a.weight is small.again.weight
    assert small.own.copied and not hasattr(model.own, "copied")
    assert small.config["odd", 1] is small.b is small.nested[0] and small.nested[1][0] is small.config
    assert small.config is not model.config and small.config["sizes"] is not model.config["sizes"]
    assert len(small.a._forward_hooks) == 1 and small.calls is not model.calls
    assert small.a.out_features == 3 and model.a.out_features == 6
