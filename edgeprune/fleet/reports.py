"""What the scheduler is told: one report a client, and the ladder of sub-models it may choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgeprune.device.profile import ModelSize
from edgeprune.errors import EdgePruneError
from edgeprune.fleet.link import Link
from edgeprune.fleet.size import size_of
from edgeprune.pruning import ChannelGraph, Ranking, SubmodelPlan

BYTES_PER_VALUE = 4
HEADER_BYTES = 2048  # names, shapes and the recipe of one message, roughly


class Needs(Protocol):
    """What a device's profile answers (:class:`~edgeprune.fleet.times.ProfileTimes`)."""

    def step_s(self, size: ModelSize) -> float: ...

    def memory(self, size: ModelSize) -> int | None: ...

    def energy_j(self, size: ModelSize) -> float | None: ...


@dataclass(frozen=True)
class Rung:
    """A sub-model that may be assigned: its share of the channels, its size, the bytes of one transfer of weights."""

    retention: float
    size: ModelSize
    nbytes: int

    @classmethod
    def of(cls, retention: float, size: ModelSize) -> Rung:
        """That of a sub-model whose weights travel as float32."""
        return cls(retention, size, BYTES_PER_VALUE * size.parameters + HEADER_BYTES)


@dataclass(frozen=True)
class Report:
    """One client as the scheduler knows it.

    ``steps``: optimiser steps of a full round. ``memory_bytes``, ``energy_j``, ``hottest_c``: limits (infinite: none)
    of the process's memory, of the joules of a round, and of the temperature; ``temperature_c``: measured last.
    ``noise``: standard deviation of the logarithm of its update times. ``scale``: observed over expected update time.
    ``measured`` names the measurement behind ``needs``; another name is another measurement.
    """

    name: str
    needs: Needs
    link: Link
    steps: int
    memory_bytes: float = math.inf
    energy_j: float = math.inf
    temperature_c: float | None = None
    hottest_c: float = math.inf
    noise: float = 0.0
    scale: float = 1.0
    measured: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EdgePruneError(f"scheduler: {self.name!r} has {self.steps} training steps a round; give it data")
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.noise) and self.noise >= 0):
            raise EdgePruneError(
                f"scheduler: {self.name!r} reports a scale of {self.scale} and a noise of {self.noise}"
            )

    def parts_s(self, rung: Rung, steps: int) -> tuple[float, float, float]:
        """(download, compute, upload) in seconds, as observed so far."""
        return (
            self.scale * self.link.download_s(rung.nbytes),
            self.scale * steps * self.needs.step_s(rung.size),
            self.scale * self.link.upload_s(rung.nbytes),
        )

    def update_time_s(self, rung: Rung, steps: int | None = None) -> float:
        """Expected seconds from send to receipt."""
        return math.fsum(self.parts_s(rung, self.steps if steps is None else steps))


def ladder(graph: ChannelGraph, order: Ranking, least: float = 0.05, step: float = 0.005) -> list[Rung]:
    """Every distinct sub-model of ``order`` from the whole one down to ``least``, the largest first."""
    count = round((1 - least) / step)
    found: dict[str, Rung] = {}
    for i in range(count + 1):
        keep = 1.0 if i == 0 else max(least, 1.0 - i * step)
        plan = SubmodelPlan.full(graph) if i == 0 else order.plan(keep)
        if plan.id not in found:
            size = size_of(graph, plan.counts)
            found[plan.id] = Rung.of(keep, size)
    return list(found.values())


def check_ladder(rungs: Sequence[Rung]) -> None:
    """The largest first, and at least one."""
    if not rungs or any(a.retention <= b.retention for a, b in zip(rungs, rungs[1:], strict=False)):
        raise EdgePruneError("scheduler: the sub-models must come largest first, at least one")
