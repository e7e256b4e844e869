"""Pruned-rate learning on simulated workers whose curve is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.algorithms.rate_learner import (
    Limits,
    Point,
    next_retention,
    pooled,
    rescaled,
    split_at_change,
)

LIMITS = Limits(alpha=0.5, rho_max=0.5, rho_min=0.02, gamma_min=0.05, band=0.03)


def curve(gamma: float, fixed: float = 0.02) -> float:
    """A convex share of the unpruned time, 1 at gamma = 1."""
    return fixed + 0.15 * gamma + (0.85 - fixed) * gamma * gamma


def equalise(sigma: float, stages: int, noise: float = 0.0, seed: int = 1) -> list[tuple[float, float]]:
    """(retention, true update time) of each stage of one worker ``sigma`` times slower than the target of 1 s."""
    rng = random.Random(seed)
    points: tuple[Point, ...] = ()
    gamma, history = 1.0, []
    for _ in range(stages):
        true = sigma * curve(gamma)
        history.append((gamma, true))
        seen = sum(true * math.exp(rng.gauss(0, noise)) for _ in range(10)) / 10
        points = pooled(points, Point(gamma, seen, 10))
        here = next(p for p in points if p.gamma == gamma)
        gamma = next_retention(points, here, 1.0, LIMITS)
    return history


def test_first_stage_is_proportional():
    here = Point(1.0, 2.0, 10)
    # P = alpha (phi - phi*) / phi = 0.5 * (2 - 1) / 2
    assert next_retention([here], here, 1.0, LIMITS) == pytest.approx(0.75)


def test_first_stage_is_clipped():
    here = Point(1.0, 1000.0, 10)
    steep = Limits(alpha=1.0, rho_max=0.5, rho_min=0.02, gamma_min=0.05, band=0.03)
    assert next_retention([here], here, 1.0, steep) == 0.5


def test_secant_by_hand():
    points = [Point(1.0, 4.0, 10), Point(0.8, 2.0, 10)]
    # 0.8 + (1.0 - 0.8) / (4 - 2) * (1 - 2)
    assert next_retention(points, points[1], 1.0, LIMITS) == pytest.approx(0.7)


def test_newton_by_hand():
    # gamma = 0.1 + 0.3 phi - 0.02 phi^2 through phi = 1, 3, 4: the parabola is found again at phi = 2
    points = [Point(0.1 + 0.3 * p - 0.02 * p * p, p, 10) for p in (1.0, 3.0, 4.0)]
    assert next_retention(points, points[2], 2.0, Limits(0.5, 0.9, 0.0, 0.01, 0.0)) == pytest.approx(0.62)


@pytest.mark.parametrize("sigma", [1.7, 2, 3, 5, 10])
def test_four_stages_equalise(sigma):
    assert equalise(sigma, 5)[4][1] <= 1.10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [1.7, 3, 10])
def test_noise_neither_ratchets_down_nor_runs_away(sigma, seed):
    late = [time for _, time in equalise(sigma, 14, noise=0.1, seed=seed)[5:]]
    assert all(0.85 <= time <= 1.15 for time in late)


def test_the_fastest_worker_is_never_pruned_by_luck():
    # Its own mean is the target: noise around it stays inside the band or above 1, where it already is.
    for phi in (0.5, 0.9, 0.98, 1.0, 1.02):
        here = Point(1.0, phi, 10)
        assert next_retention([here], here, 1.0, LIMITS) == 1.0


def test_regrowth_when_too_small():
    points = [Point(1.0, 2.0, 10), Point(0.5, 0.6, 10)]
    assert 0.5 < next_retention(points, points[1], 1.0, LIMITS) < 1.0


@given(
    st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(1e-3, 1e3)), min_size=1, max_size=8, unique_by=(lambda p: p[0])),
    st.floats(1e-3, 1e3),
)
def test_always_within_its_limits(pairs, target):
    points = [Point(gamma, phi, 1) for gamma, phi in pairs]
    for here in points:
        gamma = next_retention(points, here, target, LIMITS)
        assert LIMITS.gamma_min <= gamma <= 1.0
        assert abs(gamma - here.gamma) <= LIMITS.rho_max + 1e-12
        # Too slow never widens, too fast never narrows (unless it stood below the floor).
        if here.phi > target * (1 + LIMITS.band):
            assert gamma <= here.gamma + 1e-12
        if here.phi < target * (1 - LIMITS.band):
            assert gamma >= here.gamma - 1e-12


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
