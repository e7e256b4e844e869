"""What observed update times teach about a profile: a scale on its promises, and when to measure it anew.

One slow round is luck. Two in a row that agree with each other and not with what is believed are a change of the device
(another power mode, a neighbour on the board, heat), and are believed at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.device.profile import DeviceProfile, Fingerprint

MEMORY = 20  # rounds that the running mean reaches back


@dataclass(frozen=True)
class Belief:
    """``scale``: observed over promised time, believed after ``rounds`` rounds; ``doubt``: a lone odd ratio, if any."""

    scale: float = 1.0
    rounds: int = 1
    doubt: float | None = None


def updated(belief: Belief, ratio: float, change: float = 1.3) -> tuple[Belief, bool]:
    """(belief after a round that took ``ratio`` times what the profile promises, whether the device changed)."""
    if not (math.isfinite(ratio) and ratio > 0):
        return belief, False
    off = math.log(ratio / belief.scale)
    if abs(off) <= math.log(change):
        rounds = min(belief.rounds + 1, MEMORY)
        return Belief(belief.scale * math.exp(off / rounds), rounds), False
    if belief.doubt is not None and abs(math.log(ratio / belief.doubt)) <= math.log(change):
        return Belief(math.sqrt(ratio * belief.doubt), 2), True
    return Belief(belief.scale, belief.rounds, ratio), False


def reasons_to_profile(
    profile: DeviceProfile, now: Fingerprint | None, belief: Belief, tolerance: float = 1.5
) -> list[str]:
    """Why the device should be profiled again, each one sentence; empty while its profile can be trusted."""
    reasons = profile.stale(now)
    if abs(math.log(belief.scale)) > math.log(tolerance):
        reasons.append(f"its update times are {belief.scale:.2f} times what the profile promises")
    return reasons
