"""Every variant present of the masked kernels against double, through the border."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from masked_cases import CASES, Case, cases, check, make, run_core

from edgeprune import EdgePruneError, _core


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_derived_bound(case: Case, variant: str, threads: int) -> None:
    made = make(case)
    check(made, run_core(made, variant, threads))


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_any_shape_within_the_derived_bound(case: Case) -> None:
    made = make(case)
    for variant in _core.present_variants():
        check(made, run_core(made, variant))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_every_time_and_at_any_thread_count(case: Case, variant: str) -> None:
    made = make(case)
    first = run_core(made, variant, 1)
    for threads in (1, 2, 3, 8):
        for got, expected in zip(run_core(made, variant, threads), first, strict=True):
            assert got.numpy().tobytes() == expected.numpy().tobytes(), f"{threads} threads"


def test_the_core_refuses_what_would_leave_its_memory() -> None:
    made = make(Case(2, 8, 5, (8, 8), (3, 3), padding=(1, 1)))
    filter, padding = made.compiled.filter, (1, 1)
    columns, starts, *_ = made.compiled.tensors
    y = torch.zeros(2, 5, 8, 8)

    def forward(**other: object) -> None:
        given = {"columns": columns, "starts": starts, "x": made.x, "weights": made.weight, "bias": made.bias, "y": y}
        _core.masked_forward(filter, padding, order=None, **{**given, **other})  # type: ignore[arg-type]

    for other, sentence in (
        ({"columns": columns[:-1]}, "columns must be"),
        ({"starts": starts[:, :-1].contiguous()}, "starts must be"),
        ({"starts": starts.long()}, "starts must be"),
        ({"x": made.x.double()}, "x must be float32"),
        ({"x": made.x[:, :7].contiguous()}, "x has shape"),
        ({"x": made.x.transpose(2, 3)}, "contiguous"),
        ({"bias": made.bias[:4]}, "bias has shape"),
        ({"y": torch.zeros(2, 5, 8, 7)}, "y has shape"),
        ({"y": torch.zeros(3, 5, 8, 8)}, "y has shape"),
    ):
        with pytest.raises(EdgePruneError, match=sentence) as caught:
            forward(**other)
        assert "\n" not in str(caught.value)
    assert y.count_nonzero() == 0
