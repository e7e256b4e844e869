"""Measured training-step times of physically narrowed models: what the virtual clock charges for compute.

A table is measured once, on one machine, on really smaller models; a virtual device is a multiple of it. Times are
looked up by multiply-adds, the one size that plans of any shape have in common; ``error`` is what that shortcut
costs, measured on plans that were not in the table.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from edgeprune.device.profile import ModelSize
from edgeprune.errors import EdgePruneError

WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one training step, and of one forward pass, of a batch at each measured size.

    ``macs`` are multiply-adds of one sample's forward pass, strictly increasing; ``step_ms[i]`` and
    ``forward_ms[i]`` belong to ``macs[i]``; ``rebuild_ms`` is the time to build a sub-model and load its weights once.
    """

    task: str
    batch_size: int
    macs: tuple[int, ...]
    step_ms: tuple[float, ...]
    forward_ms: tuple[float, ...]
    rebuild_ms: float
    source: str = "measured"
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.macs or not len(self.macs) == len(self.step_ms) == len(self.forward_ms):
            raise EdgePruneError(
                f"latency table: {len(self.macs)} sizes, {len(self.step_ms)} step and {len(self.forward_ms)} forward "
                "times; give one of each for every size"
            )
        if any(b <= a for a, b in zip(self.macs, self.macs[1:], strict=False)) or self.macs[0] <= 0:
            raise EdgePruneError("latency table: macs must be positive and strictly increasing")
        if not all(math.isfinite(t) and t > 0 for t in (*self.step_ms, *self.forward_ms, self.rebuild_ms)):
            raise EdgePruneError("latency table: every time must be a positive number of milliseconds")

    def step_s(self, size: int | ModelSize) -> float:
        """Seconds of one training step of a model of so many multiply-adds: linear between measured points.

        Below the smallest measured size the smallest measured time holds (never extrapolated to zero); above the
        largest, the last time grows in proportion.
        """
        return self._look_up(size, self.step_ms)

    def forward_s(self, size: int | ModelSize) -> float:
        """Seconds of one forward pass of a batch, looked up in the same way."""
        return self._look_up(size, self.forward_ms)

    def _look_up(self, size: int | ModelSize, times_ms: tuple[float, ...]) -> float:
        macs = size.macs if isinstance(size, ModelSize) else size
        if macs <= self.macs[0]:
            return times_ms[0] * 1e-3
        if macs >= self.macs[-1]:
            return times_ms[-1] * 1e-3 * macs / self.macs[-1]
        i = bisect_left(self.macs, macs)
        left, right = self.macs[i - 1], self.macs[i]
        share = (macs - left) / (right - left)
        return (times_ms[i - 1] + share * (times_ms[i] - times_ms[i - 1])) * 1e-3

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :meth:`from_json` reads back."""
        return {
            **asdict(self),
            "macs": list(self.macs),
            "step_ms": list(self.step_ms),
            "forward_ms": list(self.forward_ms),
            "machine": dict(self.machine),
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "latency table") -> LatencyTable:
        """The table in a JSON object; ``where`` names it in the error."""
        try:
            return cls(
                task=str(value["task"]),
                batch_size=int(value["batch_size"]),
                macs=tuple(int(m) for m in value["macs"]),
                step_ms=tuple(float(t) for t in value["step_ms"]),
                forward_ms=tuple(float(t) for t in value["forward_ms"]),
                rebuild_ms=float(value["rebuild_ms"]),
                source=str(value.get("source", "measured")),
                machine=dict(value.get("machine", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EdgePruneError(f"{where}: not a latency table ({type(error).__name__}: {error})") from None


def read_table(path: Path) -> LatencyTable:
    """The table in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgePruneError(f"latency table {path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise EdgePruneError(f"latency table {path}: not JSON; measure it again with latency = 'measure'") from None
    return LatencyTable.from_json(value, f"latency table {path}")


@dataclass(frozen=True)
class Probe:
    """One narrowed model, ready to be timed: its size, a training step, a forward pass, and building it anew."""

    macs: int
    step: Callable[[], object]
    forward: Callable[[], object]
    rebuild: Callable[[], object]


def measure(
    task: str,
    batch_size: int,
    build: Callable[[float], Probe],
    machine: Mapping[str, Any],
    widths: Sequence[float] = WIDTHS,
    seconds: float = 0.4,
) -> LatencyTable:
    """Time ``build(width)`` at every width.

    Each width is warmed up and then stepped for ``seconds``, in three passes over all widths so that a slow spell of
    the machine does not fall on one of them; the median step counts. A wider model that came out faster than a
    narrower one (noise, or a vector-length effect) is given the narrower one's time, so the table never rewards
    pruning with a slower step.
    """
    probes = {probe.macs: probe for probe in map(build, sorted(widths))}
    steps: dict[int, list[float]] = {macs: [] for macs in probes}
    forwards: dict[int, list[float]] = {macs: [] for macs in probes}
    rebuilds: list[float] = []
    for _ in range(3):
        for macs, probe in probes.items():
            probe.step()
            end = perf_counter() + seconds / 3
            while len(steps[macs]) < 3 or perf_counter() < end:
                steps[macs].append(_timed(probe.step))
                forwards[macs].append(_timed(probe.forward))
            rebuilds.append(_timed(probe.rebuild))
    return LatencyTable(
        task,
        batch_size,
        tuple(sorted(steps)),
        _rising_medians(steps),
        _rising_medians(forwards),
        _median(rebuilds) * 1e3,
        "measured",
        machine,
    )


def _rising_medians(times: Mapping[int, list[float]]) -> tuple[float, ...]:
    """Median milliseconds by increasing size, none below the one before."""
    rising: list[float] = []
    for macs in sorted(times):
        rising.append(max(_median(times[macs]) * 1e3, rising[-1] if rising else 0.0))
    return tuple(rising)


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
