"""Exact sums: by hand, against Python's integers, and whatever the order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune import ops
from edgeprune.errors import EdgePruneError


def bitmap(kept: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))


def test_by_hand():
    words = torch.zeros(4, dtype=torch.int64)
    ops.accumulate_exact_(words, bitmap(torch.tensor([1, 0, 1, 0]).bool()), torch.tensor([0.5, -1.25]), 3 * 4.0, 3, 4)
    # 0.5 * 12 = 6 and -1.25 * 12 = -15 in the upper lane, the weight 3 in the lower four bits.
    assert words.tolist() == [6 * 16 + 3, 0, -15 * 16 + 3, 0]
    ops.accumulate_exact_(words, None, torch.tensor([0.125, 0.375, 0.0, 1.0]), 4.0, 1, 4)
    # 0.5 and 1.5 lie between two whole numbers: to the even one, 0 and 2.
    assert words.tolist() == [6 * 16 + 4, 2 * 16 + 1, -15 * 16 + 4, 4 * 16 + 1]


def even(x: Fraction) -> int:
    return round(x)  # of a Fraction: to nearest, ties to even


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 24), st.data())
def test_against_whole_numbers_of_python(n, bits, data):
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    expected = [0] * n
    words = torch.zeros(n, dtype=torch.int64)
    for _ in range(3):
        kept = torch.rand(n, generator=random) < 0.4
        values = torch.randn(int(kept.sum()), generator=random)
        weight = data.draw(st.integers(1, (1 << bits) - 1))
        factor = weight * 2.0 ** (58 - 2 * bits)
        ops.accumulate_exact_(words, bitmap(kept), values, factor, weight, bits)
        where = torch.nonzero(kept).flatten().tolist()
        for i, value in zip(where, values.tolist(), strict=True):
            expected[i] += (even(Fraction(value * factor)) << bits) + weight
    assert words.tolist() == expected


@pytest.mark.parametrize(
    ("mask", "values", "options", "sentence"),
    [
        (None, torch.ones(3), {}, "3 values for 4 kept"),
        (torch.tensor([0b0111], dtype=torch.uint8), torch.ones(4), {}, "4 values for 3 kept"),
        (torch.tensor([0b10011], dtype=torch.uint8), torch.ones(3), {}, "beyond the words"),
        (torch.zeros(2, dtype=torch.uint8), torch.ones(0), {}, "not one bit for each word"),
        (torch.zeros(4, dtype=torch.bool), torch.ones(0), {}, "uint8"),
        (None, torch.ones(4, dtype=torch.float64), {}, "float32"),
        (None, torch.tensor([1, 2, 3, float("nan")]), {}, "not finite or too large"),
        (None, torch.tensor([1, 2, 3, 1e30]), {}, "not finite or too large"),
        (None, torch.ones(4), {"weight": 0}, "does not fit a lane"),
        (None, torch.ones(4), {"weight": 16}, "does not fit a lane"),
        (None, torch.ones(4), {"bits": 25}, "does not fit a lane"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else "",
)
def test_refused_with_nothing_added(mask, values, options, sentence):
    words = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(EdgePruneError, match=sentence):
        ops.accumulate_exact_(words, mask, values, **{"factor": 1.0, "weight": 3, "bits": 4, **options})
    assert words.tolist() == [0, 0, 0, 0]
    with pytest.raises(EdgePruneError, match="int64"):
        ops.accumulate_exact_(words.int(), None, torch.ones(4), 1.0, 1, 4)
