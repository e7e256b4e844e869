"""One client of the fleet as the server cannot see it: its strength, its link, its luck."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.fleet.link import Link

FAULTS = ("drop", "nan", "shape", "truncated", "forged", "duplicate")
LEAST, MOST = 1e-6, 1e9  # of a fleet's figures (a bit a second, 11 days of latency): times that come of them are finite


@dataclass(frozen=True)
class Slowdown:
    """From ``round`` on, the device takes ``factor`` times its former time (0.5: it became twice as fast)."""

    round: int
    factor: float

    def __post_init__(self) -> None:
        if self.round < 0:
            raise EdgePruneError(f"fleet: a slow-down begins in round {self.round}; rounds are counted from 1")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise EdgePruneError(f"fleet: slow-down factor {self.factor} must be a positive number")
        if not LEAST <= self.factor <= MOST:
            raise EdgePruneError(f"fleet: slow-down factor {self.factor}; give {LEAST:.0e} to {MOST:.0e}")


@dataclass(frozen=True)
class Fault:
    """What the device does wrong in rounds ``first`` .. ``last``.

    ``drop``: no answer; ``nan``: a NaN among the values; ``shape``: a tensor of the wrong shape; ``truncated``: half
    of the bytes; ``forged``: bytes changed on the way; ``duplicate``: the answer comes twice.
    """

    kind: str
    first: int = 1
    last: int = 2**31

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise EdgePruneError(f"fleet: unknown fault {self.kind!r}{nearest(self.kind, FAULTS)}")
        if self.first < 0:
            raise EdgePruneError(f"fleet: fault {self.kind!r} begins in round {self.first}; rounds are counted from 1")
        if self.first > self.last:
            raise EdgePruneError(
                f"fleet: fault {self.kind!r} ends in round {self.last}, before it begins ({self.first})"
            )

    def active(self, round_: int) -> bool:
        """Whether it strikes in ``round_`` (counted from 1)."""
        return self.first <= round_ <= self.last


@dataclass(frozen=True)
class Device:
    """A virtual device: ``slowdown`` times slower than the machine on which the latency table was measured.

    ``share`` is its part of the data relative to the others; ``noise`` the standard deviation of the logarithm of its
    update times (0.1: about 10 %). ``memory_mib``, ``energy_j`` (a round's) and ``hottest_c`` are limits that the
    scheduler keeps, 0 for none; ``temperature_c`` is what it last read, 0 for what its profile saw under load;
    ``profile`` is the file that ``edgeprune profile`` wrote on the device itself: its times are taken as they are.
    """

    name: str
    slowdown: float = 1.0
    link: Link = field(default_factory=Link)
    share: float = 1.0
    noise: float = 0.0
    slowdowns: tuple[Slowdown, ...] = ()
    memory_mib: float = 0.0
    energy_j: float = 0.0
    hottest_c: float = 0.0
    temperature_c: float = 0.0
    profile: str = ""
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for key in ("slowdown", "share"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise EdgePruneError(
                    f"fleet.device {self.name!r}: {key} is {getattr(self, key)}; it must be greater than 0"
                )

    def slowdown_at(self, round_: int) -> float:
        """Its factor in ``round_``, events included."""
        factor = self.slowdown
        for event in self.slowdowns:
            if round_ >= event.round:
                factor *= event.factor
        return factor

    def fault_at(self, round_: int) -> str | None:
        """The fault that strikes in ``round_``, if any."""
        return next((fault.kind for fault in self.faults if fault.active(round_)), None)
