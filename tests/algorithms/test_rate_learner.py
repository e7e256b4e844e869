"""Pruned-rate learning on simulated workers whose curve is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rate_curves import LIMITS, Curve, equalise, real, staircase

from edgeprune.algorithms.adaptcl import AdaptCL, Worker
from edgeprune.algorithms.rate_learner import (
    Limits,
    Point,
    Scale,
    by_channels,
    next_retention,
    pooled,
    rescaled,
    split_at_change,
)

HUNDRED = by_channels(100)
FINE = by_channels(100_000)
GENTLE = Limits(alpha=0.5, rho_max=0.5, rho_min=0.02, gamma_min=0.05, band=0.03)


def convex(channels: int = 448, fixed: float = 0.02) -> Curve:
    """Time is quadratic in the channels, and a part of it is fixed."""

    def time(count: int) -> float:
        gamma = count / channels
        return fixed + 0.15 * gamma + (0.85 - fixed) * gamma * gamma

    return Curve(by_channels(channels), time)


# --- one stage, by hand -----------------------------------------------------------------------------------------------


def test_first_stage_is_proportional():
    here = Point(1.0, 2.0, 10)
    # P = alpha (phi - phi*) / phi = 0.5 * (2 - 1) / 2
    assert next_retention([here], here, 1.0, GENTLE, HUNDRED) == pytest.approx(0.75)


def test_first_stage_is_in_proportion_to_size():
    # The first 80 of the channels make 40 % of the work: a worker twice too slow wants half, between 80 and 100 there.
    scale = Scale(100, 1, lambda n: n / 200 if n <= 80 else 0.4 + 0.03 * (n - 80))
    here = Point(1.0, 2.0, 10)
    assert next_retention([here], here, 1.0, LIMITS, scale) == pytest.approx(0.83)


def test_first_stage_is_clipped():
    here = Point(1.0, 1000.0, 10)
    assert next_retention([here], here, 1.0, LIMITS, HUNDRED) == 0.5


def test_secant_by_hand():
    points = [Point(1.0, 4.0, 10), Point(0.8, 2.0, 10)]
    # 0.8 + (1.0 - 0.8) / (4 - 2) * (1 - 2)
    assert next_retention(points, points[1], 1.0, LIMITS, HUNDRED) == pytest.approx(0.7)


def test_newton_by_hand():
    # gamma = 0.1 + 0.3 phi - 0.02 phi^2 through phi = 0.5, 1, 3: the parabola is found again at phi = 2
    points = [Point(0.1 + 0.3 * p - 0.02 * p * p, p, 10) for p in (0.5, 1.0, 3.0)]
    gamma = next_retention(points, points[2], 2.0, Limits(1.0, 0.9, 0.0, 0.01, 0.0), FINE)
    assert gamma == pytest.approx(0.62, abs=1e-5)


def test_a_parabola_that_disagrees_with_the_secant_is_not_followed():
    # Through (0.5, 0.9 s), (0.6, 1.5 s) and (1.0, 1.6 s) it says 0.24 at 1 s, below the faster end.
    points = [Point(0.5, 0.9, 10), Point(0.6, 1.5, 10), Point(1.0, 1.6, 10)]
    gamma = next_retention(points, points[1], 1.0, LIMITS, FINE)
    assert gamma == pytest.approx(0.5 + 0.1 * 0.1 / 0.6, abs=1e-5)


def test_no_extrapolation_beyond_its_base():
    # 1.10 s and 1.17 s are 6 % apart and luck decides their slope; the step to 1 s is 10 %. So 2.2 s is the base:
    # 0.58 - (1.0 - 0.58) / (2.2 - 1.1) * 0.1
    points = [Point(1.0, 2.2, 10), Point(0.66, 1.17, 10), Point(0.58, 1.1, 10)]
    assert next_retention(points, points[2], 1.0, LIMITS, FINE) == pytest.approx(0.58 - 0.42 / 11, abs=1e-5)


def test_a_step_that_left_most_of_the_gap_makes_the_next_one_longer():
    # From 0.6 to 0.58 took 0.1 s of 0.5 s off. The secant to the far end (0.2, 0.5 s) would go on to 0.411; Pegasus
    # lets the far end's -0.5 s count 0.5 / (0.5 + 0.4) of that.
    points = [Point(0.6, 1.5, 10), Point(0.58, 1.4, 10), Point(0.2, 0.5, 10)]
    far = -0.5 * 0.5 / 0.9
    expected = 0.58 - 0.38 * 0.4 / (0.4 - far)
    assert next_retention(points, points[1], 1.0, LIMITS, FINE) == pytest.approx(expected, abs=1e-5)


def test_between_neighbours_the_nearer_in_time_is_taken():
    slower, faster = Point(0.51, 1.5, 10), Point(0.50, 0.8, 10)
    assert next_retention([slower, faster], slower, 1.0, LIMITS, HUNDRED) == 0.50
    assert next_retention([slower, faster], faster, 1.0, LIMITS, HUNDRED) == 0.50


@given(st.integers(2, 98), st.integers(2, 40), st.floats(1.05, 50), st.floats(0.02, 0.95))
def test_off_target_and_bracketed_always_moves_inside(low, width, slow, fast):
    high = min(100, low + width)
    a, b = Point(low / 100, fast, 10), Point(high / 100, slow, 10)
    for here in (a, b):
        found = round(100 * next_retention([a, b], here, 1.0, Limits(1.0, 1.0, 0.005, 0.01, 0.03), HUNDRED))
        assert low < found < high


# --- whole searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.7, 2, 3, 5, 10])
def test_four_stages_equalise_a_convex_curve(sigma):
    assert 0.9 <= equalise(convex(), sigma, 5)[4][1] <= 1.10


@pytest.mark.parametrize("sigma", [1.7, 2, 3, 5, 10, 20])
def test_four_stages_equalise_digits(sigma):
    assert 0.9 <= equalise(real("digits"), sigma, 5)[4][1] <= 1.10


@pytest.mark.parametrize("sigma", [1.7, 2, 3, 10])
def test_four_stages_equalise_fashion(sigma):
    assert 0.9 <= equalise(real("fashion-cnn"), sigma, 5)[4][1] <= 1.10


@pytest.mark.parametrize("curve", [staircase(), real("digits", "channels"), real("fashion-cnn"), convex()])
@pytest.mark.parametrize("sigma", [1.7, 2.2, 3, 3.6, 5, 8.8, 10])
def test_nothing_rests_off_a_target_that_can_be_met(curve, sigma):
    # A staircase steps over most targets: then the count whose time is nearest is where it must come to rest.
    reachable = abs(math.log(sigma * curve.best(1 / sigma)))
    last = equalise(curve, sigma, 16)[-1][1]
    assert abs(math.log(last)) <= max(math.log(1.031), reachable + 1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [1.7, 3, 10])
def test_noise_neither_ratchets_down_nor_runs_away(sigma, seed):
    late = [time for _, time in equalise(convex(), sigma, 14, noise=0.1, seed=seed)[5:]]
    assert all(0.85 <= time <= 1.15 for time in late)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", ["digits", "fashion-cnn"])
def test_noise_on_the_real_curves(task, seed):
    late = [time for _, time in equalise(real(task), 3.0, 14, noise=0.05, seed=seed)[6:]]
    assert all(0.9 <= time <= 1.1 for time in late)


def test_the_fastest_worker_is_never_pruned_by_luck():
    # Its own mean is the target: noise around it stays inside the band or above 1, where it already is.
    for phi in (0.5, 0.9, 0.98, 1.0, 1.02):
        here = Point(1.0, phi, 10)
        assert next_retention([here], here, 1.0, LIMITS, HUNDRED) == 1.0


def test_regrowth_when_too_small():
    points = [Point(1.0, 2.0, 10), Point(0.5, 0.6, 10)]
    assert 0.5 < next_retention(points, points[1], 1.0, LIMITS, HUNDRED) < 1.0


@given(
    st.lists(st.tuples(st.integers(5, 100), st.floats(1e-3, 1e3)), min_size=1, max_size=8, unique_by=(lambda p: p[0])),
    st.floats(1e-3, 1e3),
)
def test_always_within_its_limits(pairs, target):
    points = [Point(count / 100, phi, 1) for count, phi in pairs]
    for here in points:
        gamma = next_retention(points, here, target, LIMITS, HUNDRED)
        assert LIMITS.gamma_min <= gamma <= 1.0
        assert abs(gamma - here.gamma) <= LIMITS.rho_max + 0.005
        assert HUNDRED.count(gamma) / 100 == gamma  # whole channels, so that a plan is known again by its retention
        # Too slow never widens, too fast never narrows.
        if here.phi > target * (1 + LIMITS.band):
            assert gamma <= here.gamma
        if here.phi < target * (1 - LIMITS.band):
            assert gamma >= here.gamma


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60), st.floats(-1, 2), st.data())
def test_nearest_size(steps, wish, data):
    sizes = [sum(steps[: i + 1]) / sum(steps) for i in range(len(steps))]
    least = data.draw(st.integers(1, len(sizes)))
    scale = Scale(len(sizes), least, lambda count: sizes[count - 1])
    found = scale.nearest(wish)
    assert least <= found <= len(sizes)
    assert abs(sizes[found - 1] - wish) == min(abs(size - wish) for size in sizes[least - 1 :])


# --- changes of capability --------------------------------------------------------------------------------------------


def test_pooled_is_the_mean_over_all_rounds():
    points = pooled((Point(0.5, 2.0, 10),), Point(0.5, 5.0, 5))
    assert points == (Point(0.5, 3.0, 15),)
    assert pooled(points, Point(0.6, 1.0, 1)) == (Point(0.5, 3.0, 15), Point(0.6, 1.0, 1))


def test_rescaled_keeps_the_shape():
    assert rescaled([Point(1.0, 4.0, 10), Point(0.5, 1.0, 20)], 2.0) == (Point(1.0, 8.0, 1), Point(0.5, 2.0, 1))


def test_change_inside_an_interval_is_found():
    factor, after = split_at_change([1.0, 1.1, 0.9, 2.0, 2.2, 1.8], 1.3)
    assert factor == pytest.approx(2.0) and list(after) == [2.0, 2.2, 1.8]


@pytest.mark.parametrize("times", [[1.0], [1.0, 3.0], [1.0, 1.1, 0.9, 1.0, 3.0], [1.0, 1.2, 0.9, 1.15, 1.05, 1.1]])
def test_luck_is_not_a_change(times):
    assert split_at_change(times, 1.3) == (1.0, times)


def test_noise_is_rarely_taken_for_a_change():
    # Of 3000 intervals with 10 % noise; without the standard error it was one in two hundred.
    rng = random.Random(5)
    alarms = sum(split_at_change([math.exp(rng.gauss(0, 0.1)) for _ in range(10)], 1.3)[0] != 1.0 for _ in range(3000))
    assert alarms <= 2


@pytest.mark.parametrize("seed", range(20))
def test_a_doubled_time_is_found_in_noise(seed):
    rng = random.Random(seed)
    times = [(1 + (i >= 5)) * math.exp(rng.gauss(0, 0.1)) for i in range(10)]
    factor, after = split_at_change(times, 1.3)
    assert factor == pytest.approx(2.0, rel=0.3) and len(after) == 5


# --- the target of a fleet --------------------------------------------------------------------------------------------


def test_the_fastest_sets_the_target_when_it_is_first_heard_of():
    """It lost every answer of the first interval; the others were aimed at the second fastest's time."""
    algorithm, workers, target = AdaptCL(), {"fast": Worker(), "middle": Worker(), "slow": Worker()}, math.nan
    for times in ({"middle": 2.0, "slow": 4.0}, {"fast": 1.0, "middle": 2.0, "slow": 2.0}, {"fast": 1.0}):
        measured = {name: Worker(w.gamma, w.points, w.unpruned, (times.get(name, 0.0),)) for name, w in workers.items()}
        measured = {name: w if name in times else workers[name] for name, w in measured.items()}
        workers, target = algorithm.learn(measured, target, HUNDRED)
        assert target == (2.0 if "fast" not in times else 1.0)
    assert workers["fast"].gamma == 1.0 and workers["middle"].gamma == 0.5
