"""Which share of depth and width each client holds: dealt from a table, or by what its measured profile says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from edgeprune.algorithms.mask_learning import cut
from edgeprune.algorithms.protocol import Setting
from edgeprune.fleet.reports import Rung
from edgeprune.fleet.scheduler import Decision, Goal, Objective, schedule
from edgeprune.fleet.size import size_of
from edgeprune.pruning import ChannelGraph, SubmodelPlan

AFTER = "after "  # blocks behind an exit (pruning/depth.py)
STEP = 0.05


def dealt(rates: Sequence[float], clients: Sequence[str]) -> dict[str, float]:
    """The table's rates over the fleet, in its order, as evenly as they go."""
    return {client: rates[at * len(rates) // len(clients)] for at, client in enumerate(clients)}


def by_profile(setting: Setting, least: float, deep: bool, deadline_s: float, algorithm: str) -> dict[str, Decision]:
    """For each client the largest rate, in steps of .05 down to ``least``, with which it is expected within
    ``deadline_s`` (infinite: within the time that the fastest needs for the whole model) and its memory.

    ``rung.retention`` of a decision is the rate; no rung: not even ``least`` will do. Raises EdgePruneError where a
    client has no profile.
    """
    kind: Objective = "equal" if deadline_s == math.inf else "deadline"
    goal = Goal(kind, deadline_s, least_work=1.0, fill_work=1.0)  # a client trains all of its epochs or not at all
    return schedule(setting.every_report(algorithm), rungs(setting.graph, least, deep), goal)


def rungs(graph: ChannelGraph, least: float, deep: bool) -> list[Rung]:
    """The sizes at each rate, the largest first. Which channels they are does not matter for that."""
    scores = {name: -torch.arange(size) for name, size in graph.map.groups.items()}
    found = []
    for i in range(math.floor((1 - least) / STEP + 1e-9) + 1):
        rate = round(1 - i * STEP, 4)
        whole = depth_plan(graph, rate) if deep else SubmodelPlan.full(graph)
        plan = cut(graph, scores, rate, whole) if rate < 1 else whole
        found.append(Rung.of(rate, size_of(graph, plan.counts, plan.dropped)))
    return found


def depth_plan(graph: ChannelGraph, rate: float) -> SubmodelPlan:
    """The first floor(rate * parts) parts of a network that its exits cut into parts, at least one, at full width."""
    exits = [name for name in graph.blocks if name.startswith(AFTER)]
    held = max(1, math.floor(rate * (len(exits) + 1) + 1e-9))
    full = SubmodelPlan.full(graph)
    return full if held > len(exits) else full.drop(exits[held - 1])
