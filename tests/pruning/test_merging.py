"""Merging sub-models back into global coordinates: hand-computed means, untouched elements, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import CASES, positions, random_plan, traced
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import ChannelGraph, Merger, SubmodelPlan, expand_state, extract_state, merging, robust
from edgeprune.pruning.axes import AxisMap, Segment

NAN = float("nan")


def by_hand():
    """w [3, 2] of groups a (rows) and b (columns), a counter; two clients that share the element (1, 1)."""
    a, b = Segment("a", 3), Segment("b", 2)
    axes = AxisMap({"a": 3, "b": 2}, {"w": ((a,), (b,)), "n": ()})
    state = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "n": torch.tensor(7)}
    first = (
        SubmodelPlan(axes, {"a": (0, 1)}),
        {"w": torch.tensor([[10.0, 20.0], [30.0, 40.0]]), "n": torch.tensor(9)},
        1,
    )
    second = (
        SubmodelPlan(axes, {"a": (1, 2), "b": (1,)}),
        {"w": torch.tensor([[80.0], [60.0]]), "n": torch.tensor(8)},
        3,
    )
    return state, [first, second]


def test_by_unit_each_element_is_the_mean_of_its_holders():
    state, updates = by_hand()
    merged = edgeprune.merge(state, updates)
    assert merged["w"].tolist() == [[10.0, 20.0], [30.0, (40.0 + 3 * 80.0) / 4], [5.0, 60.0]]
    assert merged["n"].item() == 9 and merged["n"].dtype == torch.int64
    assert state["w"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_by_worker_a_missing_element_counts_as_zero():
    state, updates = by_hand()
    merged = edgeprune.merge(state, updates, mode="worker")
    assert merged["w"].tolist() == [[10 / 4, 20 / 4], [30 / 4, (40 + 240) / 4], [0.0, 180 / 4]]


def test_by_delta_a_missing_element_counts_as_unchanged():
    state, updates = by_hand()
    merged = edgeprune.merge(state, updates, mode="delta")
    whole = sum(weight for *_, weight in updates)
    by_worker = edgeprune.merge(state, updates, mode="worker")
    held = sum(
        weight * (edgeprune.pruning.expand_state({n: torch.ones_like(t) for n, t in local.items()}, plan)["w"])
        for plan, local, weight in updates
    )
    # w = (sum of n_c w_c over the holders + (N - their n) w_old) / N
    expected = by_worker["w"].double() + (whole - held.double()) / whole * state["w"].double()
    torch.testing.assert_close(merged["w"].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_whatever_device_torch_takes_by_default(rule):
    state, updates = by_hand()

    def merged():
        if rule == "mean":
            return edgeprune.merge(state, updates)
        return robust.merge_robust(state, [(plan, local) for plan, local, _ in updates], rule)

    expected = merged()
    with torch.device("meta"):
        found = merged()
    assert all(torch.equal(found[name], expected[name]) for name in state)


def test_the_largest_counter_wins_and_never_falls():
    state, updates = by_hand()
    state["n"] = torch.tensor(100)
    assert edgeprune.merge(state, updates)["n"].item() == 100


def test_order_of_adding_fixes_the_bits_and_nothing_is_aliased():
    model, _, graph = traced("resnet")
    state = model.state_dict()
    updates = [(p := random_plan(graph, s), extract_state(state, p), s + 0.5) for s in range(5)]
    one, two = edgeprune.merge(state, updates), edgeprune.merge(state, updates)
    assert all(torch.equal(one[n], two[n]) for n in state) and list(one) == list(state)
    merger = Merger(state)
    for update in updates:
        merger.add(*update)
    early = merger.finish()
    kept = copy.deepcopy(early)
    merger.add(*updates[0])
    assert all(torch.equal(early[n], kept[n]) for n in state)
    pointers = {t.data_ptr() for t in state.values()} | {
        t.data_ptr() for _, local, _ in updates for t in local.values()
    }
    assert not pointers & {t.data_ptr() for t in one.values()}


@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32), st.sampled_from([1.0, 2.0, 64.0]))
@settings(max_examples=40, deadline=None)
def test_one_client_fills_its_places_and_the_rest_stays_bit_for_bit(name, seed, weight):
    model, _, graph = traced(name)
    plan = random_plan(graph, seed)
    state = model.state_dict()
    local = {n: t + 1 for n, t in extract_state(state, plan).items()}
    merged = edgeprune.merge(state, [(plan, local, weight)])
    for tensor, t in state.items():
        inside = torch.zeros(t.shape, dtype=torch.bool)
        if t.dim():
            inside[torch.meshgrid(*map(torch.tensor, positions(plan, tensor)), indexing="ij")] = True
        else:
            inside.fill_(True)
        assert torch.equal(merged[tensor][~inside], t[~inside]), tensor
        assert torch.equal(merged[tensor][inside], local[tensor].flatten()), tensor  # weights are powers of two: exact


@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from(["unit", "worker", "delta"]))
@settings(max_examples=30, deadline=None)
def test_any_clients_against_a_plain_double_computation(seed, clients, mode):
    model, _, graph = traced("inception")
    state = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for k in range(clients):
        plan = random_plan(graph, seed + k)
        local = {n: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
                 for n, t in extract_state(state, plan).items()}  # fmt: skip
        updates.append((plan, local, float(torch.randint(1, 500, (), generator=generator))))
    merged = edgeprune.merge(state, updates, mode)
    for tensor, base in state.items():
        if not base.is_floating_point():
            continue
        total, held = torch.zeros(base.shape, dtype=torch.float64), torch.zeros(base.shape, dtype=torch.float64)
        for plan, local, weight in updates:
            at = torch.meshgrid(*map(torch.tensor, positions(plan, tensor)), indexing="ij")
            total[at] += weight * local[tensor].double()
            held[at] += weight
        whole = sum(weight for *_, weight in updates)
        if mode == "worker":
            expected = total / whole
        elif mode == "delta":
            expected = (total + (whole - held) * base.double()) / whole
        else:
            expected = torch.where(held > 0, total / held.clamp_min(1), base.double())
            assert torch.equal(merged[tensor][held == 0], base[held == 0])
        # each of the products, sums and the division rounds once, relative to the sum of magnitudes
        eps = 2 * (clients + 2) * torch.finfo(torch.float32).eps
        scale = max(float(x.abs().max()) for x in [base, *(local[tensor] for _, local, _ in updates)])
        torch.testing.assert_close(merged[tensor].double(), expected, rtol=0, atol=eps * scale)


def test_double_and_half_states():
    model, _, graph = traced("lenet")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        state = {n: t.to(dtype) for n, t in model.state_dict().items()}
        plan = random_plan(graph, 3)
        merged = edgeprune.merge(state, [(plan, extract_state(state, plan), 4)])
        assert all(merged[n].dtype == dtype and torch.equal(merged[n], state[n]) for n in state)


def change(local, **tensors):
    return {**local, **{k.replace("__", "."): v for k, v in tensors.items()}}


def test_a_bad_update_is_refused_and_leaves_no_trace():
    model, _, graph = traced("lenet")
    state, plan = model.state_dict(), random_plan(graph, 1)
    local = extract_state(state, plan)
    merger = Merger(state)
    merger.add(plan, local, 2)
    before = merger.finish()
    shape = local["f2.bias"].shape
    bad = [
        (change(local, f2__bias=torch.full(shape, NAN)), 1, "NaN"),
        (change(local, f2__bias=torch.full(shape, float("inf"))), 1, "NaN or infinity"),
        (change(local, f2__bias=torch.zeros(99)), 1, "shape"),
        (change(local, f2__bias=torch.zeros(shape, dtype=torch.int64)), 1, "int64"),
        ({n: t for n, t in local.items() if n != "f2.bias"}, 1, "lacks 'f2.bias'"),
        (change(local, f3__bias=torch.zeros(1)), 1, "f3.bias"),
        ({}, 1, "lacks"),
        (local, 0, "positive"),
        (local, -1, "positive"),
        (local, NAN, "positive"),
        (local, float("inf"), "positive"),
    ]
    for values, weight, says in bad:
        with pytest.raises(EdgePruneError, match=says):
            merger.add(plan, values, weight)
    other = SubmodelPlan.full(traced("vgg")[2])
    with pytest.raises(EdgePruneError, match="another model"):
        merger.add(other, local, 1)
    assert all(torch.equal(t, before[n]) for n, t in merger.finish().items())


def test_nothing_to_merge():
    state = traced("lenet")[0].state_dict()
    assert all(torch.equal(t, state[n]) for n, t in edgeprune.merge(state, []).items())
    with pytest.raises(EdgePruneError, match="nothing to merge"):
        Merger(state).finish()
    merger = Merger(state)
    plan = SubmodelPlan.full(traced("lenet")[2])
    merger.add(plan, state, 1)
    with pytest.raises(EdgePruneError, match="'unit', 'worker' or 'delta'"):
        merger.finish("units")  # type: ignore[arg-type]


def one(values, dtype=torch.float32, into=torch.float32):
    """A model of one tensor [2], an update of it."""
    axes = AxisMap({}, {"w": ((Segment(None, 2),),)})
    return {"w": torch.ones(2, dtype=into)}, (SubmodelPlan.full(axes), {"w": torch.tensor(values, dtype=dtype)})


@pytest.mark.parametrize("weight", [1e300, 1e31, 1e-46, 0.99e-30, 10**400, "a", "3", None, torch.ones(2)])
def test_weights_beyond_what_float32_can_sum_are_refused(weight):
    state, update = one([1.0, 2.0])
    with pytest.raises(EdgePruneError, match="from 1e-30 to 1e30"):
        edgeprune.merge(state, [(*update, weight)])


@pytest.mark.parametrize("weight", [1e-30, 1e30])
def test_weights_at_the_ends_give_the_mean(weight):
    state, update = one([1.0, 3.0])
    merged = edgeprune.merge(state, [(*update, weight), (update[0], {"w": torch.tensor([2.0, 5.0])}, weight)])
    torch.testing.assert_close(merged["w"], torch.tensor([1.5, 4.0]), rtol=1e-6, atol=0)


def test_an_update_that_would_overflow_is_refused_and_leaves_no_trace():
    state, (plan, large) = one([3e38, 0.0])
    for values, weight in (([1e37, 0.0], 1000), ([-1e37, 0.0], 1000)):
        with pytest.raises(EdgePruneError, match="'w' holds 1e[+]37"):
            edgeprune.merge(state, [(plan, {"w": torch.tensor(values)}, weight)])
    merger = Merger(state)
    merger.add(plan, {"w": torch.tensor([2.0, 4.0])}, 1)
    merger.add(plan, large, 1)
    with pytest.raises(EdgePruneError, match="too large"):
        merger.add(plan, large, 1)
    merger.add(plan, {"w": torch.tensor([0.0, 4.0])}, 1)  # who sends what is in order is not kept out for it
    assert torch.equal(merger.finish()["w"], torch.tensor([1e38, 8.0 / 3]))


def test_a_double_that_float32_cannot_hold_and_a_model_too_large_for_delta():
    state, (plan, wide) = one([1e300, 0.0], torch.float64)
    with pytest.raises(EdgePruneError, match="too large"):
        edgeprune.merge(state, [(plan, wide, 1)])
    with pytest.raises(EdgePruneError, match="too large"):
        robust.merge_robust(state, [(plan, wide)] * 3, "median")
    half, (plan, wide) = one([1e5, 0.0], into=torch.float16)
    with pytest.raises(EdgePruneError, match="too large"):
        edgeprune.merge(half, [(plan, wide, 1)])
    small = {"w": torch.ones(2)}
    with pytest.raises(EdgePruneError, match="the model's 'w'"):
        edgeprune.merge({"w": torch.full((2,), 1e37)}, [(plan, small, 1000)], "delta")


def test_what_is_no_update_is_said_in_a_sentence():
    state, (plan, local) = one([1.0, 2.0])
    for bad in (
        lambda: edgeprune.merge(None, []),
        lambda: edgeprune.merge(state, None),
        lambda: edgeprune.merge(state, 3),
        lambda: edgeprune.merge(state, [(plan, local)]),
        lambda: edgeprune.merge(state, [(edgeprune.pruning.Submodel, local, 1)]),
        lambda: edgeprune.merge(state, [(plan, None, 1)]),
        lambda: edgeprune.merge(state, [(plan, {"w": [1.0, 2.0]}, 1)]),
    ):
        with pytest.raises(EdgePruneError, match="^merge: |not a tensor"):
            bad()


@pytest.mark.parametrize("mode", ["unit", "worker", "delta"])
@pytest.mark.parametrize("elements", [1, 500, 1 << 18])
@pytest.mark.parametrize("name", sorted(CASES))
def test_all_at_once_is_one_at_a_time_to_the_bit(name, elements, mode, monkeypatch):
    monkeypatch.setattr(merging, "_GROUP", elements)
    model, _, graph = traced(name)
    state = model.state_dict()
    updates = [(p := random_plan(graph, s), extract_state(state, p), s + 0.5) for s in range(4)]
    merger = Merger(state)
    for update in updates:
        merger.add(*update)
    single, together = merger.finish(mode), merging.merge_all(state, updates, mode)
    assert list(single) == list(together)
    assert all(torch.equal(single[n], together[n]) and single[n].dtype == together[n].dtype for n in state)


def test_complex_tensors_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model.register_buffer("turns", torch.ones(3, dtype=torch.complex64))
    plan = SubmodelPlan.full(ChannelGraph.trace(model, torch.ones(2, 4), verify=False))
    with pytest.raises(EdgePruneError, match="'turns' is torch.complex64, of which there is no mean"):
        edgeprune.merge(model.state_dict(), [(plan, model.state_dict(), 1.0)])
    real = {**model.state_dict(), "turns": torch.ones(3, dtype=torch.int64)}
    with pytest.raises(EdgePruneError, match="sub-model's 'turns' is torch.complex64, the model's torch.int64"):
        edgeprune.merge(real, [(plan, model.state_dict(), 1.0)])


def test_extra_state_of_a_module_comes_through():
    class Counted(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(Counted(4, 6), nn.ReLU(), nn.Linear(6, 3))
    sub = edgeprune.prune(model, torch.ones(2, 4))
    for fill in (0.0, model.state_dict()):
        full = expand_state(sub.model.state_dict(), sub.plan, fill)
        assert full["0._extra_state"] == {"seen": 3} and full["0.weight"].shape == (6, 4)
    merged = edgeprune.merge(model.state_dict(), [(sub.plan, sub.model.state_dict(), 1.0)])
    assert merged["0._extra_state"] == {"seen": 3} and merged.keys() == model.state_dict().keys()
