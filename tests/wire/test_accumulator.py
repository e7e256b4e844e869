"""The streaming merge: the weighted mean of holders, the same bits in any order, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from wire_cases import random_mask, same

from edgeprune import wire
from edgeprune.errors import EdgePruneError

BASE = {
    "w": torch.linspace(-1, 1, 60).reshape(6, 10),
    "h": torch.linspace(0, 2, 9).half(),
    "d": torch.linspace(-3, 3, 5, dtype=torch.float64),
    "steps": torch.tensor(4),
}
MODES = ("unit", "worker", "delta")


def update(seed: int, dtype: str | None = None) -> tuple[dict[str, wire.PackedTensor], dict[str, torch.Tensor]]:
    """(as packed, the bool masks) of a random client."""
    random = torch.Generator().manual_seed(seed)
    packed, masks = {}, {}
    for name, x in BASE.items():
        if not x.is_floating_point():
            packed[name] = wire.pack_tensor(torch.tensor(10 * seed))
            continue
        masks[name] = random_mask(x.numel(), 0.4, 1, seed)
        masks[name][0] = False  # held by nobody
        value = torch.randn(x.shape, generator=random).to(x.dtype)
        packed[name] = wire.pack_tensor(value, wire.to_bitmap(masks[name]), dtype)
    return packed, masks


def expected(updates, weights, mode):
    """The same in double and in words of algebra."""
    out = {"steps": torch.tensor(max(4, *(int(packed["steps"].tensor()) for packed, _ in updates)))}
    for name in ("w", "h", "d"):
        base = BASE[name].double().flatten()
        total, held = torch.zeros_like(base), torch.zeros_like(base)
        for (packed, masks), weight in zip(updates, weights, strict=True):
            total += weight * packed[name].tensor().double().flatten()
            held += weight * masks[name]
        everybody = float(sum(weights))
        if mode == "unit":
            mean = torch.where(held > 0, total / held.clamp(min=1), base)
        elif mode == "worker":
            mean = total / everybody
        else:
            mean = (total + (everybody - held) * base) / everybody
        out[name] = mean.reshape(BASE[name].shape)
    return out


def merged(updates, weights, mode, order, total_weight):
    accumulator = wire.Accumulator(BASE, total_weight=total_weight)
    for i in order:
        accumulator.add(updates[i][0], weights[i])
    assert (accumulator.updates, accumulator.weight) == (len(updates), sum(weights))
    return accumulator.finish(BASE, mode)


def test_whatever_device_torch_takes_by_default():
    updates = [update(seed) for seed in range(2)]
    expected = merged(updates, [3, 1], "unit", range(2), 4)
    with torch.device("meta"):
        found = merged(updates, [3, 1], "unit", range(2), 4)
    assert all(same(found[name], expected[name]) for name in BASE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [None, "bf16", "int8"], ids=str)
def test_mean_of_holders_whatever_the_order(mode, dtype):
    updates, weights = [update(seed, dtype) for seed in range(4)], [3, 1, 10, 5]
    first, *others = [merged(updates, weights, mode, order, 19) for order in itertools.permutations(range(4))]
    assert all(same(first[name], other[name]) for other in others for name in BASE)
    for name, value in expected(updates, weights, mode).items():
        assert first[name].dtype == BASE[name].dtype
        # One rounding to the type, and four to steps of 2^-46 and finer.
        eps = torch.finfo(BASE[name].dtype).eps if BASE[name].is_floating_point() else 0
        torch.testing.assert_close(first[name].double(), value.double(), rtol=eps, atol=1e-12)
    if mode == "unit":
        assert first["w"][0, 0] == BASE["w"][0, 0]


def test_a_single_update_comes_back_as_it_was():
    packed, masks = update(1)
    for weight, total in ((1, 1), (1000, 1 << 20)):
        accumulator = wire.Accumulator(BASE, total_weight=total, reach=8.0)
        accumulator.add(packed, weight)
        got = accumulator.finish(BASE)["w"]
        value = torch.where(masks["w"].reshape(6, 10), packed["w"].tensor(), BASE["w"])
        torch.testing.assert_close(
            got, value, rtol=0, atol=2.0 ** -accumulator.shift("w") / weight if weight > 1 else 0
        )


def test_sub_models_by_index():
    base = {"w": torch.arange(12.0).reshape(3, 4)}
    index = (torch.tensor([0, 2]), torch.tensor([1, 3]))
    accumulator = wire.Accumulator(base, total_weight=4)
    accumulator.add({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, 1, {"w": index})
    half = wire.pack_tensor(
        torch.tensor([[5.0, 6.0], [7.0, 8.0]]), wire.to_bitmap(torch.tensor([[1, 0], [0, 1]]).bool())
    )
    accumulator.add({"w": half}, 3, {"w": index})
    assert accumulator.finish(base)["w"].tolist() == [[0, 4, 2, 2], [4, 5, 6, 7], [8, 3, 10, 7]]


def test_it_agrees_with_the_merger_of_sub_models():
    from edgeprune.pruning import Merger, SubmodelPlan
    from edgeprune.pruning.axes import AxisMap, Segment

    axes = AxisMap({"a": 6, "b": 4}, {"w": ((Segment("a", 6),), (Segment("b", 4, block=3),))})
    base = {"w": torch.randn(6, 12, generator=torch.Generator().manual_seed(1))}
    plans = [SubmodelPlan(axes, {"a": tuple(range(k)), "b": tuple(range(0, 4, k))}) for k in (1, 2, 3)]
    locals_ = [
        {"w": torch.randn(p.shape("w"), generator=torch.Generator().manual_seed(k))} for k, p in enumerate(plans)
    ]
    for mode in MODES:
        merger, accumulator = Merger(base), wire.Accumulator(base, total_weight=60)
        for plan, local, weight in zip(plans, locals_, (10, 20, 30), strict=True):
            merger.add(plan, local, float(weight))
            accumulator.add(local, weight, {"w": plan.indices("w")})
        torch.testing.assert_close(accumulator.finish(base, mode)["w"], merger.finish(mode)["w"], rtol=1e-6, atol=1e-7)


def good() -> wire.Accumulator:
    return wire.Accumulator({"w": torch.zeros(3), "n": torch.tensor(1)}, total_weight=10, reach=3.0)


@pytest.mark.parametrize(
    ("tensors", "weight", "sentence"),
    [
        ({"w": torch.ones(3)}, 0, "positive whole number"),
        ({"w": torch.ones(3)}, 1.5, "positive whole number"),
        ({"w": torch.ones(3)}, True, "positive whole number"),
        ({"w": torch.ones(3)}, 11, "at most 10"),
        ({"w": torch.ones(3).to_sparse()}, 1, "'w' on cpu with layout torch.sparse_coo"),
        ({"w": torch.ones(3, device="meta")}, 1, "'w' on meta"),
        ({"v": torch.ones(3)}, 1, "which the model lacks"),
        ({"w": torch.ones(4)}, 1, "due are \\(3,\\)"),
        ({"w": torch.ones(3).double()}, 1, "due are \\(3,\\)"),
        ({"w": torch.tensor([0, 0, float("nan")])}, 1, "beyond the reach of 4"),
        ({"w": torch.tensor([0, 0, 4.5])}, 1, "holds 4.5, beyond the reach of 4"),
        ({"n": torch.tensor(5), "w": torch.tensor([0, 0, -4.5])}, 1, "beyond the reach"),
        ({"n": wire.pack_tensor(torch.tensor(5), torch.zeros(1, dtype=torch.uint8))}, 1, "integers under a mask"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_refused_with_nothing_added(tensors, weight, sentence):
    accumulator = good()
    accumulator.add({"w": torch.ones(3), "n": torch.tensor(2)}, 1)
    with pytest.raises(EdgePruneError, match=sentence):
        accumulator.add(tensors, weight)
    got = accumulator.finish({"w": torch.zeros(3), "n": torch.tensor(1)})
    assert got["w"].tolist() == [1, 1, 1] and int(got["n"]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [None, [0, 2], [1, 2]], ids=str)
def test_one_made_in_inference_mode_is_added_to_elsewhere(rows, dtype):
    state = {"w": torch.arange(6, dtype=dtype).reshape(3, 2), "n": torch.tensor(1)}
    indices = None if rows is None else {"w": (torch.tensor(rows), None), "n": ()}
    part = state if rows is None else {"w": state["w"][rows], "n": state["n"]}
    with torch.inference_mode():
        accumulator = wire.Accumulator(state, total_weight=9)
        accumulator.add(part, np.int64(2), indices)
    accumulator.add(part, 3, indices)
    got = accumulator.finish(state)
    assert torch.equal(got["w"], state["w"]) and int(got["n"]) == 1 and not got["w"].is_inference()


def test_a_base_without_values_is_refused_and_nothing_given_out():
    accumulator = good()
    accumulator.add({"w": torch.ones(3), "n": torch.tensor(2)}, 1)
    for base in (torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()):
        with pytest.raises(EdgePruneError, match="the base holds 'w' on"):
            accumulator.finish({"w": base, "n": torch.tensor(1)})
    assert accumulator.finish({"w": torch.zeros(3), "n": torch.tensor(1)})["w"].tolist() == [1, 1, 1]


def test_sums_reach_their_lane_and_do_not_overflow():
    accumulator = wire.Accumulator({"w": torch.zeros(2)}, total_weight=(1 << 24) - 1, reach=64.0)
    for _ in range(15):
        accumulator.add({"w": torch.tensor([64.0, -64.0])}, (1 << 20) + 1)
    accumulator.add({"w": torch.tensor([64.0, -64.0])}, (1 << 24) - 1 - 15 * ((1 << 20) + 1))
    assert accumulator.finish({"w": torch.zeros(2)})["w"].tolist() == [64, -64]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"total_weight": 0}, "divide the weights"),
        ({"total_weight": 1 << 24}, "divide the weights"),
        ({"total_weight": 5, "reach": 0.0}, "not a positive number"),
        ({"total_weight": 5, "reach": float("inf")}, "not a positive number"),
        ({"total_weight": 5, "reach": 1e-320}, "not between 2.-900 and 2.999"),
        ({"total_weight": 5, "reach": 1.7e308}, "not between 2.-900 and 2.999"),
    ],
)
def test_configurations_that_mean_nothing(options, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        wire.Accumulator({"w": torch.zeros(2)}, **options)
    with pytest.raises(EdgePruneError, match="nothing to merge"):
        good().finish({"w": torch.zeros(3), "n": torch.tensor(1)})
    with pytest.raises(EdgePruneError, match="'unit', 'worker' or 'delta'"):
        good().finish({}, "mean")  # type: ignore[arg-type]


def position(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ((position(1, 1), None), "do not increase"),
        ((position(2, 0), None), "do not increase"),
        ((position(-2, -1), None), "do not increase within 0..2"),
        ((position(1, 3), None), "do not increase within 0..2"),
        ((position(0, 1),), "1 indices for 'w'"),
        ((torch.tensor([0.0, 1.0]), None), "not a one-dimensional int64"),
        ((torch.tensor([True, False, True]), None), "not a one-dimensional int64"),
        (([0, 1], None), "not a one-dimensional int64"),
        (None, "indices lacks 'w'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_positions_that_are_none_are_refused_with_nothing_added(index, sentence):
    base = {"w": torch.zeros(3, 4)}
    accumulator = wire.Accumulator(base, total_weight=5)
    accumulator.add({"w": torch.ones(3, 4)}, 1)
    with pytest.raises(EdgePruneError, match=sentence):
        accumulator.add({"w": torch.ones(2, 4)}, 1, {} if index is None else {"w": index})
    assert accumulator.finish(base, "worker")["w"].eq(1).all()


def test_what_was_given_out_is_not_given_twice():
    base = {"w": torch.zeros(3)}
    first, second = (wire.Accumulator(base, total_weight=5) for _ in range(2))
    for each in (first, second):
        each.add({"w": torch.ones(3)}, 1)
    for other in (first, wire.Accumulator({"w": torch.zeros(4)}, total_weight=5)):
        with pytest.raises(EdgePruneError, match="not another accumulator over the same tensors"):
            first.finish(base, beside=other)
    for wrong in ({}, {"w": torch.zeros(1)}, {"w": torch.zeros(3, 1)}):
        with pytest.raises(EdgePruneError, match="the base lacks 'w' of shape"):
            first.finish(wrong)
    assert first.finish(base, beside=second)["w"].tolist() == [1, 1, 1]
    for each in (first, second):
        with pytest.raises(EdgePruneError, match="given out by finish"):
            each.finish(base)
        with pytest.raises(EdgePruneError, match="given out by finish"):
            each.add({"w": torch.ones(3)}, 1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda base: wire.Accumulator(base, total_weight=float("nan")), "total_weight is nan"),
        (lambda base: wire.Accumulator(base, total_weight=2.5), "total_weight is 2.5"),
        (lambda base: wire.Accumulator(base, total_weight=None), "total_weight is None"),
        (lambda base: wire.Accumulator(base, total_weight=-3), "divide the weights"),
        (lambda base: wire.Accumulator(base, total_weight=3, reach="a"), "a reach of 'a' for 'w'"),
        (lambda base: wire.Accumulator(base, total_weight=3, reach={"v": 1.0}), "a reach of None for 'w'"),
        (lambda base: wire.Accumulator(None, total_weight=3), "the state is None"),
        (lambda base: wire.Accumulator({"w": [1]}, total_weight=3), "holds a list as 'w'"),
        (lambda base: wire.Accumulator({"w": torch.zeros(2, dtype=torch.cfloat)}, total_weight=3), "complex64"),
        (lambda base: wire.Accumulator(base, total_weight=3).add(None, 1), "the update is None"),
        (lambda base: wire.Accumulator(base, total_weight=3).add({"w": [1]}, 1), "the update holds a list"),
        (lambda base: wire.Accumulator(base, total_weight=3).add(base, 1, [None]), "indices is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_types_are_one_sentence(call, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        call({"w": torch.zeros(3)})
