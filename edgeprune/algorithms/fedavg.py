"""Synchronous federated averaging (McMahan et al., 2017): the baseline every time and byte is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgeprune.algorithms.averaging import MergeRule, average, check_averaging
from edgeprune.algorithms.protocol import Assignment, Recipe, Setting, State, Update
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.surgery import extract_state


@dataclass(frozen=True)
class FedAvg:
    """Every client trains the whole model; the server takes the mean weighted by samples.

    A recipe field of 0 keeps the task's own value. ``merge_rule``, ``trim`` and ``clip_norm``: averaging.py.
    """

    epochs: int = 1
    batch_size: int = 0
    lr: float = 0.0
    calibrate: int = 0
    merge_rule: MergeRule = "mean"
    trim: float = 0.1
    clip_norm: float = 0.0

    name: ClassVar[str] = "fedavg"
    barrier: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        check_averaging(self.merge_rule, self.trim, self.clip_norm)

    def recipe(self, task_recipe: Recipe) -> Recipe:
        """The task's recipe with this algorithm's own values."""
        return override(task_recipe, self.epochs, self.batch_size, self.lr)

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody holds everything."""
        full = SubmodelPlan.full(setting.graph)
        return State(0, model, dict.fromkeys(setting.clients, full))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """The global model to every client."""
        return assign_plans(setting, state)

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """w = sum_c n_c w_c / sum_c n_c."""
        model = average(state.model, updates, rule=self.merge_rule, trim=self.trim, clip_norm=self.clip_norm)
        return replace(state, round=state.round + 1, model=model)


def override(recipe: Recipe, epochs: int, batch_size: int, lr: float) -> Recipe:
    """``recipe`` with every non-zero value put in its place."""
    return replace(
        recipe,
        epochs=epochs or recipe.epochs,
        batch_size=batch_size or recipe.batch_size,
        lr=lr or recipe.lr,
    )


def assign_plans(setting: Setting, state: State) -> list[Assignment]:
    """One assignment for each client, its weights cut out of the global model by its plan (once per distinct plan)."""
    cut: dict[str, dict[str, Tensor]] = {}
    assignments = []
    for client in setting.clients:
        plan = state.plans[client]
        if plan.id not in cut:
            cut[plan.id] = extract_state(state.model, plan)
        assignments.append(Assignment(client, plan, cut[plan.id], setting.recipe))
    return assignments
