"""Pruned-rate learning: from a worker's (retention, update time) points to the retention that meets a target time.

Source: AdaptCL (arXiv 2106.14126), reconstructed; docs/algorithms/adaptcl.md says where this differs. The functions
know nothing of devices: the time alone encodes capability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Point:
    """Mean update time ``phi`` (seconds) over ``rounds`` rounds at retention ``gamma``."""

    gamma: float
    phi: float
    rounds: int


@dataclass(frozen=True)
class Limits:
    """``alpha``: gain of the first, proportional stage. ``rho_max``: largest change of retention in one stage;
    ``rho_min``: changes below this share of the present retention are skipped. ``gamma_min``: floor.
    ``band``: a time within this share of the target counts as met."""

    alpha: float
    rho_max: float
    rho_min: float
    gamma_min: float
    band: float


def next_retention(points: Sequence[Point], current: Point, target: float, limits: Limits) -> float:
    """The retention to try next.

    One point: proportional, gamma - alpha (phi - phi*) / phi. More: Newton's interpolation of gamma over phi through at
    most three points, evaluated at ``target``. Nothing changes while the time is within ``band`` of the target, so that
    noise does not walk a worker down.
    """
    if abs(current.phi / target - 1.0) <= limits.band:
        return current.gamma
    if current.phi < target and current.gamma >= 1.0:
        return 1.0
    chosen = _nearest_points(points, current, target)
    if len(chosen) == 1:
        wish = current.gamma - limits.alpha * (current.phi - target) / current.phi
    else:
        wish = _interpolate(chosen, target)
    change = max(-limits.rho_max, min(limits.rho_max, wish - current.gamma))
    wish = max(limits.gamma_min, min(1.0, current.gamma + change))
    return current.gamma if abs(wish - current.gamma) < limits.rho_min * current.gamma else wish


def pooled(points: Sequence[Point], new: Point) -> tuple[Point, ...]:
    """``points`` with ``new`` averaged into the one of the same retention, or added."""
    for i, old in enumerate(points):
        if math.isclose(old.gamma, new.gamma, rel_tol=1e-9):
            rounds = old.rounds + new.rounds
            phi = (old.phi * old.rounds + new.phi * new.rounds) / rounds
            return (*points[:i], Point(old.gamma, phi, rounds), *points[i + 1 :])
    return (*points, new)


def rescaled(points: Sequence[Point], factor: float) -> tuple[Point, ...]:
    """The points of a device that became ``factor`` times slower: the shape of its curve is kept.

    They count as one round each from now on, so that fresh measurements soon outweigh the guess.
    """
    return tuple(replace(point, phi=point.phi * factor, rounds=1) for point in points)


def split_at_change(times: Sequence[float], ratio: float) -> tuple[float, Sequence[float]]:
    """A change of speed inside one interval: (factor, the times after it), or (1.0, all times).

    The split with the largest ratio of means counts if each side has two rounds, the ratio exceeds ``ratio`` either
    way, and no time of one side reaches into the other: one slow round is luck, not a change.
    """
    best = (1.0, times)
    for i in range(2, len(times) - 1):
        before, after = times[:i], times[i:]
        factor = mean(after) / mean(before)
        apart = min(after) > max(before) or max(after) < min(before)
        if apart and abs(math.log(factor)) > max(math.log(ratio), abs(math.log(best[0]))):
            best = (factor, after)
    return best


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of a non-empty sequence."""
    return math.fsum(values) / len(values)


def _nearest_points(points: Sequence[Point], current: Point, target: float) -> list[Point]:
    """At most three points, nearest the target in time (by ratio), the present one always among them."""
    others = sorted(
        (p for p in points if p.gamma != current.gamma and _apart(p, current)),
        key=lambda p: abs(math.log(p.phi / target)),
    )
    chosen = [current]
    for point in others:
        if len(chosen) < 3 and all(_apart(point, other) for other in chosen):
            chosen.append(point)
    return chosen


def _apart(a: Point, b: Point) -> bool:
    """Whether two points differ enough in time for a slope, and in the right direction (wider is slower)."""
    return abs(a.phi / b.phi - 1.0) > 0.03 and (a.phi > b.phi) == (a.gamma > b.gamma)


def _interpolate(points: Sequence[Point], target: float) -> float:
    """Newton's divided differences of gamma over phi at ``target``; the secant where three points mislead."""
    by_distance = sorted(points, key=lambda p: abs(p.phi - target))
    a, b = _bracket(points, target) or (by_distance[0], by_distance[1])
    slope = (b.gamma - a.gamma) / (b.phi - a.phi)
    secant = a.gamma + slope * (target - a.phi)
    if len(points) < 3:
        return secant
    c = next(p for p in points if p not in (a, b))
    second = ((c.gamma - b.gamma) / (c.phi - b.phi) - slope) / (c.phi - a.phi)
    newton = secant + second * (target - a.phi) * (target - b.phi)
    low, high = sorted((a.gamma, b.gamma))
    if _bracket(points, target):
        return newton if low <= newton <= high else secant
    # Outside all points: a parabola that turns round would ask a slow worker for more. Its direction must be right,
    # and it may not go further than twice the secant's step.
    nearest = by_distance[0]
    step, trusted = newton - nearest.gamma, secant - nearest.gamma
    return newton if step * trusted > 0 and abs(step) <= 2 * abs(trusted) else secant


def _bracket(points: Sequence[Point], target: float) -> tuple[Point, Point] | None:
    below = [p for p in points if p.phi <= target]
    above = [p for p in points if p.phi > target]
    if not below or not above:
        return None
    return max(below, key=lambda p: p.phi), min(above, key=lambda p: p.phi)
