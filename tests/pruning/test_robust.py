"""Coordinate median, trimmed mean and norm clipping of sub-models, held against numbers by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.axes import AxisMap, Segment
from edgeprune.pruning.robust import clip_update, merge_robust

MAP = AxisMap(
    {"g": 3}, {"w": ((Segment("g", 3),), (Segment(None, 2),)), "n": (), "bn.running_var": ((Segment("g", 3),),)}
)
BASE = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "n": torch.tensor(3), "bn.running_var": torch.ones(3)}
FULL = SubmodelPlan(MAP, {})


def full(*w: float, n: int = 1) -> tuple[SubmodelPlan, dict[str, torch.Tensor]]:
    """A whole model with the same two numbers in every row."""
    return FULL, {
        "w": torch.tensor([list(w)] * 3).float(),
        "n": torch.tensor(n),
        "bn.running_var": torch.full((3,), float(w[0])),
    }


def part(rows: tuple[int, ...], value: float) -> tuple[SubmodelPlan, dict[str, torch.Tensor]]:
    """A sub-model of these rows, all of one number."""
    local = {"w": torch.full((len(rows), 2), value), "n": torch.tensor(9), "bn.running_var": torch.ones(len(rows))}
    return SubmodelPlan(MAP, {"g": rows}), local


def test_median_of_odd_and_even_cohorts():
    three = [full(1, 10), full(1e30, -5, n=7), full(2, 0)]
    got = merge_robust(BASE, three, "median")
    assert got["w"].tolist() == [[2, 0]] * 3 and int(got["n"]) == 7
    assert merge_robust(BASE, [*three, full(4, 2)], "median")["w"].tolist() == [[3, 1]] * 3


def test_trimmed_mean_drops_both_ends():
    five = [full(v, -v) for v in (1e30, 1, 2, 6, -1e30)]
    assert merge_robust(BASE, five, "trimmed", trim=0.2)["w"].tolist() == [[3, -3]] * 3
    four = five[1:]
    # floor(0.2 * 4) = 0: nobody is dropped.
    assert merge_robust(BASE, four[:3], "trimmed", trim=0.2)["w"].tolist() == [[3, -3]] * 3


@pytest.mark.parametrize(("holders", "trim", "cut"), [(150, 0.42, 63), (100, 0.29, 29), (10, 0.3, 3), (7, 0.42, 2)])
def test_the_share_cut_off_is_the_written_one(holders, trim, cut):
    every = [full(float(v), float(v)) for v in range(cut)] + [full(1e3, 1e3)] * (holders - 2 * cut)
    every += [full(1e6 + v, 1e6 + v) for v in range(cut)]
    assert merge_robust(BASE, every, "trimmed", trim=trim)["w"].tolist() == [[1e3, 1e3]] * 3


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_each_row_is_decided_by_its_holders(rule):
    some = [part((0,), 1.0), part((0, 1), 3.0)]
    unit = merge_robust(BASE, some, rule)
    assert unit["w"].tolist() == [[2, 2], [3, 3], [5, 6]] and int(unit["n"]) == 9
    assert unit["w"].dtype == torch.float32
    # Who lacks a row counts as zero, or as unchanged.
    assert merge_robust(BASE, some, rule, mode="worker")["w"].tolist() == [[2, 2], [1.5, 1.5], [0, 0]]
    assert merge_robust(BASE, some, rule, mode="delta")["w"].tolist() == [[2, 2], [3, 3.5], [5, 6]]


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_the_order_changes_no_bit(rule):
    random = torch.Generator().manual_seed(3)
    cohort = [full(*torch.randn(2, generator=random).tolist()) for _ in range(4)] + [part((1,), 0.3)]
    results = [merge_robust(BASE, order, rule, trim=0.25)["w"] for order in itertools.permutations(cohort)]
    assert all(torch.equal(results[0], other) for other in results)


def test_clipping_scales_the_change_to_the_norm():
    plan, local = full(0, 0)
    local["w"] = BASE["w"] + torch.tensor([[3.0, 4.0], [0, 0], [0, 0]])
    local["bn.running_var"] = torch.full((3,), 100.0)
    clipped = clip_update(BASE, plan, local, 2.5)
    assert torch.allclose(clipped["w"], BASE["w"] + torch.tensor([[1.5, 2.0], [0, 0], [0, 0]]))
    assert torch.equal(clipped["bn.running_var"], local["bn.running_var"])  # the data's, not trained
    assert torch.equal(clip_update(BASE, plan, local, 5.0)["w"], local["w"])
    small = part((2,), 0.0)
    change = clip_update(BASE, *small, 1.0)["w"] - BASE["w"][2:]
    assert math.isclose(float(change.norm()), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (([full(1, 1)], "medain"), {}, "did you mean 'median'"),
        (([], "median"), {}, "nothing to merge"),
        (([full(1, 1)], "trimmed"), {"trim": 0.5}, "in \\[0, 0.5\\)"),
        (([full(1, 1)], "trimmed"), {"trim": math.nan}, "in \\[0, 0.5\\)"),
        (([full(1, 1)], "median"), {"mode": "mean"}, "merge mode"),
        (([(FULL, {"w": BASE["w"]})], "median"), {}, "differ in tensor"),
        (([(FULL, {**BASE, "w": BASE["w"] * math.nan})], "median"), {}, "NaN or infinity"),
        (([(FULL, {**BASE, "w": BASE["w"][:2]})], "median"), {}, "has shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_merged_is_one_sentence(arguments, options, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        merge_robust(BASE, *arguments, **options)
