"""What a device is expected to need, read off its profile: time, memory and energy of any sub-model.

:class:`ProfileTimes` answers the same questions as :class:`~edgeprune.fleet.latency.LatencyTable`, so the virtual clock
can charge from either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from edgeprune.device.profile import FORMAT, DeviceProfile, ModelSize, Point, from_json
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import latency_model
from edgeprune.fleet.latency import LatencyTable
from edgeprune.fleet.latency_model import LatencyModel


class Times(Protocol):
    """Step times of one task on one machine."""

    @property
    def task(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def source(self) -> str: ...

    @property
    def machine(self) -> Mapping[str, Any]: ...

    @property
    def rebuild_ms(self) -> float: ...

    def step_s(self, size: int | ModelSize) -> float: ...

    def forward_s(self, size: int | ModelSize) -> float: ...

    def to_json(self) -> dict[str, Any]: ...


class ProfileTimes:
    """The figures of ``profile``, interpolated by its latency model. ``factor``: a virtual device, so much slower."""

    def __init__(self, profile: DeviceProfile, factor: float = 1.0) -> None:
        self.profile = profile
        self.factor = factor
        dense = [point for point in profile.points if point.density == 1.0]
        if len(dense) < 3:
            raise EdgePruneError(
                f"profile of {profile.task!r}: it holds {len(dense)} dense sizes, a fit needs three; measure it again"
            )
        self._dense = dense
        self._step = latency_model.fit([p.size for p in dense], [p.step_ms for p in dense])
        self._forward = latency_model.fit([p.size for p in dense], [p.inference_ms for p in dense])

    @property
    def task(self) -> str:
        """The task it was measured for."""
        return self.profile.task

    @property
    def batch_size(self) -> int:
        """The batch size of every figure."""
        return self.profile.batch_size

    @property
    def source(self) -> str:
        """``measured``, or ``emulated`` for a virtual device."""
        return self.profile.source if self.factor == 1.0 else "emulated"

    @property
    def machine(self) -> Mapping[str, Any]:
        """Where it was measured."""
        return self.profile.machine

    @property
    def rebuild_ms(self) -> float:
        """Building a sub-model and loading its weights."""
        return self.profile.rebuild_ms * self.factor

    def step_s(self, size: int | ModelSize) -> float:
        """Seconds of one training step. Never below a tenth of the smallest measured one."""
        least = min(p.step_ms for p in self._dense) / 10
        return max(self._step(_needs_size(size)), least) * 1e-3 * self.factor

    def forward_s(self, size: int | ModelSize) -> float:
        """Seconds of one forward pass of a batch."""
        least = min(p.inference_ms for p in self._dense) / 10
        return max(self._forward(_needs_size(size)), least) * 1e-3 * self.factor

    def density_factor(self, density: float) -> float:
        """Time of a step at ``density`` over that of the dense model; 1 where no density was measured."""
        found = sorted((p.density, p.step_ms) for p in self.profile.points if p.width == 1.0 and p.depth == 1.0)
        if len({d for d, _ in found}) < 2:
            return 1.0
        return _interpolate(found, density) / _interpolate(found, 1.0)

    def memory(self, size: ModelSize) -> int | None:
        """Peak bytes of a process that trains a model of ``size``: the fitted value plus the fit's worst shortfall."""
        if self._memory is None:
            return None
        model, margin = self._memory
        base = self.profile.base_memory or 0
        return round(base + model(size) * margin)

    def energy_j(self, size: ModelSize) -> float | None:
        """Joules of one training step, net of idle; None where energy was not measured."""
        return None if self._energy is None else self._energy(size)

    def to_json(self) -> dict[str, Any]:
        """The profile's JSON, which :func:`read_times` reads back (a factor is not kept: it is the fleet's)."""
        return self.profile.to_json()

    @cached_property
    def _memory(self) -> tuple[LatencyModel, float] | None:
        base = self.profile.base_memory
        points = [p for p in self._dense if p.peak_memory is not None]
        if base is None or len(points) < 3:
            return None
        own = [max(1.0, float((p.peak_memory or 0) - base)) for p in points]
        model = latency_model.fit([p.size for p in points], own)
        return model, max(1.0, max(true / model(p.size) for p, true in zip(points, own, strict=True)))

    @cached_property
    def _energy(self) -> Callable[[ModelSize], float] | None:
        points = [p for p in self._dense if p.step_j is not None]
        if len(points) < 3:
            return None
        return latency_model.fit([p.size for p in points], [_joules(p) for p in points])


def read_times(path: Path) -> LatencyTable | ProfileTimes:
    """A latency table or a device profile, whichever the file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgePruneError(f"latency table {path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise EdgePruneError(f"latency table {path}: not JSON; measure it again with latency = 'measure'") from None
    if isinstance(value, dict) and value.get("format") == FORMAT:
        profile = from_json(value, f"profile {path}")
        try:
            return ProfileTimes(profile)
        except EdgePruneError as error:
            raise EdgePruneError(f"profile {path}: {error}") from None
    return LatencyTable.from_json(value, f"latency table {path}")


def _needs_size(size: int | ModelSize) -> ModelSize:
    if not isinstance(size, ModelSize):
        raise EdgePruneError("a device profile is asked with the size of a model, not with its multiply-adds alone")
    return size


def _joules(point: Point) -> float:
    return math.nan if point.step_j is None else max(point.step_j, 1e-9)


def _interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between points sorted by their first entry, held beyond them."""
    if at <= points[0][0]:
        return points[0][1]
    for (a, u), (b, v) in zip(points, points[1:], strict=False):
        if at <= b:
            return v if b == a else u + (v - u) * (at - a) / (b - a)
    return points[-1][1]
