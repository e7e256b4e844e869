"""What observed update times teach about a profile: a scale on its promises, and when to measure it anew.

One slow round is luck. Two in a row that agree with each other and not with what is believed are a change of the device
(another power mode, a neighbour on the board, heat), and are believed at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.device.profile import DeviceProfile, Fingerprint

MEMORY = 20  # rounds that the running mean reaches back
SURE = 8  # rounds before an error is one
LEAST_ERROR = 0.1
MEAN, MEDIAN = 0.798, 0.6745  # of |z|, z normal: from deviations to mean and median distances


@dataclass(frozen=True)
class Belief:
    """``scale``: observed over promised time, believed after ``rounds`` rounds; ``doubt``: a lone odd ratio, if any;
    ``error``: mean distance of the rounds from what was believed then, as a logarithm (0.1: about 10 %)."""

    scale: float = 1.0
    rounds: int = 1
    doubt: float | None = None
    error: float = 0.0


def updated(belief: Belief, ratio: float, change: float = 1.3) -> tuple[Belief, bool]:
    """(belief after a round that took ``ratio`` times what the profile promises, whether the device changed)."""
    if not (math.isfinite(ratio) and ratio > 0):
        return belief, False
    off = math.log(ratio / belief.scale)
    rounds = min(belief.rounds + 1, MEMORY)
    error = belief.error + (abs(off) - belief.error) / rounds
    if abs(off) <= math.log(change):
        return Belief(belief.scale * math.exp(off / rounds), rounds, None, error), False
    if belief.doubt is not None and abs(math.log(ratio / belief.doubt)) <= math.log(change):
        return Belief(math.sqrt(ratio * belief.doubt), 2), True
    return Belief(belief.scale, rounds, ratio, error), False


def reasons_to_profile(
    profile: DeviceProfile, now: Fingerprint | None, belief: Belief, noise: float = 0.0, tolerance: float = 1.5
) -> list[str]:
    """Why the device should be profiled again, each one sentence; empty while its profile can be trusted.

    A scale says that the device became another; times that keep missing what is believed, by more than three times what
    the device's ``noise`` (a deviation of logarithms) and the profile's own error explain, that the profile's shape is
    wrong.
    """
    reasons = profile.stale(now)
    if abs(math.log(belief.scale)) > math.log(tolerance):
        reasons.append(f"its update times are {belief.scale:.2f} times what the profile promises")
    own = float(profile.error.get("median", 0.0)) / MEDIAN
    explained = MEAN * math.hypot(noise, own)
    if belief.rounds >= SURE and belief.error > max(LEAST_ERROR, 3 * explained):
        reasons.append(
            f"its update times are off by {belief.error:.0%} a round, where its noise and the profile's error "
            f"explain {explained:.0%}"
        )
    return reasons
