"""What an algorithm is: a small value with four methods, state in, state out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from edgeprune.algorithms.barrier import Barrier
from edgeprune.errors import EdgePruneError
from edgeprune.fleet.reports import Report
from edgeprune.nn.exits import Reduction
from edgeprune.pruning import ChannelGraph, SubmodelPlan


@dataclass(frozen=True)
class Recipe:
    """How a device trains: plain SGD, fresh every round. ``bn_l1`` is the L1 penalty on batch-norm scales; ``steps``:
    at most so many optimiser steps a round, 0 for all of the epochs'. ``prox``: FedProx's mu, the pull towards the
    weights received (``prox_detached``: computed without a gradient, so of no effect, as FedDST's public code has it).
    ``softmax``: the loss is given softmax outputs in place of logits (that code again).
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    bn_l1: float = 0.0
    steps: int = 0
    prox: float = 0.0
    prox_detached: bool = False
    softmax: bool = False


@dataclass(frozen=True)
class Job:
    """What a device does besides plain training, and how it answers. The default is: all weights, in float32.

    - ``dtype``: "fp32", "fp16" or "int8", how values travel. ``change``: not the weights but what training changed.
      ``density`` below 1: of that change the largest share only. ``feedback``: what was not sent, or rounded away, is
      kept and added to the next round's change.
    - under a mask, ``readjust``: after epoch ``after``, this share of each layer's kept weights is exchanged for
      others: the smallest against those with the largest gradient, over all of the device's data or
      (``growth_data`` "batch") its last mini-batch. ``grow_any``: weights that are kept already may be picked too, and
      are zeroed.
    - ``path``: "sparse" computes with kept weights only, "dense" fills in zeros, "auto" looks up what this machine does
      faster (ops/crossover.py), so its bits depend on the machine.
    - ``gradient``: the dense gradient of the masked weights at the end is sent as well.
    - ``propose`` above 0: train, then send no weights but which channels stay when this share of each group is dropped.
    - ``learn`` above 0: leave the weights as they are and learn a mask of this share of the channels on the own data
      (mask_learning.py, ``pull`` is its lambda); which channels stay is all that is sent.
    - ``transfer`` above 0: the deepest exit teaches the others (nn.exits.with_transfer).
    - ``gates`` above 0: beside the weights, which share of the channels the own data use most (adp.py).
    - ``threshold`` above 0: after each epoch smaller weights become zero (adp.py).
    """

    dtype: str = "fp32"
    change: bool = False
    density: float = 1.0
    feedback: bool = False
    readjust: float = 0.0
    after: int = 0
    growth_data: str = "all"
    grow_any: bool = False
    path: str = "sparse"
    gradient: bool = False
    propose: float = 0.0
    learn: float = 0.0
    pull: float = 1.0
    transfer: float = 0.0
    temperature: float = 3.0
    reduction: Reduction = "batchmean"
    gates: float = 0.0
    threshold: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What stays the same during a run: who takes part, with how many samples, and the model's channel graph.

    ``reports``: what the scheduler knows of every client from its profile, for the algorithms that ask for it.
    ``seed``: the run's; draws are hashes of it and the round. ``maskable``: the weights that can be trained under a
    mask.
    """

    graph: ChannelGraph
    clients: tuple[str, ...]
    samples: Mapping[str, int]
    recipe: Recipe
    rounds: int
    reports: tuple[Report, ...] = ()
    seed: int = 0
    maskable: tuple[str, ...] = ()

    def every_report(self, algorithm: str) -> tuple[Report, ...]:
        """``reports``. Raises :class:`EdgePruneError` where a client has none, which ``algorithm`` needs."""
        if {report.name for report in self.reports} != set(self.clients):
            raise EdgePruneError(
                f"algorithm {algorithm!r} needs a profile of every client; set fleet.latency to a file that "
                "'edgeprune profile' wrote (\"profile\": the one shipped for a built-in task), or give every "
                "[[fleet.device]] its own"
            )
        return self.reports


@dataclass(frozen=True)
class Assignment:
    """What one client gets for a round: its plan, the weights of its sub-model, and how to train them.

    ``masks``: of the tensors named, which weights there are: uint8 bitmaps (ops.packing). They travel with the weights.
    """

    client: str
    plan: SubmodelPlan
    state: Mapping[str, Tensor]
    recipe: Recipe
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    job: Job = field(default_factory=Job)


@dataclass(frozen=True)
class Update:
    """What it returned, once accepted. ``update_time_s`` is what the server measured from send to receipt.

    ``state`` are weights, however they travelled, zero where ``masks`` keep nothing; ``gradient`` is by the weight's
    name. ``plan`` is what was asked for, or, for a job that proposes one, the proposal. ``received`` are the weights as
    they were sent to it, ``staleness`` the rounds that were merged since (0 where a round waits for all).
    """

    client: str
    plan: SubmodelPlan
    state: Mapping[str, Tensor]
    samples: int
    loss: float
    update_time_s: float
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    received: Mapping[str, Tensor] = field(default_factory=dict)
    staleness: int = 0


@dataclass(frozen=True)
class State:
    """The server between two rounds: global weights, each client's plan, and the algorithm's own JSON-able memory and
    tensors (masks, a momentum). ``busy``: who is still at an earlier round's work and will not be asked (known to
    ``assign`` only)."""

    round: int
    model: dict[str, Tensor]
    plans: Mapping[str, SubmodelPlan]
    memory: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()


class Algorithm(Protocol):
    """One published system. Implementations are frozen dataclasses whose fields are their configuration.

    The engine calls ``init`` once, then per round ``assign`` (server), ``train`` (device) and ``merge`` (server).
    ``barrier`` says for whom a round waits (barrier.py). ``calibrate``: passes over the devices' data in which
    batch-norm statistics are measured anew before the global model is used (calibration.py).
    An algorithm may also have ``facts(setting, state)``: JSON-able figures for the round's record; and
    ``summing(setting, state)``: a running_mean.Summing where the coming round's merge needs no more of the updates'
    weights than ``average`` of them, None elsewhere. They are summed as they come then, and not held.
    """

    name: ClassVar[str]

    @property
    def barrier(self) -> Barrier: ...

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
