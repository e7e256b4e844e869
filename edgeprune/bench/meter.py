"""Windows of repeated work: latencies, energy net of idle, and everything that disturbed them.

Conventions: three repeats with their spread; windows of at least 30 s with 50 power samples for an energy figure, else
"not measured"; idle power before and after; a window during which power mode or clocks changed is flagged, not hidden.
Names as in MLPerf: ``single-stream`` is the 90th percentile at batch 1, ``offline`` the throughput of a large batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.device import memory
from edgeprune.device.polling import NoSampler
from edgeprune.device.power import Sampler
from edgeprune.device.samples import LEAST_SAMPLES, LEAST_SECONDS, Energy, now
from edgeprune.device.state import MachineState, changes, machine_state

UNEVEN = 0.10  # medians of the repeats further apart than this are flagged


@dataclass(frozen=True)
class Idle:
    """Watts while nothing runs, before and after; None where not measured."""

    before_w: float | None = None
    after_w: float | None = None

    @property
    def mean_w(self) -> float | None:
        """The mean of both, or the one there is."""
        known = [watts for watts in (self.before_w, self.after_w) if watts is not None]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Result:
    """``times_s``: seconds of every timed call; ``windows``: (start, end) of each repeat, in seconds since boot."""

    name: str
    batch: int
    times_s: tuple[float, ...]
    windows: tuple[tuple[float, float], ...]
    medians_s: tuple[float, ...]
    peak_memory: int | None
    energy: Energy
    flags: tuple[str, ...] = ()
    temperatures_c: dict[str, float] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        """Largest over smallest median of the repeats, less one."""
        return max(self.medians_s) / min(self.medians_s) - 1

    def percentile_ms(self, share: float) -> float:
        """The time that ``share`` of the calls did not exceed (nearest rank)."""
        return percentile(self.times_s, share) * 1e3

    @property
    def per_second(self) -> float:
        """Samples a second."""
        return self.batch * len(self.times_s) / math.fsum(self.times_s)

    def joules_each(self, idle: Idle) -> tuple[float | None, str | None]:
        """(joules for one sample, net of idle, or None; why not)."""
        if self.energy.joules is None:
            return None, self.energy.reason
        if idle.mean_w is None:
            return None, "not measured: idle power is not known"
        net = self.energy.joules - idle.mean_w * self.energy.seconds
        if net <= 0:
            return None, "not measured: the work drew no more than idling does"
        return net / (self.batch * len(self.times_s)), None

    def to_dict(self, idle: Idle) -> dict[str, Any]:
        """As JSON takes it."""
        joules, why = self.joules_each(idle)
        return {
            "name": self.name,
            "batch": self.batch,
            "iterations": len(self.times_s),
            "repeats": len(self.windows),
            **{f"p{round(q * 100)}_ms": self.percentile_ms(q) for q in (0.5, 0.9, 0.99)},
            "max_ms": max(self.times_s) * 1e3,
            "samples_per_s": self.per_second,
            "spread": self.spread,
            "peak_memory_bytes": self.peak_memory,
            "energy": self.energy.to_dict(),
            "joules_per_sample_net_of_idle": joules,
            "joules_reason": why,
            "temperatures_max_c": self.temperatures_c,
            "flags": list(self.flags),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Meter:
    """Runs work in windows while ``sampler`` (already started) looks at the board."""

    def __init__(self, sampler: Sampler | None = None, root: Path = Path("/")) -> None:
        self.sampler: Sampler = sampler or NoSampler("power: not measured: it was not asked for")
        self._root = root

    @property
    def has_power(self) -> bool:
        """Whether power is being sampled now."""
        seen = self.sampler.recording()
        return seen.fault is None and any(sample.power_w is not None for sample in seen.samples)

    def idle(self, seconds: float) -> float | None:
        """Watts while this process sleeps; None without power, or when the window is too short for three samples."""
        if not self.has_power or seconds <= 0:
            return None
        start = now()
        time.sleep(seconds)
        return self._energy(start, now(), least_samples=3, least_s=min(seconds, 1.0)).watts

    def measure(
        self,
        name: str,
        work: Callable[[], object],
        *,
        batch: int,
        seconds: float,
        repeats: int = 3,
        warm_up: int = 3,
        least: int = 5,
        least_samples: int = LEAST_SAMPLES,
        least_s: float = LEAST_SECONDS,
    ) -> Result:
        """``repeats`` windows of ``seconds`` each, at least ``least`` calls in one, after ``warm_up`` calls."""
        before = machine_state(self._root)
        peak = memory.peak_of(lambda: [work() for _ in range(max(1, warm_up))])
        times: list[float] = []
        medians: list[float] = []
        windows: list[tuple[float, float]] = []
        for _ in range(repeats):
            start, mine = now(), _repeat(work, seconds, least)
            windows.append((start, now()))
            medians.append(percentile(mine, 0.5))
            times += mine
        energies = [self._energy(a, b, least_samples, least_s) for a, b in windows]
        flags = self._flags(before, windows[0][0], windows[-1][1], medians)
        hottest = self.hottest_c(windows[0][0], windows[-1][1])
        return Result(
            name, batch, tuple(times), tuple(windows), tuple(medians), peak, _sum(energies), tuple(flags), hottest
        )

    def hottest_c(self, start: float, end: float = math.inf) -> dict[str, float]:
        """The highest temperature of every sensor in the window; without a sampler, what they read now."""
        sampled = self.sampler.recording().hottest_c(start, end)
        return sampled or dict(machine_state(self._root).temperatures_c)

    def _energy(self, start: float, end: float, least_samples: int, least_s: float) -> Energy:
        # The sample that covers the window's end arrives up to one interval later.
        interval = self.sampler.recording().interval_s
        if self.has_power and interval > 0:
            time.sleep(1.5 * interval)
        return self.sampler.recording().energy(start, end, least_samples, least_s)

    def _flags(self, before: MachineState, start: float, end: float, medians: Sequence[float]) -> list[str]:
        found = changes(before, machine_state(self._root))
        found += [flag for flag in self.sampler.recording().flags(start, end) if flag not in found]
        spread = max(medians) / min(medians) - 1
        if spread > UNEVEN:
            found.append(f"uneven: the medians of the repeats lie {spread:.0%} apart; was the machine busy?")
        return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with that many threads inside; 0 leaves its own number."""
    import torch

    kept = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


def _repeat(work: Callable[[], object], seconds: float, least: int) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _sum(parts: Sequence[Energy]) -> Energy:
    """Energy of all windows together; not measured when one of them was not."""
    seconds, samples = math.fsum(p.seconds for p in parts), sum(p.samples for p in parts)
    first = next((p for p in parts if p.reason is not None), None)
    if first is not None:
        return Energy(None, seconds, samples, first.source, first.rail, first.reason)
    return Energy(math.fsum(p.joules or 0.0 for p in parts), seconds, samples, parts[0].source, parts[0].rail)
