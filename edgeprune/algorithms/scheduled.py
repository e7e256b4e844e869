"""AdaptCL whose first assignment comes from measured profiles instead of ten unpruned rounds.

    round 1      fleet.scheduler: the largest nested sub-model of each client that meets the goal by its own profile
    each round   scale_w <- scale_w (phi_w / expected_w)^(1/n): the profile's promise, corrected by what was observed
    a change     two rounds in a row off by more than ``change``: believed at once, everybody is scheduled anew
    a profile    measured anew (the run was stopped and resumed): what was learnt of the old one is forgotten
    every PI     scheduled anew with the corrected times; at the first such stage channels are ranked by what was learnt

``correct = "learner"`` leaves all that follows the first assignment to AdaptCL's rate learner, within the devices'
memory. It lets nobody sit out, so a device that would have to is refused.
The merge, the ranking and the recipe are AdaptCL's (adaptcl.py). Ours, not the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from edgeprune.algorithms import adaptcl
from edgeprune.algorithms.adaptcl import AdaptCL, Worker
from edgeprune.algorithms.protocol import Assignment, Setting, State, Update
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import ProfileTimes
from edgeprune.fleet.correction import Belief, reasons_to_profile, updated
from edgeprune.fleet.reports import Report, Rung, ladder
from edgeprune.fleet.scheduler import Decision, Goal, Objective, fits, schedule, target_s
from edgeprune.pruning import Ranking, SubmodelPlan, ranking
from edgeprune.pruning import importance as channel_importance


@dataclass(frozen=True)
class Scheduled(AdaptCL):
    """AdaptCL's fields, and the goal's (fleet/scheduler.py). ``rerank``: rank channels anew at the first stage, by the
    trained scales; before it they are ranked by their initial weights.

    ``first_margin``: the margin of the first assignment for equal times. Nothing has been observed then, and what errs
    most, the profiles, errs for the fastest client as for the others: being ahead of it is as likely to part them.
    """

    objective: Objective = "equal"
    deadline_s: float = 0.0
    least_work: float = 0.25
    margin: float = 1.0
    first_margin: float = 0.0
    fill_work: float = 0.75
    correct: Literal["profile", "learner"] = "profile"
    rerank: bool = True

    name: ClassVar[str] = "scheduled"
    needs_reports: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correct not in ("profile", "learner"):
            raise EdgePruneError(f"algorithm.correct is {self.correct!r}; it is 'profile' or 'learner'")
        if self.deadline_s < 0 or (self.objective == "deadline" and not self.deadline_s):
            raise EdgePruneError(
                f"algorithm.deadline_s is {self.deadline_s}; the objective 'deadline' needs a round's length in "
                "seconds, more than 0"
            )
        if not 0 <= self.first_margin < math.inf:
            raise EdgePruneError(f"algorithm.first_margin is {self.first_margin}; give 0 or more deviations")
        self.goal()

    def first_goal(self) -> Goal:
        """What the first assignment is made for. The learner knows nothing of steps: it may not count on fewer."""
        goal = self.goal()
        if goal.objective == "equal":
            goal = replace(goal, margin=self.first_margin)
        return goal if self.correct == "profile" else replace(goal, fill_work=1.0)

    def goal(self) -> Goal:
        """What is scheduled for."""
        return Goal(
            self.objective, self.deadline_s or math.inf, self.least_work, self.margin, self.band, self.fill_work
        )

    # --- server -------------------------------------------------------------------------------------------------

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody its part from the first round on."""
        order = initial_ranking(setting, model, self.min_channels)
        rungs = ladder(setting.graph, order, self.gamma_min)
        decisions = schedule(_reports(setting), rungs, self.first_goal())
        if self.correct == "learner":
            return self._for_the_learner(setting, model, order, rungs, decisions)
        if not any(decision.rung for decision in decisions.values()):
            first = next(iter(decisions.values()))
            raise EdgePruneError(
                f"scheduler: nobody can take part; {first.client!r} {first.why}; give a longer deadline or wider limits"
            )
        beliefs = {client: Belief() for client in setting.clients}
        plans = {client: plan_of(setting, order, decisions[client].rung) for client in setting.clients}
        return State(0, model, plans, self._memory(setting, order, False, beliefs, decisions))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Each client that takes part its sub-model, with as many steps as were decided."""
        assignments = super().assign(setting, state)
        if self.correct == "learner":
            return assignments
        decided, full = state.memory["decided"], {report.name: report.steps for report in _reports(setting)}
        return [
            replace(a, recipe=replace(a.recipe, steps=steps if steps < full[a.client] else 0))
            for a in assignments
            if (steps := int(decided[a.client]["steps"])) > 0
        ]

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Average, correct the profiles by the times, and schedule anew at a stage or after a change."""
        if self.correct == "learner":
            return super().merge(setting, state, updates)
        order = Ranking.from_json(state.memory["ranking"], setting.graph)
        beliefs, changed = self._observed(setting, state.memory, updates)
        state = replace(state, round=state.round + 1, model=self._average(state.model, updates))
        stage = state.round % self.interval == 0
        if not (stage or changed):
            memory = {**state.memory, "beliefs": {name: _as_json(belief) for name, belief in beliefs.items()}}
            return replace(state, memory=memory)
        ranked = bool(state.memory["reranked"])
        if stage and self.rerank and not ranked:
            order, ranked = self._trained_ranking(setting, state.model), True
        rungs = ladder(setting.graph, order, self.gamma_min)
        reports = [replace(report, scale=beliefs[report.name].scale) for report in _reports(setting)]
        present = {name: float(said["retention"]) for name, said in state.memory["decided"].items()}
        decisions = schedule(reports, rungs, self.goal(), present)
        plans = {client: plan_of(setting, order, decisions[client].rung) for client in setting.clients}
        return replace(state, plans=plans, memory=self._memory(setting, order, ranked, beliefs, decisions))

    def within_limits(self, setting: Setting, workers: Mapping[str, Worker], frozen: Ranking) -> dict[str, Worker]:
        """What the rate learner asks for, or the largest retention that fits the device's memory."""
        limited = [report for report in _reports(setting) if report.memory_bytes < math.inf]
        rungs = ladder(setting.graph, frozen, self.gamma_min) if limited else []
        within = dict(workers)
        for report in limited:
            most = next((rung.retention for rung in rungs if fits(report, rung)), rungs[-1].retention)
            within[report.name] = replace(within[report.name], gamma=min(within[report.name].gamma, most))
        return within

    def facts(self, setting: Setting, state: State) -> dict[str, Any]:
        """Whom to profile again, and why: for the round's record."""
        if self.correct == "learner":
            return {}
        beliefs = {name: Belief(*value) for name, value in state.memory["beliefs"].items()}
        reasons = {
            report.name: reasons_to_profile(report.needs.profile, None, beliefs[report.name], report.noise)
            for report in _reports(setting)
            if isinstance(report.needs, ProfileTimes)
        }
        again = {name: found for name, found in reasons.items() if found}
        return {"profile_again": again} if again else {}

    # --- what the server remembers --------------------------------------------------------------------------------

    def _observed(
        self, setting: Setting, memory: Mapping[str, Any], updates: Sequence[Update]
    ) -> tuple[dict[str, Belief], bool]:
        """(beliefs after a round, whether anybody is another device than before or has another profile)."""
        beliefs = {name: Belief(*value) for name, value in memory["beliefs"].items()}
        anew = [report.name for report in _reports(setting) if memory["measured"][report.name] != report.measured]
        beliefs.update(dict.fromkeys(anew, Belief()))
        changed = bool(anew)
        for update in updates:
            if update.client in anew:
                continue  # its time belongs to the promise of a profile that is gone
            promised = memory["decided"][update.client]["promised_s"]
            if promised > 0:
                beliefs[update.client], now = updated(
                    beliefs[update.client], update.update_time_s / promised, self.change
                )
                changed = changed or now
        return beliefs, changed

    def _memory(
        self,
        setting: Setting,
        order: Ranking,
        reranked: bool,
        beliefs: Mapping[str, Belief],
        decisions: Mapping[str, Decision],
    ) -> dict[str, Any]:
        return {
            "measured": {report.name: report.measured for report in _reports(setting)},
            "ranking": order.to_json(),
            "reranked": reranked,
            "beliefs": {name: _as_json(belief) for name, belief in beliefs.items()},
            "decided": {
                name: {
                    "retention": decision.rung.retention if decision.rung else 0.0,
                    "steps": decision.steps,
                    # What the profile alone promises: the belief at the time of the decision taken out again.
                    "promised_s": decision.update_time_s / beliefs[name].scale,
                    "why": decision.why,
                }
                for name, decision in decisions.items()
            },
        }

    def _trained_ranking(self, setting: Setting, model: Mapping[str, Tensor]) -> Ranking:
        scores = channel_importance.scores(model, setting.graph, how=self.importance)
        return ranking(setting.graph, scores, self.min_channels, normalise=self.importance != "bn")

    def _for_the_learner(
        self,
        setting: Setting,
        model: dict[str, Tensor],
        order: Ranking,
        rungs: Sequence[Rung],
        decisions: Mapping[str, Decision],
    ) -> State:
        """AdaptCL's own memory, as if its first stage had ended in this assignment."""
        reports = {report.name: report for report in _reports(setting)}
        for client in setting.clients:
            if decisions[client].rung is None:
                raise EdgePruneError(
                    f"scheduler: {client!r} {decisions[client].why}, and AdaptCL's learner leaves nobody out; use "
                    "algorithm.correct = 'profile'"
                )
        chosen = {client: rung for client in setting.clients if (rung := decisions[client].rung)}
        workers = {
            client: Worker(rung.retention, unpruned=reports[client].update_time_s(rungs[0]))
            for client, rung in chosen.items()
        }
        plans = {client: plan_of(setting, order, rung) for client, rung in chosen.items()}
        target = target_s(list(reports.values()), rungs, Goal())
        return State(0, model, plans, adaptcl._to_memory(workers, target, order.to_json()))


def initial_ranking(setting: Setting, model: Mapping[str, Tensor], min_channels: int) -> Ranking:
    """By the norm of the initial weights, relative to their layer's mean: scales have not been trained yet."""
    scores = channel_importance.scores(model, setting.graph, how="l2")
    return ranking(setting.graph, scores, min_channels)


def plan_of(setting: Setting, order: Ranking, rung: Rung | None) -> SubmodelPlan:
    """The sub-model of a rung; the whole model for a client that sits out (it is sent nothing)."""
    if rung is None or rung.retention >= 1:
        return SubmodelPlan.full(setting.graph)
    return order.plan(rung.retention)


def _reports(setting: Setting) -> tuple[Report, ...]:
    return setting.every_report(Scheduled.name)


def _as_json(belief: Belief) -> list[float | int | None]:
    return [belief.scale, belief.rounds, belief.doubt, belief.error]
