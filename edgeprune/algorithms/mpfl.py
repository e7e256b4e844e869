"""MPFL (arXiv 2312.03889): nodes agree on which filters go by sending masks alone; then the small model is trained.

    search, k = 1 .. iterations
        every node starts from the common initial weights w0 under the consensus, trains, and sends one bit a filter:
        those of largest L2 norm stay, the share that this iteration drops goes
        the server counts for every filter the votes to drop it, and sends the consensus back
    consensus, layer by layer
        "exact"     the most votes go, until the share  k * step  of the layer's filters is gone
        "majority"  what more than half of the nodes drop goes, however many that are
        "public"    the public code's thresholds: what the share t of the nodes drops goes, for the first t of 1, .9,
                    ... .1 by which  k * step  is gone (overshoots)
    training, all other rounds    federated averaging of the physically smaller model, again from w0

w0 is drawn from the run's seed on every node, so the search moves masks only: no weights, up or down. Filters that
stand in one channel group (residual sums) are one; layers that are not convolutions stay as they are. Ties in votes are
decided by the votes of the iterations before, then by the norm in w0 (the paper's mean score would have to travel: 32
bits a filter in place of one). "random" and "single" (the first node decides) are for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from edgeprune.algorithms.averaging import average
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import ClientSide, assign_plans
from edgeprune.algorithms.protocol import Assignment, Job, Setting, State, Update
from edgeprune.algorithms.running_mean import Summing
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.importance import scores
from edgeprune.pruning.surgery import expand_state, extract_state

Consensus = Literal["exact", "majority", "public", "random", "single"]
THRESHOLDS = tuple(t / 10 for t in range(10, 0, -1))


@dataclass(frozen=True)
class MPFL(ClientSide):
    """Fields on the clients' side: clients.py; ``sample`` is for the training alone, all nodes search.

    ``step``: share of each layer's filters that one iteration drops, so ``iterations`` * ``step`` are gone at the end.
    ``search_epochs``: of each iteration on the node.
    """

    iterations: int = 7
    step: float = 0.1
    consensus: Consensus = "exact"
    search_epochs: int = 1
    calibrate: int = 0

    name: ClassVar[str] = "mpfl"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        if self.iterations < 1 or self.search_epochs < 1:
            raise EdgePruneError("algorithm.iterations and algorithm.search_epochs must be 1 or more")
        if not (self.step > 0 and self.iterations * self.step < 1):
            raise EdgePruneError(
                f"algorithm.iterations {self.iterations} times step {self.step} is the share of filters dropped; it "
                "must be above 0 and below 1"
            )
        if self.consensus not in get_args(Consensus):
            raise EdgePruneError(
                f"algorithm.consensus is {self.consensus!r}{nearest(self.consensus, get_args(Consensus))}"
            )

    # --- server -------------------------------------------------------------------------------------------------

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everything is kept; nobody has voted."""
        if not filters(setting.graph):
            raise EdgePruneError("algorithm 'mpfl': the task's model has no convolution whose filters can be dropped")
        if setting.rounds <= self.iterations:
            raise EdgePruneError(
                f"run.rounds is {setting.rounds}, and the search alone takes algorithm.iterations = {self.iterations}; "
                "give more rounds, or nothing is trained"
            )
        return State(0, model, dict.fromkeys(setting.clients, SubmodelPlan.full(setting.graph)), {"votes": {}})

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """While searching the consensus alone, then the smaller model's weights."""
        if state.round >= self.iterations:
            return assign_plans(setting, state, self.participants(setting, state.round), self.job())
        recipe = replace(setting.recipe, epochs=self.search_epochs)
        # The share of what is left, so that k * step of all are gone; the public code's nodes drop a tenth of the rest.
        left = 1 - state.round * self.step
        job = Job(propose=self.step if self.consensus == "public" else self.step / left)
        return [Assignment(client, state.plans[client], {}, recipe, job=job) for client in setting.clients]

    def summing(self, setting: Setting, state: State) -> Summing | None:
        """After the votes the mean is all that a merge needs."""
        return Summing() if state.round >= self.iterations else None

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Count the votes, or average the weights."""
        after = state.round + 1
        if not updates and after != self.iterations:
            return replace(state, round=after)  # a later vote catches up; after the last one none does
        if state.round >= self.iterations:
            return replace(state, round=after, model=average(state.model, updates))
        plan = state.plans[setting.clients[0]]
        heard = updates[:1] if self.consensus == "single" else updates
        votes = votes_to_drop(setting.graph, plan, [update.plan for update in heard])
        before = state.memory["votes"]
        new = SubmodelPlan(
            setting.graph.map,
            {
                **plan.kept,
                **{
                    name: self._agreed(
                        setting, name, plan.kept[name], counts, before.get(name), after, state, len(heard)
                    )
                    for name, counts in votes.items()
                },
            },
        )
        total = {name: (counts + np.array(before.get(name, 0))).tolist() for name, counts in votes.items()}
        model = state.model
        if after == self.iterations:
            # Dropped filters are zero from here on, with all that belongs to them: so the whole model computes what the
            # small one does.
            model = expand_state(extract_state(model, new), new, 0.0)
        memory = {"votes": total, "agreement": agreement(votes, len(heard))}
        return replace(state, round=after, model=model, plans=dict.fromkeys(state.plans, new), memory=memory)

    def facts(self, setting: Setting, state: State) -> dict[str, Any]:
        """How unanimous the last votes were, while searching."""
        if state.round > self.iterations or "agreement" not in state.memory:
            return {}
        return {"agreement": state.memory["agreement"]}

    def _agreed(
        self,
        setting: Setting,
        name: str,
        kept: tuple[int, ...],
        votes: np.ndarray,
        before: Sequence[int] | None,
        k: int,
        state: State,
        nodes: int,
    ) -> tuple[int, ...]:
        """The filters of group ``name`` that stay after iteration ``k``: some of ``kept``, at least one."""
        size = setting.graph.map.groups[name]
        keep = min(len(kept), max(1, math.floor(size * (1 - k * self.step) + 0.5)))
        ranked = self._by_votes(setting, name, kept, votes, before, k, state)
        if self.consensus == "majority":
            keep = sum(2 * votes[i] <= nodes for i in kept)
        elif self.consensus == "public":
            for threshold in THRESHOLDS:
                keep = sum(votes[i] < threshold * nodes for i in kept) if nodes else len(kept)
                if size - keep >= k * self.step * size - 1e-9:
                    break
        return tuple(sorted(ranked[: max(1, keep)]))

    def _by_votes(
        self,
        setting: Setting,
        name: str,
        kept: tuple[int, ...],
        votes: np.ndarray,
        before: Sequence[int] | None,
        k: int,
        state: State,
    ) -> list[int]:
        """``kept``, those to keep first."""
        if self.consensus == "random":
            at = list(setting.graph.map.groups).index(name)
            order = np.random.default_rng([setting.seed, at, 0xF117]).permutation(setting.graph.map.groups[name])
            return [int(i) for i in order if i in set(kept)]
        norms = scores(state.model, setting.graph, "l2")[name]
        past = before or [0] * len(votes)
        return sorted(kept, key=lambda i: (votes[i], past[i], -float(norms[i]), i))


# --- filters, on the server and on the nodes ------------------------------------------------------------------------


def filters(graph: ChannelGraph) -> list[str]:
    """The channel groups that convolutions make and nothing but convolutions: their channels are the filters."""
    found = []
    for name, group in graph.prunable.items():
        made_by = [member.tensor for member in group.members if member.role == "out"]
        if made_by and all(len(graph.axes[tensor]) == 4 for tensor in made_by):
            found.append(name)
    return found


def proposal(state: Mapping[str, Tensor], graph: ChannelGraph, plan: SubmodelPlan, drop: float) -> SubmodelPlan:
    """What a node would keep of ``plan`` after training its weights ``state``: in every layer of filters, all but the
    share ``drop`` with the smallest L2 norms; at least one."""
    norms = scores(expand_state(state, plan), graph, "l2")
    kept = dict(plan.kept)
    for name in filters(graph):
        keep = max(1, math.floor(len(kept[name]) * (1 - drop) + 0.5))
        order = sorted(kept[name], key=lambda i: (-float(norms[name][i]), i))
        kept[name] = tuple(sorted(order[:keep]))
    return SubmodelPlan(graph.map, kept)


def votes_to_drop(graph: ChannelGraph, plan: SubmodelPlan, proposals: Sequence[SubmodelPlan]) -> dict[str, np.ndarray]:
    """For every filter of ``plan`` how many ``proposals`` lack it, by group: int [size], 0 for what is gone already."""
    votes = {}
    for name in filters(graph):
        counts = np.zeros(graph.map.groups[name], int)
        for proposed in proposals:
            counts[sorted(set(plan.kept[name]) - set(proposed.kept[name]))] += 1
        votes[name] = counts
    return votes


def agreement(votes: Mapping[str, np.ndarray], nodes: int) -> float:
    """Of two nodes' dropped filters, the share that both drop: mean over all pairs, 1 where all agree."""
    cast = sum(int(v.sum()) for v in votes.values())
    if nodes < 2 or not cast:
        return 1.0
    return sum(int((v * (v - 1)).sum()) for v in votes.values()) / (cast * (nodes - 1))
