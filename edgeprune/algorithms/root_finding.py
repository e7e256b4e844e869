"""The size of a model at which its update time meets a target, from the few (size, time) pairs measured so far.

A bracketed root search for an expensive, noisy, rising function: each evaluation costs rounds of training. Newton's
divided differences as AdaptCL has them, with the two safeguards that interpolation needs on curves with steps:
Newton's parabola counts only where it agrees with the secant, and a search that creeps along one end of its bracket is
sped up by the Pegasus rule (Dowell and Jarratt, 1972).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

AGREE = 0.25  # of the bracket's width: how far Newton's step may be from the secant's
STALLED = 0.25  # a step that leaves more than this share of the distance to the target was a poor one
LEAST_BASE = 0.03  # times closer than this give no slope


class Sample(NamedTuple):
    """A model of ``size`` (share of the whole, > 0) takes ``time`` (s)."""

    size: float
    time: float


def bracket(samples: Sequence[Sample], current: Sample, target: float) -> tuple[Sample, Sample] | None:
    """The samples around ``target``: (faster, slower), or None if all are on one side.

    Where noise made some contradict each other, the two nearest to ``current`` count, so that a model which is too slow
    is never widened.
    """
    known = consistent(samples, current)
    faster = [s for s in known if s.time <= target]
    slower = [s for s in known if s.time > target]
    if not faster or not slower:
        return None
    if current.time > target:
        low = max(faster, key=lambda s: s.size)
        return low, min((s for s in slower if s.size > low.size), key=lambda s: s.size)
    high = min(slower, key=lambda s: s.size)
    return max((s for s in faster if s.size < high.size), key=lambda s: s.size), high


def consistent(samples: Sequence[Sample], current: Sample) -> list[Sample]:
    """``current`` and the samples that do not contradict it: larger is slower."""
    return [current] + [
        s for s in samples if s.size != current.size and (s.size > current.size) == (s.time > current.time)
    ]


def inside(samples: Sequence[Sample], low: Sample, high: Sample, target: float) -> float:
    """The size to try between ``low`` (faster than ``target``) and ``high`` (slower)."""
    near, far = sorted((low, high), key=lambda s: abs(math.log(s.time / target)))
    side = sorted((s for s in samples if (s.time > target) == (near.time > target)), key=lambda s: abs(s.time - target))
    gap, rest = near.time - target, far.time - target
    before = abs(side[1].time - target) if len(side) > 1 else math.inf
    if abs(gap) > STALLED * before:
        rest *= before / (before + abs(gap))  # Pegasus: the far end counts less, so the step grows
        return near.size + (far.size - near.size) * gap / (gap - rest)
    secant = near.size + (far.size - near.size) * gap / (gap - rest)
    beyond = [
        s for s in samples if (s.size < low.size and s.time < low.time) or (s.size > high.size and s.time > high.time)
    ]
    if not beyond:
        return secant
    third = min(beyond, key=lambda s: abs(math.log(s.time / target)))
    newton = secant + _second_difference(low, high, third) * (target - low.time) * (target - high.time)
    return (
        newton if abs(newton - secant) <= AGREE * (high.size - low.size) and low.size < newton < high.size else secant
    )


def outside(samples: Sequence[Sample], current: Sample, target: float, alpha: float) -> float:
    """The size to try when all samples are on one side of ``target``.

    The secant, on a base at least as long as the step beyond it: two nearly equal times say nothing of what is far
    from them. Without a second sample in proportion, size (1 - alpha (time - target) / time).
    """
    known = consistent(samples, current)
    near = min(known, key=lambda s: abs(math.log(s.time / target)))
    others = [s for s in known if s.size != near.size and (s.size > near.size) == (s.time > near.time)]
    others.sort(key=lambda s: abs(math.log(s.time / near.time)))
    others = [s for s in others if abs(math.log(s.time / near.time)) > LEAST_BASE]
    if not others:
        return current.size * (1 - alpha * (current.time - target) / current.time)
    step = abs(math.log(target / near.time))
    base = next((s for s in others if abs(math.log(s.time / near.time)) >= step), others[-1])
    return near.size + (base.size - near.size) * (target - near.time) / (base.time - near.time)


def _second_difference(a: Sample, b: Sample, c: Sample) -> float:
    """Newton's second divided difference of size over time."""
    first = (b.size - a.size) / (b.time - a.time)
    return ((c.size - b.size) / (c.time - b.time) - first) / (c.time - a.time)
