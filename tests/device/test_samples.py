"""Energy of a window, by hand and by properties: never a number that was not measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.device.samples import Recording, Sample, now


def of(*points: tuple[float, float | None], interval: float = 1.0, fault: str | None = None) -> Recording:
    return Recording("jtop", tuple(Sample(t, p) for t, p in points), "VDD_IN", interval, fault=fault)


def test_trapezoids_by_hand():
    # 10 W to t = 2, 20 W at t = 3 and after: 20 J, then 15 J in the ramp, then 20 J.
    energy = of((0, 10), (1, 10), (2, 10), (3, 20), (4, 20)).energy(0, 4, 2, 1)
    assert energy.joules == pytest.approx(20 + 15 + 20)
    assert (energy.samples, energy.seconds, energy.rail, energy.source) == (5, 4, "VDD_IN", "jtop")
    assert energy.watts == pytest.approx(55 / 4)


def test_edges_are_interpolated():
    # From 0.5 (15 W) to 1.5 (25 W) through 20 W at 1: (15 + 20) / 4 + (20 + 25) / 4.
    assert of((0, 10), (1, 20), (2, 30)).energy(0.5, 1.5, 1, 1).joules is None  # one sample inside is too few
    assert of((0, 10), (1, 20), (1.2, 22), (2, 30)).energy(0.5, 1.5, 2, 1).joules == pytest.approx(20.0)


@given(
    st.lists(st.floats(0.1, 2.0), min_size=6, max_size=40),
    st.floats(0.5, 60),
    st.floats(0.05, 0.45),
)
def test_constant_power_is_power_times_time(steps, watts, cut):
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    start, end = times[-1] * cut, times[-1] * (1 - cut / 2)
    energy = of(*((t, watts) for t in times), interval=2.0).energy(start, end, 2, 0.0)
    if energy.joules is not None:
        assert energy.joules == pytest.approx(watts * (end - start))
    else:
        assert energy.samples < 2


@given(
    st.lists(st.tuples(st.floats(1, 99), st.floats(0, 60)), min_size=3, max_size=30, unique_by=lambda p: p[0]),
    st.floats(10, 90),
)
def test_windows_add_up(points, cut):
    points = [(0.0, 5.0), *sorted(points), (100.0, 5.0)]
    recording = of(*points, interval=100.0)
    whole = recording.energy(0, 100, 2, 0).joules
    left, right = recording.energy(0, cut, 0, 0), recording.energy(cut, 100, 0, 0)
    if None not in (left.joules, right.joules):
        assert left.joules + right.joules == pytest.approx(whole)


@pytest.mark.parametrize(
    ("recording", "window", "words"),
    [
        (of(), (0, 40), "jtop gave no power"),
        (of(fault="power: not measured: no service"), (0, 40), "no service"),
        (of((0, None), (20, None), (40, None)), (0, 40), "gave no power"),
        (of(*((t, 5.0) for t in range(100))), (0, 29), "shorter than 30 s"),
        (of(*((t, 5.0) for t in range(40))), (0, 39), "40 power samples in the window, 50 needed"),
        (of(*((t, 5.0) for t in (*range(60), *range(80, 120)))), (0, 119), "a hole of 21.0 s"),
        (of(*((t, 5.0) for t in range(60))), (0, 70), "a hole of 11.0 s"),
        (of(*((t, 5.0) for t in range(60)), fault="gone: restart"), (0, 70), "gone: restart"),
    ],
)
def test_reasons(recording, window, words):
    energy = recording.energy(*window)
    assert energy.joules is None and energy.watts is None and words in energy.reason


def test_flags_and_heat_of_a_window():
    samples = (
        Sample(0, 5, {}, {"tj": 50.0}, "25W", {"GPU clock": 624_000}),
        Sample(1, 5, {}, {"tj": 61.0}, "25W", {"GPU clock": 624_000}),
        Sample(2, 5, {}, {"tj": 55.0}, "15W", {"GPU clock": 420_000}),
    )
    recording = Recording("jtop", samples, "VDD_IN", 1.0)
    assert recording.flags(0, 1) == []
    assert recording.flags() == [
        "the power mode changed during the measurement: 25W -> 15W",
        "the GPU clock limit changed during the measurement: 624 MHz -> 420 MHz",
    ]
    assert recording.hottest_c() == {"tj": 61.0} and recording.hottest_c(2) == {"tj": 55.0}


def test_the_clock_is_the_one_of_uptime():
    with open("/proc/uptime") as file:
        assert now() == pytest.approx(float(file.read().split()[0]), abs=5)
    assert math.isfinite(now())
