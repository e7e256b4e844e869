"""Masks by hand: how many, which first, and how one moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import ops
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import masks

FEDDST = [(6, 3, 5, 5), (16, 6, 5, 5), (120, 6400), (84, 120), (10, 84)]


def bits(text: str) -> torch.Tensor:
    """A mask from ones and zeros."""
    return ops.mask_from_indices(
        torch.tensor([i for i, c in enumerate(text) if c == "1"], dtype=torch.int64), len(text)
    )


def text(mask: torch.Tensor, n: int) -> str:
    kept = set(ops.mask_to_indices(mask, n).tolist())
    return "".join("1" if i in kept else "0" for i in range(n))


def test_densities_of_feddsts_network():
    sizes = [torch.Size(shape).numel() for shape in FEDDST]
    assert sum(sizes) == 781_770
    for how, expected in {
        "uniform": [0.2] * 5,
        "erk": [0.97, 0.31, 0.195, 0.46, 1.0],
        "public": [0.23, 0.21, 0.20, 0.21, 0.29],
    }.items():
        counts = masks.kept_counts(FEDDST, 0.2, how)
        assert [k / n for k, n in zip(counts, sizes, strict=True)] == pytest.approx(expected, abs=8e-3), how
        assert sum(counts) == pytest.approx(0.2 * sum(sizes), abs=5)


def test_a_move_by_hand():
    #        kept:  0     1     2           4                 7
    weight = torch.tensor([0.5, -0.1, 0.3, 9.0, -0.7, 9.0, 9.0, 0.2, 9.0, 9.0])
    mask = bits("1110100100")
    left = masks.pruned(weight, mask, 3)  # two of five go: -0.1 and 0.2
    assert text(left, 10) == "1010100000"
    gradient = torch.tensor([9.0, 0.1, 9.0, -2.0, 9.0, 0.0, 1.0, -0.5, 0.3, 1.5])
    assert text(masks.grown(gradient, left, 5), 10) == "1011100001"  # -2 and 1.5 come; kept ones are not looked at


def test_a_weight_just_pruned_may_come_back():
    weight, mask = torch.tensor([0.1, 0.2, 0.0]), bits("110")
    left = masks.pruned(weight, mask, 1)
    assert text(left, 3) == "010"
    assert text(masks.grown(torch.tensor([5.0, 0.0, 1.0]), left, 2), 3) == "110"


def test_public_growth_loses_what_it_picks_twice():
    left = bits("1010")
    mask, picked = masks.grown_anywhere(torch.tensor([3.0, 1.0, 0.0, 2.0]), left, 4)
    assert text(picked, 4) == "1001"  # the first was kept already
    assert text(mask, 4) == "1011"  # three in place of four


def test_zeros_inside_the_mask_are_kept_before_what_is_outside():
    assert text(masks.pruned(torch.zeros(6), bits("011010"), 2), 6) == "011000"


def test_start_keeps_the_largest_or_places_of_the_seed():
    weights = {"a": torch.tensor([[0.1, -3.0], [2.0, 0.0]]), "b": torch.arange(8.0)}
    found = masks.start(weights, 0.5, "uniform", "magnitude", seed=0)
    assert text(found["a"], 4) == "0110" and text(found["b"], 8) == "00001111"
    one, same, other = (masks.start({"b": torch.zeros(999)}, 0.3, "uniform", "random", seed=s)["b"] for s in (1, 1, 2))
    assert ops.mask_count(one) == 300 and torch.equal(one, same) and not torch.equal(one, other)


def test_applied_does_not_read_what_is_dropped():
    weight = torch.tensor([1.0, float("nan"), 3.0])
    assert masks.applied(weight, bits("101")).tolist() == [1.0, 0.0, 3.0]


@given(
    n=st.integers(1, 70),
    kept=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_move_keeps_the_count_exactly(n, kept, share, seed):
    draw = torch.Generator().manual_seed(seed)
    count = round(kept * n)
    mask = ops.mask_from_indices(torch.randperm(n, generator=draw)[:count], n)
    weight, gradient = torch.randn(n, generator=draw), torch.randn(n, generator=draw)
    away = masks.exchange_count(count, n, share)
    left = masks.pruned(weight, mask, count - away)
    new = masks.grown(gradient, left, count)
    assert ops.mask_count(left) == count - away and ops.mask_count(new) == count
    assert ops.mask_count(new & left) == count - away  # nothing that stayed was lost
    assert ops.mask_count(masks.inverse(mask, n)) == n - count
    assert text(masks.inverse(mask, n), n) == text(mask, n).translate(str.maketrans("01", "10"))


def test_union_and_moved():
    assert text(masks.union([bits("1000"), bits("0010")]), 4) == "1010"
    assert masks.moved({"a": bits("1100")}, {"a": bits("0110")}) == 0.5


def test_an_unknown_distribution_names_the_nearest():
    with pytest.raises(EdgePruneError, match="uniform"):
        masks.kept_counts(FEDDST, 0.2, "unifrom")
