"""The mean summed as updates come: that of ``average``, the same bits in any order, nothing held of an update."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.algorithms.averaging import average
from edgeprune.algorithms.protocol import Update
from edgeprune.algorithms.running_mean import RunningMean, Summed, Summing, whole_weights
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.axes import AxisMap, Segment

AXES = AxisMap(
    {"a": 6, "b": 4},
    {
        "w": ((Segment("a", 6),), (Segment("b", 4, block=3),)),
        "v": ((Segment("a", 6),),),
        "bn.running_var": ((Segment(None, 3),),),
        "steps": (),
    },
)
MODEL = {
    "w": torch.randn(6, 12, generator=torch.Generator().manual_seed(1)),
    "v": torch.linspace(-1, 1, 6),
    "bn.running_var": torch.ones(3),
    "steps": torch.tensor(2),
}
PLANS = [{"a": (0, 1, 2), "b": (0, 1)}, {"a": (1, 4), "b": (0, 3)}, {"a": (0, 1, 2, 3, 4), "b": (2,)}, {}]
SAMPLES = {"c0": 10, "c1": 1, "c2": 200, "c3": 7}


def update(i: int, scale: float = 1.0) -> Update:
    plan = SubmodelPlan(AXES, {**{name: tuple(range(n)) for name, n in AXES.groups.items()}, **PLANS[i]})
    random = torch.Generator().manual_seed(i)
    state = {name: scale * torch.randn(plan.shape(name), generator=random) for name in ("w", "v")}
    state |= {"bn.running_var": torch.rand(3, generator=random) * 900, "steps": torch.tensor(3 + i)}
    return Update(f"c{i}", plan, state, SAMPLES[f"c{i}"], 0.5, 1.0 + i)


def summed(updates, how=Summing(), samples=SAMPLES):  # noqa: B008
    running = RunningMean(MODEL, samples, how)
    return Summed([running.add(one) for one in updates], running)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("mode", ["unit", "worker", "delta"])
@pytest.mark.parametrize("large", [1.0, 1e15])
def test_the_mean_whatever_the_order(mode, clip, large):
    updates = [update(0), update(1, large), update(2), update(3)]
    expected = average(MODEL, updates, mode, clip_norm=clip)
    first = None
    for order in itertools.permutations(updates):
        got = average(MODEL, summed(order, Summing(mode, clip)), mode, clip_norm=clip)
        first = first or got
        assert got.keys() == expected.keys() and all(torch.equal(got[name], first[name]) for name in got)
    assert first is not None and int(first["steps"]) == 6
    for name, value in expected.items():
        assert first[name].dtype == value.dtype and first[name].shape == value.shape
        size = float(value.abs().max()) if large > 1 else 1.0
        torch.testing.assert_close(first[name], value, rtol=2e-6, atol=1e-6 * size)


def test_one_huge_update_costs_the_others_no_precision():
    huge = replace(update(3), state={**update(3).state, "v": torch.full((6,), 1e19)})
    plain = replace(update(3), state={**update(3).state, "v": torch.zeros(6)})
    others = [update(0), update(1), update(2)]
    got, expected = summed([*others, huge]).mean(), summed([*others, plain]).mean()
    torch.testing.assert_close(got["w"], expected["w"], rtol=1e-6, atol=1e-9)
    assert bool((got["v"] > 1e17).all())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**22), st.floats(-100, 100, width=32)), min_size=1, max_size=8))
def test_any_samples_against_double(clients):
    samples = {f"c{i}": n for i, (n, _) in enumerate(clients)}
    plan = update(3).plan
    running = RunningMean(MODEL, samples, Summing())
    for i, (n, value) in enumerate(clients):
        state = {**update(3).state, "v": torch.full((6,), value)}
        running.add(Update(f"c{i}", plan, state, n, 0.1, 1.0))
    total = sum(n for n, _ in clients)
    exact = sum(n * value for n, value in clients) / total
    # Beyond 2^24 samples the weights are right to 1 in 2^22 of all.
    allowed = 1e-5 + (len(clients) * 200 / 2**22 if total >= 2**24 else 0)
    assert float(running.finish()["v"][0]) == pytest.approx(exact, rel=1e-6, abs=allowed)


def test_nothing_of_an_update_is_held_but_what_says_whose_it_was():
    left = summed([update(0), update(1)])
    assert [one.client for one in left] == ["c0", "c1"] and len(left) == 2
    assert left[1].plan == update(1).plan and left[1].update_time_s == 2.0 and left[1].samples == 1
    assert not any((one.state, one.masks, one.gradient, one.received) != ({}, {}, {}, {}) for one in left[:2])


def test_what_does_not_fit_is_refused_with_nothing_counted():
    running = RunningMean(MODEL, SAMPLES, Summing())
    running.add(update(0))
    wrong = replace(update(1), state={**update(1).state, "w": torch.ones(2, 2)})
    with pytest.raises(EdgePruneError, match="'w' has shape"):
        running.add(wrong)
    assert all(torch.equal(t, summed([update(0)]).mean()[name]) for name, t in running.finish().items())


def test_updates_summed_in_another_way_are_not_merged():
    with pytest.raises(EdgePruneError, match="summed in another way"):
        average(MODEL, summed([update(0)]), "delta")


def test_weights_stay_samples_while_they_fit():
    assert whole_weights([3, 5, (1 << 24) - 9]) == [3, 5, (1 << 24) - 9]
    assert sum(whole_weights([1, 1 << 40, 3 << 40])) < 1 << 24
