"""Power over time: samples on one clock, and the energy of a window, integrated here and never taken from a filter.

Times are seconds since boot (``CLOCK_BOOTTIME``): what /proc/uptime shows and jtop stamps its samples with. So a window
that a benchmark noted in this process can be cut out of samples that another process took.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LEAST_SAMPLES = 50
LEAST_SECONDS = 30.0


def now() -> float:
    """Seconds since boot, suspend included; the monotonic clock where the system has no such clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class Sample:
    """One look at the board. ``power_w`` is the instantaneous total, None where the machine gave none."""

    time_s: float
    power_w: float | None
    rails_w: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    mode: str | None = None
    clocks_khz: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Energy:
    """``joules`` drawn in ``seconds``, or None with the ``reason`` why it was not measured. ``rail`` names what was."""

    joules: float | None
    seconds: float
    samples: int
    source: str
    rail: str | None
    reason: str | None = None

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None or not self.seconds else self.joules / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**vars(self), "watts": self.watts}


@dataclass(frozen=True)
class Recording:
    """What a sampler saw. ``fault``: one sentence on why there is nothing, or nothing more; ``dropped``: stale samples.

    ``rail`` is the input rail, or ``sum of A + B`` where the board has no sensor at its input. ``instead_of``: one
    sentence on why a better source was not used.
    """

    source: str
    samples: tuple[Sample, ...] = ()
    rail: str | None = None
    interval_s: float = math.nan
    dropped: int = 0
    fault: str | None = None
    instead_of: str | None = None

    def energy(
        self, start: float, end: float, least_samples: int = LEAST_SAMPLES, least_s: float = LEAST_SECONDS
    ) -> Energy:
        """Energy from ``start`` to ``end`` (seconds since boot) by the trapezoid rule.

        The power at the edges is interpolated; where the nearest sample is further than three intervals off, or where a
        hole of that size lies inside, nothing is reported. Nor is it for a window that is too short for the sensor.
        """
        with_power = [(s.time_s, s.power_w) for s in self.samples if s.power_w is not None]
        inside = sum(start <= t <= end for t, _ in with_power)
        reason = self._why_not(with_power, start, end, inside, least_samples, least_s)
        joules = None if reason else _integral(with_power, start, end)
        return Energy(joules, end - start, inside, self.source, self.rail, reason)

    def _why_not(
        self,
        points: list[tuple[float, float]],
        start: float,
        end: float,
        inside: int,
        least_samples: int,
        least_s: float,
    ) -> str | None:
        if not points:
            return self.fault or f"not measured: {self.source} gave no power"
        if end - start < least_s:
            return f"not measured: the window of {end - start:.1f} s is shorter than {least_s:g} s"
        if inside < max(2, least_samples):
            return self.fault or f"not measured: {inside} power samples in the window, {max(2, least_samples)} needed"
        patience = 3 * self.interval_s if self.interval_s > 0 else end - start
        times = [t for t, _ in points if start <= t <= end]
        holes = [b - a for a, b in zip([start, *times], [*times, end], strict=True)]
        if max(holes) > patience:
            return self.fault or f"not measured: a hole of {max(holes):.1f} s between power samples"
        return None

    def modes(self, start: float = -math.inf, end: float = math.inf) -> tuple[str, ...]:
        """The power modes seen in the window, in order, each change once."""
        return _changes(s.mode for s in self.samples if start <= s.time_s <= end and s.mode is not None)

    def hottest_c(self, start: float = -math.inf, end: float = math.inf) -> dict[str, float]:
        """The highest temperature of every sensor in the window."""
        found: dict[str, float] = {}
        for sample in self.samples:
            if start <= sample.time_s <= end:
                for name, value in sample.temperatures_c.items():
                    found[name] = max(value, found.get(name, -math.inf))
        return found

    def flags(self, start: float = -math.inf, end: float = math.inf) -> list[str]:
        """What happened in the window that a reader of its figures must know: each one sentence."""
        found = []
        modes = self.modes(start, end)
        if len(modes) > 1:
            found.append(f"the power mode changed during the measurement: {' -> '.join(modes)}")
        limits: dict[str, list[str]] = {}
        for sample in self.samples:
            if start <= sample.time_s <= end:
                for name, value in sample.clocks_khz.items():
                    limits.setdefault(name, []).append(f"{value // 1000} MHz")
        for name, values in limits.items():
            seen = _changes(values)
            if len(seen) > 1:
                found.append(f"the {name} limit changed during the measurement: {' -> '.join(seen[:4])}")
        return found


def forget(samples: list[Sample], before_s: float) -> None:
    """Drop what is older than ``before_s`` from ``samples``, sorted by time, but the last of it. Others may append."""
    del samples[: max(0, bisect_left(samples, before_s, key=lambda sample: sample.time_s) - 1)]


def _changes(values: Iterable[str]) -> tuple[str, ...]:
    seen: list[str] = []
    for value in values:
        if not seen or seen[-1] != value:
            seen.append(value)
    return tuple(seen)


def _integral(points: list[tuple[float, float]], start: float, end: float) -> float:
    """Trapezoids from ``start`` to ``end`` over ``points``, sorted by time; the edges interpolated or held."""
    points = sorted(points)
    inside = [(t, p) for t, p in points if start < t < end]
    line = [(start, _at(points, start)), *inside, (end, _at(points, end))]
    return math.fsum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in zip(line, line[1:], strict=False))


def _at(points: list[tuple[float, float]], when: float) -> float:
    i = bisect_left(points, (when, -math.inf))
    if i == 0:
        return points[0][1]
    if i == len(points):
        return points[-1][1]
    (t0, p0), (t1, p1) = points[i - 1], points[i]
    return p0 if t1 == t0 else p0 + (p1 - p0) * (when - t0) / (t1 - t0)
