"""What an algorithm is: a small value with four methods, state in, state out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from edgeprune.fleet.reports import Report
from edgeprune.pruning import ChannelGraph, SubmodelPlan


@dataclass(frozen=True)
class Recipe:
    """How a device trains: plain SGD, fresh every round. ``bn_l1`` is the L1 penalty on batch-norm scales; ``steps``:
    at most so many optimiser steps a round, 0 for all of the epochs'.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    bn_l1: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Setting:
    """What stays the same during a run: who takes part, with how many samples, and the model's channel graph.

    ``reports``: what the scheduler knows of every client from its profile, for the algorithms that ask for it.
    """

    graph: ChannelGraph
    clients: tuple[str, ...]
    samples: Mapping[str, int]
    recipe: Recipe
    rounds: int
    reports: tuple[Report, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """What one client gets for a round: its plan, the weights of its sub-model, and how to train them."""

    client: str
    plan: SubmodelPlan
    state: Mapping[str, Tensor]
    recipe: Recipe


@dataclass(frozen=True)
class Update:
    """What it returned, once accepted. ``update_time_s`` is what the server measured from send to receipt."""

    client: str
    plan: SubmodelPlan
    state: Mapping[str, Tensor]
    samples: int
    loss: float
    update_time_s: float


@dataclass(frozen=True)
class State:
    """The server between two rounds: global weights, each client's plan, and the algorithm's own JSON-able memory."""

    round: int
    model: dict[str, Tensor]
    plans: Mapping[str, SubmodelPlan]
    memory: Mapping[str, Any] = field(default_factory=dict)


class Algorithm(Protocol):
    """One published system. Implementations are frozen dataclasses whose fields are their configuration.

    The engine calls ``init`` once, then per round ``assign`` (server), ``train`` (device) and ``merge`` (server).
    ``barrier`` says for whom a round waits: ``"all"`` is every client that was asked. ``calibrate``: passes over
    the devices' data in which batch-norm statistics are measured anew before the global model is used (calibration.py).
    """

    name: ClassVar[str]
    barrier: ClassVar[str]

    @property
    def calibrate(self) -> int: ...

    def recipe(self, task_recipe: Recipe) -> Recipe:
        """The local recipe: the task's own, where the algorithm's fields do not say otherwise."""
        ...

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """The state before the first round."""
        ...

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Who trains what in the round after ``state.round``."""
        ...

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """The state after the round, from the accepted updates in the order of ``setting.clients``."""
        ...
