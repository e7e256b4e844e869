"""Packing with error feedback: bit for bit against the reference, and nothing lost over many steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_cases import DTYPES, masks, raw, tensors, values

from edgeprune import EdgePruneError, ops
from edgeprune.ops import packing_reference as reference


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_feedback(dtype: str, data: st.DataObject) -> None:
    some = st.floats(-1000, 1000, width=32)
    xs = data.draw(st.lists(tensors(some, 700), min_size=1, max_size=3))
    residuals = [values(x.numel(), i) for i, x in enumerate(xs)]
    total = sum(x.numel() for x in xs)
    which = data.draw(st.integers(0, total) | st.tuples(*(st.none() | masks(x.numel()) for x in xs)).map(list))
    seed = data.draw(st.none() | st.integers(0, 2**64 - 1))
    expected_residuals = [residual.clone() for residual in residuals]
    got = ops.pack_with_feedback_many_(xs, residuals, which, dtype, seed)
    expected = reference.pack_with_feedback_many_(xs, expected_residuals, which, dtype, seed)
    assert [raw(mask) for mask in got[0]] == [raw(mask) for mask in expected[0]]
    assert [[raw(part) for part in one] for one in got[1]] == [[raw(part) for part in one] for one in expected[1]]
    assert [raw(residual) for residual in residuals] == [raw(residual) for residual in expected_residuals]


def test_feedback_loses_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    residual, sent, wanted = torch.zeros(5000), torch.zeros(5000, dtype=torch.float64), torch.zeros(5000).double()
    for step in range(30):
        x = torch.randn(5000, generator=generator)
        mask, packed = ops.pack_with_feedback_(x, residual, 50, "i8", step)
        wanted += x.double()
        sent += ops.unpack(*packed, mask, 5000, "i8").double()
    # each step rounds a few sums to float32, of magnitudes below 64
    assert torch.allclose(sent + residual.double(), wanted, rtol=0, atol=30 * 4 * 64 * 2.0**-24)


def test_feedback_refuses_what_cannot_be_read() -> None:
    for dtype, value in (("i8", math.inf), ("f16", 70_000.0), ("f32", math.inf), ("bf16", math.nan)):
        advice = "find out" if dtype == "f32" else "use f32, or find out"
        with pytest.raises(EdgePruneError, match=f"not finite in {dtype}; {advice}"):
            ops.pack_with_feedback_(torch.tensor([1.0, value]), torch.zeros(2), None, dtype)
    with pytest.raises(EdgePruneError, match="holds NaN"):
        ops.pack_with_feedback_(torch.tensor([math.nan]), torch.zeros(1), 1)
    with pytest.raises(EdgePruneError, match="belong to one tensor"):
        ops.pack_with_feedback_(torch.ones(3), torch.zeros(2), None)
    with pytest.raises(EdgePruneError, match="contiguous"):
        ops.pack_with_feedback_(torch.ones(3), torch.zeros(6)[::2], None)


def test_what_is_written_shares_memory_with_nothing() -> None:
    x, residual = torch.linspace(-3, 1, 40), torch.zeros(40)
    packed = ops.pack(x, None)
    for call in (
        lambda: ops.pack_with_feedback_(residual, residual, 4),
        lambda: ops.pack_with_feedback_many_([x, x], [residual, residual], 4),
        lambda: ops.accumulate_(residual, residual, *packed, None, "f32", 1.0),
        lambda: ops.accumulate_(residual, torch.zeros(40), residual.view(torch.uint8), None, None, "f32", 1.0),
    ):
        with pytest.raises(EdgePruneError, match="share memory, and one is written to"):
            call()
    assert not residual.any()
