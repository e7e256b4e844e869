"""AdaptCL (arXiv 2106.14126): every worker's sub-model shrinks until all update times meet the fastest's.

    phi_w      update time of worker w, from send to receipt (download + local work + upload)
    gamma_w    its retention: the share of channels it keeps, 1 at the start
    phi*       the fastest worker's *unpruned* update time

    size_w     its multiply-adds (or, as in the paper, its channels) as a share of the whole model's

    every PI rounds, for each worker:   gamma_w <- next_retention(points of w, phi*)
    first stage                         size (1 - alpha (phi_w - phi*) / phi_w)
    later stages                        Newton's interpolation of size over phi, at phi*
    kept channels                       the first gamma_w share of one ranking that is constant (frozen at the first
                                        pruning), identical for all workers and global over layers: by the magnitude
                                        of the batch-norm scale, trained with an L1 penalty. Sub-models are nested.
    merge by unit                       w[i] = sum of n_c w_c[i] over the holders of i / sum of their n_c

Reconstructed from the abstract and from descriptions; docs/algorithms/adaptcl.md names what was filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from edgeprune.algorithms import rate_learner
from edgeprune.algorithms.averaging import MergeRule, average, check_averaging, summing
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import ClientSide, assign_plans, check_least_zero
from edgeprune.algorithms.protocol import Assignment, Recipe, Setting, State, Update
from edgeprune.algorithms.rate_learner import Limits, Point, Scale
from edgeprune.algorithms.running_mean import Summing
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning import importance as channel_importance
from edgeprune.pruning.merge_gate import MergeMode
from edgeprune.pruning.plan import Ranking, ranking

SizeBy = Literal["work", "channels"]
IMPORTANCES = ("bn", "l1", "l2")  # those that need no data


@dataclass(frozen=True)
class Worker:
    """What the server has learnt of one worker."""

    gamma: float = 1.0
    points: tuple[Point, ...] = ()
    unpruned: float = math.nan  # its update time with the whole model, as measured, then as inferred after a change
    times: tuple[float, ...] = ()  # of the rounds since the last stage


@dataclass(frozen=True)
class AdaptCL(ClientSide):
    """Fields are the paper's knobs; on the clients' side: clients.py.

    ``gamma_min`` is the accuracy/time knob; ``interval`` is PI; ``band`` the share within which a time counts as
    equal; ``change`` the ratio between two means of one worker's time that counts as a change of its capability.
    ``size_by`` is what the rate learner takes a model's size to be: ``"work"`` (multiply-adds) or ``"channels"``.
    ``merge_by`` is ``"unit"``, ``"worker"`` or ``"delta"`` (pruning/merging.py); ``merge_rule``, ``trim`` and
    ``clip_norm``: averaging.py. ``importance`` ranks channels: ``"bn"``, ``"l1"``, ``"l2"``. ``calibrate``: passes of
    batch-norm calibration before the model is used.
    """

    interval: int = 10
    alpha: float = 1.0
    rho_max: float = 0.5
    rho_min: float = 0.005
    gamma_min: float = 0.05
    band: float = 0.03
    change: float = 1.3
    bn_l1: float = 1e-4
    importance: str = "bn"
    min_channels: int = 2
    size_by: SizeBy = "work"
    merge_by: MergeMode = "unit"
    merge_rule: MergeRule = "mean"
    trim: float = 0.1
    clip_norm: float = 0.0
    calibrate: int = 3

    name: ClassVar[str] = "adaptcl"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        check_least_zero(self, "alpha", "band", "bn_l1")
        if self.min_channels < 1:
            raise EdgePruneError(f"algorithm.min_channels is {self.min_channels}; a layer keeps 1 or more")
        if self.importance not in IMPORTANCES:
            raise EdgePruneError(f"algorithm.importance is {self.importance!r}{nearest(self.importance, IMPORTANCES)}")
        if self.interval < 1:
            raise EdgePruneError(f"algorithm.interval is {self.interval}; give a number of rounds, 1 or more")
        if not 0 < self.gamma_min <= 1:
            raise EdgePruneError(f"algorithm.gamma_min is {self.gamma_min}; it is a share of channels, in (0, 1]")
        if not (0 < self.rho_max <= 1 and 0 <= self.rho_min < self.rho_max):
            raise EdgePruneError(
                f"algorithm.rho_min {self.rho_min} and rho_max {self.rho_max} must satisfy 0 <= rho_min < rho_max <= 1"
            )
        if self.merge_by not in get_args(MergeMode):
            hint = nearest(self.merge_by, get_args(MergeMode))
            raise EdgePruneError(f"algorithm.merge_by is {self.merge_by!r}{hint}")
        check_averaging(self.merge_rule, self.trim, self.clip_norm)
        if self.size_by not in get_args(SizeBy):
            raise EdgePruneError(f"algorithm.size_by is {self.size_by!r}{nearest(self.size_by, get_args(SizeBy))}")
        if not self.change > 1:
            raise EdgePruneError(f"algorithm.change is {self.change}; it is a ratio greater than 1")

    # --- server -------------------------------------------------------------------------------------------------

    def recipe(self, task_recipe: Recipe) -> Recipe:
        """The task's recipe, with the L1 penalty on batch-norm scales that makes them rank channels."""
        return replace(super().recipe(task_recipe), bn_l1=self.bn_l1)

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody starts with the whole model: nothing is known of anybody."""
        full = SubmodelPlan.full(setting.graph)
        workers = {client: Worker() for client in setting.clients}
        return State(0, model, dict.fromkeys(setting.clients, full), _to_memory(workers, math.nan, None))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Each worker of the round its sub-model."""
        return assign_plans(setting, state, self.participants(setting, state.round), self.job())

    def summing(self, setting: Setting, state: State) -> Summing | None:
        """The mean is all that a merge needs."""
        return summing(self.merge_rule, self.merge_by, self.clip_norm)

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Average, remember the times, and every ``interval`` rounds set new retentions."""
        workers, target, order = _from_memory(state.memory)
        for update in updates:
            worker = workers[update.client]
            workers[update.client] = replace(worker, times=(*worker.times, update.update_time_s))
        state = replace(state, round=state.round + 1, model=self._average(state.model, updates))
        if state.round % self.interval:
            return replace(state, memory=_to_memory(workers, target, order))
        frozen = self.rank(setting.graph, state.model) if order is None else Ranking.from_json(order, setting.graph)
        workers, target = self.learn(workers, target, scale(setting.graph, frozen, self.size_by))
        workers = self.within_limits(setting, workers, frozen)
        plans = self._plans(setting, state.plans, workers, frozen)
        return replace(state, plans=plans, memory=_to_memory(workers, target, frozen.to_json()))

    def rank(self, graph: ChannelGraph, model: Mapping[str, Tensor]) -> Ranking:
        """The one ranking of the run, from the model at the first stage."""
        scores = channel_importance.scores(model, graph, how=self.importance)
        # Batch-norm scales compare across layers as they are; norms only relative to their layer's mean.
        return ranking(graph, scores, self.min_channels, normalise=self.importance != "bn")

    def within_limits(self, setting: Setting, workers: Mapping[str, Worker], frozen: Ranking) -> dict[str, Worker]:
        """``workers`` with no retention that its device cannot hold; here nothing is known of devices."""
        return dict(workers)

    def _average(self, model: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
        return average(model, updates, self.merge_by, rule=self.merge_rule, trim=self.trim, clip_norm=self.clip_norm)

    # --- pruned-rate learning -----------------------------------------------------------------------------------

    def learn(self, workers: Mapping[str, Worker], target: float, sizes: Scale) -> tuple[dict[str, Worker], float]:
        """New retentions from the times of one interval: (workers, phi*). ``sizes``: what a retention amounts to.

        phi* is set once, from the fastest worker's unpruned time over the first interval, and set anew only when a
        change of somebody's capability was detected, or somebody faster is heard of for the first time. A current
        minimum in its place would ratchet everybody down.
        """
        observed = {name: self._observe(worker) for name, worker in workers.items()}
        changed = any(was_changed for _, was_changed in observed.values())
        learnt = {name: worker for name, (worker, _) in observed.items()}
        known = {name: worker.unpruned for name, worker in learnt.items() if not math.isnan(worker.unpruned)}
        if known and (changed or math.isnan(target)):
            target = min(known.values())
        target = min([target, *(phi for name, phi in known.items() if math.isnan(workers[name].unpruned))])
        if math.isnan(target):
            return learnt, target
        limits = Limits(self.alpha, self.rho_max, self.rho_min, self.gamma_min, self.band)
        for name, worker in learnt.items():
            here = next((point for point in worker.points if point.gamma == worker.gamma), None)
            if here is not None:
                gamma = rate_learner.next_retention(worker.points, here, target, limits, sizes)
                learnt[name] = replace(worker, gamma=gamma)
        return learnt, target

    def _observe(self, worker: Worker) -> tuple[Worker, bool]:
        """One interval's times turned into a point of the worker's curve: (worker, its capability changed)."""
        if not worker.times:
            return worker, False
        factor, times = rate_learner.split_at_change(worker.times, self.change)
        here = next((point for point in worker.points if point.gamma == worker.gamma), None)
        if factor == 1.0 and here is not None:
            ratio = rate_learner.mean(times) / here.phi
            if abs(math.log(ratio)) > math.log(self.change):
                factor = ratio
        points = rate_learner.rescaled(worker.points, factor) if factor != 1.0 else worker.points
        points = rate_learner.pooled(points, Point(worker.gamma, rate_learner.mean(times), len(times)))
        unpruned = worker.unpruned * factor
        if worker.gamma == 1.0:
            unpruned = next(point.phi for point in points if point.gamma == 1.0)
        return replace(worker, points=points, unpruned=unpruned, times=()), factor != 1.0

    def _plans(
        self, setting: Setting, plans: Mapping[str, SubmodelPlan], workers: Mapping[str, Worker], frozen: Ranking
    ) -> dict[str, SubmodelPlan]:
        """Each worker's plan: the first gamma share of the frozen ranking; the whole model at gamma = 1."""
        made: dict[float, SubmodelPlan] = {1.0: SubmodelPlan.full(setting.graph)}
        for worker in workers.values():
            if worker.gamma not in made:
                made[worker.gamma] = frozen.plan(worker.gamma)
        return {client: made[workers[client].gamma] for client in plans}


