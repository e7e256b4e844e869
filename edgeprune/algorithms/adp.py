"""Adaptive dynamic pruning (arXiv 2106.06921): what is pruned depends on the data, so it is decided on the device.

v1  per input       the task's network has gated convolutions (nn/gated.py): each input computes its round(rho C)
                    strongest channels. Gates are ordinary weights: they are averaged with the rest (FedAvg; FedProx:
                    ``prox``)
    per device      every ``every`` rounds each client reports which channels its own data use most: the mean gate over
                    its samples. The ``keep`` share of every layer is its channel set, and ``edgeprune export --client``
                    cuts the trained global model to it, physically. A set is replaced when more than ``drift`` of its
                    channels would be others: once at first, and whenever the data drift
v2  ``threshold``   after each local epoch weights below it are zeroed, with no mask kept: they may grow again

The per-device set is ours: without it a device computes every channel's gate but no fewer weights are stored.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeprune.algorithms.averaging import average
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import ClientSide
from edgeprune.algorithms.protocol import Assignment, Setting, State, Update
from edgeprune.errors import EdgePruneError
from edgeprune.nn.gated import GatedConv2d, GatedNet, gate_statistics, gated_layers
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose


@dataclass(frozen=True)
class ADP(ClientSide):
    """Fields on the clients' side: clients.py. ``every`` 0: no channel sets of the devices' own."""

    keep: float = 0.7
    every: int = 10
    drift: float = 0.05
    threshold: float = 0.0
    calibrate: int = 0

    name: ClassVar[str] = "adp"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        if not 0 < self.keep <= 1:
            raise EdgePruneError(f"algorithm.keep is {self.keep}; it is the share of each layer's channels, in (0, 1]")
        if self.every < 0:
            raise EdgePruneError(f"algorithm.every is {self.every}; give a number of rounds, 0 for never")
        if not 0 <= self.drift < 1:
            raise EdgePruneError(f"algorithm.drift is {self.drift}; it is a share of channels, in [0, 1)")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise EdgePruneError(f"algorithm.threshold is {self.threshold}; give a magnitude, 0 for none")

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody trains everything; nobody has a channel set of its own."""
        if self.every and not any(name.endswith(".gate.weight") for name in model):
            raise EdgePruneError(
                "algorithm 'adp': the task's model has no gated convolution; use task 'cifar10-adp', or every = 0"
            )
        full = SubmodelPlan.full(setting.graph)
        return State(0, model, dict.fromkeys(setting.clients, full), {"moved": {}})

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """The whole model to every client of the round; in time, with the question for its channel set."""
        full = SubmodelPlan.full(setting.graph)
        after = state.round + 1
        due = self.every and (after % self.every == 0 or after == setting.rounds)
        job = replace(self.job(), gates=self.keep if due else 0.0, threshold=self.threshold)
        clients = self.participants(setting, state.round)
        return [Assignment(client, full, state.model, setting.recipe, job=job) for client in clients]

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Average; take over the sets that have drifted."""
        full = SubmodelPlan.full(setting.graph)
        plans, moved = dict(state.plans), {}
        for update in updates:
            if update.plan != full:
                before = plans[update.client]
                moved[update.client] = difference(before, update.plan)
                if before == full or moved[update.client] > self.drift:
                    plans[update.client] = update.plan
        model = average(state.model, [replace(update, plan=full) for update in updates])
        return State(state.round + 1, model, plans, {"moved": moved})

    def facts(self, setting: Setting, state: State) -> dict[str, Any]:
        """How much of each asked client's set its data would replace, and how alike the clients' sets are."""
        plans = [plan for plan in state.plans.values() if plan.retention < 1]
        pairs = [(a, b) for i, a in enumerate(plans) for b in plans[:i]]
        found: dict[str, Any] = {"moved": state.memory["moved"]}
        if pairs:
            found["difference"] = sum(difference(a, b) for a, b in pairs) / len(pairs)
        return found


# --- on the device --------------------------------------------------------------------------------------------------


def specialised(model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], keep: float) -> SubmodelPlan:
    """The ``keep`` share of every gated layer's channels that these data use most. The model is left in evaluation."""
    return choose(graph, used(graph, gate_statistics(model, batches)), keep)


def used(graph: ChannelGraph, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every group's score: the sum of its layers' mean gates; groups without a gate keep all alike."""
    scores = {name: torch.zeros(size, dtype=torch.float64) for name, size in graph.map.groups.items()}
    for name, group in graph.prunable.items():
        for layer in {m.tensor.removesuffix(".gate.weight") for m in group.members if m.role == "out"}:
            if layer in statistics:
                scores[name] += statistics[layer]
    return scores


def plain(model: GatedNet, statistics: Mapping[str, Tensor]) -> nn.Sequential:
    """A specialised network without its gates: every channel's mean gate (gate_statistics of this network) becomes part
    of its batch-norm. ReLU(BN(x) g) = ReLU(g BN(x)) for the one g that is left, so nothing else changes."""
    layers: list[nn.Module] = []
    for name, layer in model.features.named_children():
        if not isinstance(layer, GatedConv2d):
            layers.append(layer)
            continue
        norm, gate = copy.deepcopy(layer.bn), statistics[f"features.{name}"].to(layer.bn.weight.dtype)
        with torch.no_grad():
            norm.weight.mul_(gate)
            norm.bias.mul_(gate)
        layers += [copy.deepcopy(layer.conv), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(model.head))


def difference(a: SubmodelPlan, b: SubmodelPlan) -> float:
    """The share of channels that one of the two keeps and the other does not, of those that either keeps."""
    both = sum(len(set(a.kept[name]) & set(b.kept[name])) for name in a.kept)
    either = sum(len(set(a.kept[name]) | set(b.kept[name])) for name in a.kept)
    return 1 - both / either if either else 0.0


def zero_small(model: nn.Module, threshold: float) -> Callable[[int, torch.optim.Optimizer, Tensor], None]:
    """What is done after each epoch of v2: weights of layers below ``threshold`` become zero; gates are left alone."""
    gates = {id(p) for layer in gated_layers(model).values() for p in layer.gate.parameters()}
    weights = [p for p in model.parameters() if p.dim() > 1 and id(p) not in gates]

    @torch.no_grad()
    def after_epoch(epoch: int, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
        for weight in weights:
            weight.mul_(weight.abs() >= threshold)

    return after_epoch
