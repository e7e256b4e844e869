"""What averaging algorithms share on the clients' side: who takes part, how they train, and how they answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from edgeprune.algorithms.protocol import Assignment, Job, Recipe, Setting, State
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.surgery import extract_state

MOST = 1e30  # of what weights and gradients, which are float32, are multiplied by

UploadType = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ClientSide:
    """A recipe field of 0 (``momentum`` and ``weight_decay``: below 0) keeps the task's own value.

    - ``sample``: clients a round, drawn without replacement (``replacement``: with; who is drawn twice takes part
      once); 0 for all of them.
    - ``momentum``: the clients' own, of a fresh SGD every round. ``prox``: FedProx's mu; ``prox_detached`` and
      ``softmax`` are departures of FedDST's public code (protocol.Recipe).
    - ``upload``: the type in which values travel; int8 (one scale for 256 values) sends what training changed, for
      which 8 bits are enough. Batch-norm statistics, which are measured, go as they are. ``feedback``: what int8
      rounded away is added to the device's next change.
    """

    epochs: int = 1
    batch_size: int = 0
    lr: float = 0.0
    momentum: float = -1.0
    weight_decay: float = -1.0
    prox: float = 0.0
    prox_detached: bool = False
    softmax: bool = False
    sample: int = 0
    replacement: bool = False
    upload: UploadType = "fp32"
    feedback: bool = False

    def check_clients(self) -> None:
        """One sentence of EdgePruneError for a configuration that means nothing."""
        check_least_zero(self, "epochs", "batch_size", "lr", "sample", "calibrate")
        if not 0 <= self.prox <= MOST:
            raise EdgePruneError(f"algorithm.prox is {self.prox}; give FedProx's mu, 0 for none")
        if self.upload not in get_args(UploadType):
            raise EdgePruneError(f"algorithm.upload is {self.upload!r}{nearest(self.upload, get_args(UploadType))}")
        if not self.momentum < 1:
            raise EdgePruneError(f"algorithm.momentum is {self.momentum}; it must be below 1")

    def recipe(self, task_recipe: Recipe) -> Recipe:
        """The task's recipe with this algorithm's own values."""
        own = override(task_recipe, self.epochs, self.batch_size, self.lr)
        return replace(
            own,
            momentum=own.momentum if self.momentum < 0 else self.momentum,
            weight_decay=own.weight_decay if self.weight_decay < 0 else self.weight_decay,
            prox=self.prox,
            prox_detached=self.prox_detached,
            softmax=self.softmax,
        )

    def job(self) -> Job:
        """How the clients answer."""
        return Job(dtype=self.upload, change=self.upload == "int8" or self.feedback, feedback=self.feedback)

    def participants(self, setting: Setting, round_: int) -> list[str]:
        """Who takes part in the round after ``round_``, in the fleet's order: the same for every algorithm."""
        if not self.sample:
            return list(setting.clients)
        if self.sample > len(setting.clients):
            raise EdgePruneError(
                f"algorithm.sample is {self.sample}, the fleet has {len(setting.clients)} devices; give at most that"
            )
        rng = np.random.default_rng([setting.seed, round_, 0x5A3])
        drawn = rng.choice(len(setting.clients), self.sample, replace=self.replacement)
        return [setting.clients[i] for i in sorted(set(drawn.tolist()))]


@dataclass(frozen=True)
class WholeModel(ClientSide):
    """Every client trains the whole model."""

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody holds everything."""
        return State(0, model, dict.fromkeys(setting.clients, SubmodelPlan.full(setting.graph)))

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """The global model to whoever is idle."""
        return assign_plans(setting, state, self.participants(setting, state.round), self.job())


def check_least_zero(algorithm: object, *names: str) -> None:
    """Refuse a negative value of those of ``names`` that ``algorithm`` has, or one beyond what float32 holds."""
    for name in names:
        value = getattr(algorithm, name, 0)
        if not 0 <= value < math.inf:
            raise EdgePruneError(f"algorithm.{name} is {value}; give 0 or more")
        if value > MOST:
            raise EdgePruneError(f"algorithm.{name} is {value}; give {MOST:.0e} or less")


def override(recipe: Recipe, epochs: int, batch_size: int, lr: float) -> Recipe:
    """``recipe`` with every non-zero value put in its place."""
    return replace(
        recipe,
        epochs=epochs or recipe.epochs,
        batch_size=batch_size or recipe.batch_size,
        lr=lr or recipe.lr,
    )


def assign_plans(
    setting: Setting, state: State, clients: Sequence[str] | None = None, job: Job | None = None
) -> list[Assignment]:
    """An assignment for each of ``clients`` (None: all) who is not busy, its weights cut out of the global model by its
    plan (once per distinct plan)."""
    cut: dict[str, dict[str, Tensor]] = {}
    assignments = []
    for client in setting.clients if clients is None else clients:
        if client in state.busy:
            continue
        plan = state.plans[client]
        if plan.id not in cut:
            cut[plan.id] = extract_state(state.model, plan)
        assignments.append(Assignment(client, plan, cut[plan.id], setting.recipe, job=job or Job()))
    return assignments
