"""Names beside lines: apart from each other, in order, and as near as can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.report.labels import shortened, spread


def test_spread_by_hand() -> None:
    assert spread([10.0, 50.0], 14, 0, 100) == [10.0, 50.0]  # room enough
    assert spread([50.0, 50.0], 14, 0, 100) == [43.0, 57.0]  # around what both want
    assert spread([52.0, 50.0], 14, 0, 100) == [58.0, 44.0]  # the order is kept
    assert spread([0.0, 1.0], 14, 0, 100) == [0.0, 14.0]  # not below the axis
    assert spread([99.0, 100.0], 14, 0, 100) == [86.0, 100.0]
    assert spread([], 14, 0, 100) == []


@given(
    st.lists(st.floats(-20, 120), max_size=30),
    st.floats(1, 30),
)
def test_apart_inside_and_in_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, 0.0, 100.0)
    fits = min(gap, 100.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    placed = [found[i] for i in order]
    assert all(b - a >= fits - 1e-6 for a, b in zip(placed, placed[1:], strict=False))
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in placed)


@pytest.mark.parametrize("name", ["", "device-0", "x" * 22])
def test_short_names_stay(name: str) -> None:
    assert shortened(name) == name


def test_long_names_keep_both_ends() -> None:
    found = shortened("laboratory-orin-nano-number-17")
    assert len(found) == 22 and found.startswith("laboratory") and found.endswith("number-17") and "…" in found
