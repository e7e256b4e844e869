"""Update time over retention: made-up curves, and the real ones of the built-in tasks."""

from __future__ import annotations

import functools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from edgeprune import tasks
from edgeprune.algorithms.rate_learner import Limits, Point, Scale, by_channels, next_retention, pooled
from edgeprune.fleet import LatencyTable
from edgeprune.pruning import ChannelGraph
from edgeprune.pruning.axes import local_size

LIMITS = Limits(alpha=1.0, rho_max=0.5, rho_min=0.005, gamma_min=0.05, band=0.03)

# The global ranking that ten unpruned rounds gave (IID, seed 0): the group of each channel, best first, run by run.
RANKINGS = {
    "digits": (
        "a2b2c67b2c23b1c11a1c13b1c41b1c10b1c8a1c3b1c9b1c1a1c5a1c2b1c1b1c6a1c12b1c4b1c15a1c3b1c1a1b1c3b1c1a1c2"
        "a1c1a1c1a1c2a1b1c1a1c1b2a1b1a1b2a2b1a1c1a1c1b1a1c1b1c1b3a1c3b1c1a1b3a1b4a1c1b6a1b1a1b7a1b3a1b10a4b4a"
        "2b6a1b1a1b3a1b5a2b6a1b2a2b2a1b1a1b3a2b3a1b3a2b11a1b2a1b2a2b3a1b1a1b2a3b2a1b2a3"
    ),
    "fashion-cnn": (
        "a2b2c2a2b1a2b10a3b2a1b4a3b11a1b3a1b1a1c1b1a1b3a1b1c5a1b3c2b1c2a1c1b4a1c2b1c1a1b1c5b1a2c7a1c1b2c3b1c1"
        "0a1c4b1c5b2c11b1c3b1c9a1c7b1c1b1c1b1c7b1a1c5a1c7b1c5a1c4b1c62a1c6a1c13"
    ),
}
STEPS = {"digits": 5, "fashion-cnn": 4}  # of one local epoch of a tenth of the data


@dataclass(frozen=True)
class Curve:
    """``time(count)``: share of the unpruned update time when ``count`` channels are kept; 1 at all of them."""

    scale: Scale
    time: Callable[[int], float]

    def best(self, target: float) -> float:
        """The time nearest ``target`` (by ratio) that any number of channels gives."""
        times = (self.time(count) for count in range(self.scale.least, self.scale.channels + 1))
        return min(times, key=lambda time: abs(math.log(time / target)))


def staircase(channels: int = 200) -> Curve:
    """Flat stretches, then cliffs of three channels that are worth half of the time left."""
    cliffs = [int(channels * place) for place in (0.85, 0.6, 0.45, 0.2)]

    def time(count: int) -> float:
        passed = sum(min(3, max(0, cliff - count)) / 3 for cliff in cliffs)
        return 0.5**passed * (0.9 + 0.1 * count / channels)

    return Curve(by_channels(channels), time)


@functools.cache
def real(task: str, by: str = "work") -> Curve:
    """The built-in task's shipped step times along its real ranking, on a link of 100 Mbit/s."""
    made = tasks.get(task)
    graph = ChannelGraph.trace(made.make_model(), made.example_inputs())
    names = list(graph.map.groups)
    order = [
        names["abc".index(group)]
        for group, length in re.findall(r"([abc])([0-9]+)", RANKINGS[task])
        for _ in range(int(length))
    ]
    held: dict[str, int] = dict.fromkeys(names, 0)
    macs, megabits = [], []
    for group in order:
        held[group] += 1
        macs.append(graph.macs(held))
        megabits.append(32e-6 * sum(local_size(axes, held) for axes in graph.map.tensors.values()))
    table = LatencyTable.from_json(
        json.loads(resources.files("edgeprune.fleet").joinpath(f"tables/{task}.json").read_text())
    )
    seconds = [STEPS[task] * table.step_s(m) + 2 * b / 100 for m, b in zip(macs, megabits, strict=True)]
    sizes = Scale(len(order), 6, lambda count: macs[count - 1] / macs[-1])
    scale = sizes if by == "work" else by_channels(len(order), 6)
    return Curve(scale, lambda count: seconds[count - 1] / seconds[-1])


def equalise(
    curve: Curve,
    sigma: float,
    stages: int,
    noise: float = 0.0,
    seed: int = 1,
    limits: Limits = LIMITS,
) -> list[tuple[float, float]]:
    """(retention, true update time) of each stage of one worker ``sigma`` times slower than the target of 1 s."""
    rng = random.Random(seed)
    points: tuple[Point, ...] = ()
    gamma, history = 1.0, []
    for _ in range(stages):
        true = sigma * curve.time(curve.scale.count(gamma))
        history.append((gamma, true))
        seen = sum(true * math.exp(rng.gauss(0, noise)) for _ in range(10)) / 10
        points = pooled(points, Point(gamma, seen, 10))
        here = next(p for p in points if p.gamma == gamma)
        gamma = next_retention(points, here, 1.0, limits, curve.scale)
    return history