def scale(graph: ChannelGraph, frozen: Ranking, by: SizeBy) -> Scale:
    """What a retention of ``frozen`` amounts to: multiply-adds follow the time of a step, channels do not (two of a
    hundred channels may be half of the work)."""
    total = frozen.map.total
    whole = graph.macs(frozen.counts(total))
    if by == "channels" or not whole:
        return rate_learner.by_channels(total, frozen.floor)
    known: dict[int, float] = {}

    def work(count: int) -> float:
        if count not in known:
            known[count] = graph.macs(frozen.counts(count)) / whole
        return known[count]

    return Scale(total, frozen.floor, work)


def _to_memory(workers: Mapping[str, Worker], target: float, order: Any) -> dict[str, Any]:
    return {
        "target_s": None if math.isnan(target) else target,
        "ranking": order,
        "workers": {
            name: {
                "gamma": worker.gamma,
                "points": [[point.gamma, point.phi, point.rounds] for point in worker.points],
                "unpruned_s": None if math.isnan(worker.unpruned) else worker.unpruned,
                "times": list(worker.times),
            }
            for name, worker in workers.items()
        },
    }


def _from_memory(memory: Mapping[str, Any]) -> tuple[dict[str, Worker], float, Any]:
    workers = {
        name: Worker(
            value["gamma"],
            tuple(Point(*point) for point in value["points"]),
            math.nan if value["unpruned_s"] is None else value["unpruned_s"],
            tuple(value["times"]),
        )
        for name, value in memory["workers"].items()
    }
    return workers, math.nan if memory["target_s"] is None else memory["target_s"], memory["ranking"]
