"""Co-S2P (arXiv 2410.08457): unequal depth and width, widths learnt on the own data; nobody waits for the last.

    rates       r_n of client n, dealt over the fleet from strongest to weakest, or (``rates_by`` "profile", ours) the
                largest with which its measured profile expects it in time
    depth       the first floor(r_n * quarters) quarters of the network's blocks, up to an exit
    width       at first each client learns on its own data which r_n of the channels it keeps (mask_learning.py);
                then its structure is fixed and physically smaller. The residual stream keeps its width
    training    cross-entropy at every exit + transfer T^2 KL(exit || deepest), from round ``transfer_from`` on
    merging     when ``wait_for`` of the clients have answered, with delta_n = w_n - w_n,received:

                    a_n  proportional to  (||delta_n||_1 / r_n) / (||w_now - w_n,received||_1 + 1)       sum a_n = 1
                    w <- w + sum_n a_n delta_n         (a weight that n lacks: unchanged by n)

    coverage    N*: the fewest clients that hold any weight; in the record's facts

Norms are over what the client holds. ``merge_by = "unit"`` divides by the a_n of a weight's holders instead. The public
code waits for everybody, so its staleness term is always 0; here the weights as they were sent are kept (Update).
docs/algorithms/cos2p.md names what was filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from edgeprune.algorithms import rates
from edgeprune.algorithms.barrier import Barrier
from edgeprune.algorithms.clients import ClientSide, check_least_zero
from edgeprune.algorithms.mask_learning import cut
from edgeprune.algorithms.protocol import Assignment, Job, Setting, State, Update
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.nn.exits import Reduction
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.coverage import coverage
from edgeprune.pruning.importance import scores
from edgeprune.pruning.merge_gate import MergeMode
from edgeprune.pruning.merging import merge_all
from edgeprune.pruning.robust import STATISTICS
from edgeprune.pruning.surgery import extract_state

Masks = Literal["learned", "magnitude", "random"]
Staleness = Literal["drift", "relative", "none"]
RatesBy = Literal["table", "profile"]


LEAST = 1e-20  # share of an update that could still move a float32
HOTTEST = 1e6  # temperature: logits divided by it, and its square, are float32


@dataclass(frozen=True)
class CoS2P(ClientSide):
    """Fields on the clients' side: clients.py.

    ``wait_for``: the barrier's K (0: all), with ``grace``. ``masks``: "magnitude" (of the initial weights) and
    "random" are ablations, decided by the server. ``mask_epochs``: of learning; ``pull``: its lambda. ``transfer``: 0
    for none; ``reduction`` "mean": the public code's. ``importance``: a_n's numerator, else samples. ``staleness``:
    its denominator as above ("drift"), ||w_now - w_received||_1 / ||delta||_1 + 1 ("relative", ours) or 1 ("none").
    ``depth``: off for width alone. ``rates_by`` "profile": rates.py, down to the smallest of ``rates``, for
    ``deadline_s`` seconds a round or (0) the time of the fastest; who is too slow for either sits out.
    """

    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    rates_by: RatesBy = "table"
    deadline_s: float = 0.0
    wait_for: int = 10
    grace: float = 0.0
    masks: Masks = "learned"
    mask_epochs: int = 2
    pull: float = 1.0
    depth: bool = True
    transfer: float = 0.5
    transfer_from: int = 10
    temperature: float = 3.0
    reduction: Reduction = "batchmean"
    importance: bool = True
    staleness: Staleness = "drift"
    merge_by: MergeMode = "delta"
    calibrate: int = 3

    name: ClassVar[str] = "cos2p"

    def __post_init__(self) -> None:
        self.check_clients()
        _ = self.barrier
        if not self.rates or not all(isinstance(r, (int, float)) and 0 < r <= 1 for r in self.rates):
            raise EdgePruneError(f"algorithm.rates is {list(self.rates)}; give shares of depth and width, in (0, 1]")
        for field, kinds in (
            ("masks", Masks),
            ("reduction", Reduction),
            ("merge_by", MergeMode),
            ("staleness", Staleness),
            ("rates_by", RatesBy),
        ):
            value = getattr(self, field)
            if value not in get_args(kinds):
                raise EdgePruneError(f"algorithm.{field} is {value!r}{nearest(str(value), get_args(kinds))}")
        if self.mask_epochs < 1:
            raise EdgePruneError(f"algorithm.mask_epochs is {self.mask_epochs}; give 1 or more")
        check_least_zero(self, "transfer", "pull", "deadline_s")
        if not 1 / HOTTEST <= self.temperature <= HOTTEST:
            limits = f"{1 / HOTTEST:.0e} to {HOTTEST:.0e}"
            raise EdgePruneError(f"algorithm.temperature is {self.temperature}; give {limits}")

    @property
    def barrier(self) -> Barrier:
        """K of those who are at work."""
        return Barrier(self.wait_for, self.grace)

    @property
    def needs_reports(self) -> bool:
        """Whether every client must have a profile."""
        return self.rates_by == "profile"

    # --- server -------------------------------------------------------------------------------------------------

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """Everybody its depth, and whoever does not learn its width that too."""
        plans, learning = {}, []
        shares, why = self._rates(setting)
        for at, client in enumerate(setting.clients):
            rate = shares[client]
            plans[client] = rates.depth_plan(setting.graph, rate) if self.depth else SubmodelPlan.full(setting.graph)
            if 0 < rate < 1 and self.masks == "learned":
                learning.append(client)
            elif 0 < rate < 1:
                plans[client] = cut(setting.graph, self._scores(setting, model, at), rate, plans[client])
        state = State(0, model, plans, {"learning": learning, "rates": shares, "why": why})
        return replace(state, memory={**state.memory, "coverage": self._coverage(setting, state)})

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """Who has no width yet learns it; the others train."""
        assignments = []
        transfer = self.transfer if state.round + 1 >= self.transfer_from else 0.0
        training = replace(self.job(), transfer=transfer, temperature=self.temperature, reduction=self.reduction)
        for client in self.participants(setting, state.round):
            rate = state.memory["rates"][client]
            if client in state.busy or not rate:
                continue
            recipe, job = setting.recipe, training
            if client in state.memory["learning"]:
                recipe = replace(recipe, epochs=self.mask_epochs)
                job = Job(learn=rate, pull=self.pull)
            plan = state.plans[client]
            assignments.append(Assignment(client, plan, extract_state(state.model, plan), recipe, job=job))
        return assignments

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """Take over learnt structures; add the weighted changes of the others."""
        learning = list(state.memory["learning"])
        learnt = [update for update in updates if update.client in learning]
        trained = [update for update in updates if update.client not in learning]
        model, weights = state.model, {}
        if trained:
            moved = [on_top(state.model, update) for update in trained]
            held = state.memory["rates"]
            found = [self._weight(u, now, held[u.client]) for u, (now, _) in zip(trained, moved, strict=True)]
            if (total := math.fsum(found)) > 0:
                shares = [weight / total for weight in found]
                each = zip(trained, shares, moved, strict=True)
                counted = [(u.plan, local, share) for u, share, (_, local) in each if share > LEAST]
                model = merge_all(state.model, counted, self.merge_by)
                weights = {update.client: share for update, share in zip(trained, shares, strict=True)}
        memory = {**state.memory, "weights": weights}
        state = replace(state, round=state.round + 1, model=model, memory=memory)
        if learnt:
            plans = {**state.plans, **{update.client: update.plan for update in learnt}}
            done = {update.client for update in learnt}
            memory["learning"] = [client for client in learning if client not in done]
            state = replace(state, plans=plans)
            memory["coverage"] = self._coverage(setting, state)
        return state

    def facts(self, setting: Setting, state: State) -> dict[str, Any]:
        """Coverage, who still learns its width, how much each update counted; at first, where rates come from."""
        first = {"rates": state.memory["rates"], "why": state.memory["why"]} if state.round == 1 else {}
        return {
            **first,
            "coverage": state.memory["coverage"],
            "learning": state.memory["learning"],
            "weights": state.memory.get("weights", {}),
        }

    def _rates(self, setting: Setting) -> tuple[dict[str, float], dict[str, str]]:
        """(r of every client, 0 for one that sits out; why, in the scheduler's words)."""
        if self.rates_by == "table":
            return rates.dealt(self.rates, setting.clients), {}
        deadline_s = self.deadline_s or math.inf
        decided = rates.by_profile(setting, min(self.rates), self.depth, deadline_s, self.name)
        found = {client: decision.rung.retention if decision.rung else 0.0 for client, decision in decided.items()}
        if not any(found.values()):
            raise EdgePruneError(f"algorithm.deadline_s is {self.deadline_s}; no device is as fast as that")
        return found, {client: decision.why for client, decision in decided.items()}

    def _weight(self, update: Update, now: Mapping[str, Tensor], rate: float) -> float:
        """a_n before normalising. ``now``: what the client's weights are at the server now."""
        names = [n for n, t in now.items() if t.is_floating_point() and not n.endswith(STATISTICS)]
        change = l1(update.state, update.received, names)
        share = change / rate if self.importance else float(update.samples)
        if self.staleness == "none" or change == 0:
            return share
        drift = l1(now, update.received, names)
        return share / ((drift if self.staleness == "drift" else drift / change) + 1)

    def _scores(self, setting: Setting, model: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
        if self.masks == "magnitude":
            return scores(model, setting.graph, "l2")
        generator = torch.Generator().manual_seed((setting.seed * 100_003 + at) % 2**64)
        return {name: torch.rand(size, generator=generator) for name, size in setting.graph.map.groups.items()}

    def _coverage(self, setting: Setting, state: State) -> dict[str, Any]:
        plans = [plan for client, plan in state.plans.items() if state.memory["rates"][client]]
        names = [n for n, t in state.model.items() if t.is_floating_point() and not n.endswith(STATISTICS)]
        return coverage(setting.graph, plans, names).to_json()


def on_top(model: Mapping[str, Tensor], update: Update) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the client's part of ``model`` now, the same with the update's change on top). Integers and statistics of the
    data are the update's own: a change of a variance has no meaning elsewhere."""
    now = extract_state(model, update.plan)
    local = {
        name: update.state[name]
        if not t.is_floating_point() or name.endswith(STATISTICS)
        else t + (update.state[name] - update.received[name])
        for name, t in now.items()
    }
    return now, local


def l1(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """Sum of |a - b| over the tensors ``names``, in double."""
    return math.fsum(float((a[name] - b[name]).abs().sum(dtype=torch.float64)) for name in names)
