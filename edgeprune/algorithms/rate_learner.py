"""Pruned-rate learning: from a worker's (retention, update time) points to the retention that meets a target time.

Source: AdaptCL (arXiv 2106.14126), reconstructed; docs/algorithms/adaptcl.md says where this differs. The functions
know nothing of devices: the time alone encodes capability. They know the model: what a retention amounts to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeprune.algorithms import root_finding
from edgeprune.algorithms.root_finding import Sample

CERTAIN = 6.0  # standard errors between two means that are no luck


@dataclass(frozen=True)
class Point:
    """Mean update time ``phi`` (seconds) over ``rounds`` rounds at retention ``gamma``."""

    gamma: float
    phi: float
    rounds: int


@dataclass(frozen=True)
class Limits:
    """``alpha``: gain of the first, proportional stage. ``rho_max``: largest change of retention in one stage;
    ``rho_min``: changes below this share of the present retention are skipped while the target is not bracketed.
    ``gamma_min``: floor. ``band``: a time within this share of the target counts as met."""

    alpha: float
    rho_max: float
    rho_min: float
    gamma_min: float
    band: float


@dataclass(frozen=True)
class Scale:
    """What a retention amounts to: ``size(count)`` is the share of the whole model that its first ``count`` channels
    make, rising, 1 at ``channels``; at least ``least`` channels are always kept."""

    channels: int
    least: int
    size: Callable[[int], float]

    def of(self, gamma: float) -> float:
        """The size at retention ``gamma``."""
        return self.size(self.count(gamma))

    def count(self, gamma: float) -> int:
        """Channels kept at ``gamma``."""
        return max(self.least, min(self.channels, math.floor(gamma * self.channels + 0.5)))

    def gamma(self, count: int) -> float:
        """The retention of ``count`` channels."""
        return count / self.channels

    def nearest(self, size: float) -> int:
        """The count whose size is nearest to ``size``."""
        low, high = self.least, self.channels
        while low < high:  # the first count that is not smaller
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.size(middle) < size else (low, middle)
        smaller = max(self.least, low - 1)
        return smaller if size - self.size(smaller) < self.size(low) - size else low


def by_channels(channels: int, least: int = 1) -> Scale:
    """The paper's scale: a model's size is its share of channels."""
    return Scale(channels, least, lambda count: count / channels)


def next_retention(points: Sequence[Point], current: Point, target: float, limits: Limits, scale: Scale) -> float:
    """The retention to try next, a whole number of channels.

    One point: in proportion, size (1 - alpha (phi - phi*) / phi). More: the secant of size over phi, or Newton's
    divided differences through three points, evaluated at ``target``. Nothing changes while the time is within ``band``
    of the target, so that noise does not walk a worker down. Once the target lies between two points, every stage
    narrows them by a channel at least; between neighbours the nearer one in time is taken.
    """
    if abs(current.phi / target - 1.0) <= limits.band:
        return current.gamma
    if current.phi < target and current.gamma >= 1.0:
        return 1.0
    samples = [Sample(scale.of(point.gamma), point.phi) for point in points]
    here = Sample(scale.of(current.gamma), current.phi)
    around = root_finding.bracket(samples, here, target)
    if around is None:
        count = scale.nearest(root_finding.outside(samples, here, target, limits.alpha))
        wish = _limited(scale.gamma(count), current.gamma, limits, scale)
        return current.gamma if abs(wish - current.gamma) < limits.rho_min * current.gamma else wish
    low, high = (scale.nearest(sample.size) for sample in around)
    if high - low <= 1:
        count = scale.nearest(min(around, key=lambda sample: abs(math.log(sample.time / target))).size)
    else:
        count = scale.nearest(root_finding.inside(root_finding.consistent(samples, here), *around, target))
        count = min(max(count, low + 1), high - 1)
    return _limited(scale.gamma(count), current.gamma, limits, scale)


def _limited(wish: float, gamma: float, limits: Limits, scale: Scale) -> float:
    """``wish`` within ``rho_max`` of ``gamma`` and above the floor, in whole channels."""
    wish = max(gamma - limits.rho_max, min(gamma + limits.rho_max, wish))
    count = scale.count(max(limits.gamma_min, min(1.0, wish)))
    return scale.gamma(max(count, math.ceil(limits.gamma_min * scale.channels - 1e-9)))


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
    way, no time of one side reaches into the other, and the means of the logarithms lie ``CERTAIN`` standard errors
    apart: of a hundred noisy intervals one or two have their two slowest rounds at one end, and that is luck.
    """
    best = (1.0, times)
    for i in range(2, len(times) - 1):
        before, after = times[:i], times[i:]
        factor = mean(after) / mean(before)
        apart = min(after) > max(before) or max(after) < min(before)
        bar = max(math.log(ratio), abs(math.log(best[0])), CERTAIN * _standard_error(before, after))
        if apart and abs(math.log(factor)) > bar:
            best = (factor, after)
    return best


def _standard_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the difference between the mean logarithms of two groups with one variance (two times each at least)."""
    squares = 0.0
    for group in (a, b):
        logs = [math.log(time) for time in group]
        squares += math.fsum((value - mean(logs)) ** 2 for value in logs)
    return math.sqrt(squares / (len(a) + len(b) - 2) * (1 / len(a) + 1 / len(b)))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of a non-empty sequence."""
    return math.fsum(values) / len(values)
