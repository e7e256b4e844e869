"""FedDST (arXiv 2112.09824): every client trains a sparse network whose mask moves; only kept weights travel.

    start      the initial weights, layer by layer the largest magnitudes, down to sparsity S
    a round    K of N clients get (w, m), train E epochs of fresh SGD under m, and send w_c at m_c
    every dR rounds until R_end, in the middle of the E epochs, in every layer of n kept weights
               prune   the smallest |w|, the share   alpha_r = alpha / 2 (1 + cos(pi r / R_end))   of the n
               grow    as many of the others, by |dL/dw| over the client's data, at 0; then go on training
               and send m_c too
    merge      w[i] = sum_c n_c w_c[i] m_c[i] / sum_c n_c m_c[i];   m = union of the m_c;   largest |w| down to S again
               biases and what else has no mask: plain mean

The sums are exact (wire.Accumulator): no order of the clients changes a bit. Departures of the public code are
switches, each off by default: ``softmax``, ``after`` = epochs, ``anneal`` = "squared", ``grow_any``, ``growth_data`` =
"batch", ``prox_detached``, ``replacement``, ``distribution`` = "public". docs/algorithms/feddst.md says more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from edgeprune import ops, wire
from edgeprune.algorithms.barrier import ALL, Barrier
from edgeprune.algorithms.clients import ClientSide
from edgeprune.algorithms.protocol import Assignment, Job, Setting, State, Update
from edgeprune.algorithms.running_mean import largest, whole_weights
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import SubmodelPlan, masks

MASK = "mask/"
Moves = Literal["clients", "server", "never"]
Growth = Literal["all", "batch"]
Path = Literal["sparse", "dense", "auto"]
Annealing = Literal["cosine", "squared", "constant"]


@dataclass(frozen=True)
class FedDST(ClientSide):
    """Fields on the clients' side: clients.py.

    ``interval`` is dR, ``end`` R_end (0: half of the rounds), ``after`` the epoch after which masks move (0: half of
    them). ``start`` "random" and ``moves`` "never" make the baselines with a fixed mask. ``moves`` "server" is
    PruneFL's way (arXiv 1909.12326) at a fixed density: clients send their dense gradient, and the server exchanges the
    share alpha_r of the smallest weights for the largest mean gradients; one mask for all.
    ``path``: protocol.Job.
    """

    sparsity: float = 0.8
    distribution: masks.Distribution = "erk"
    start: masks.Start = "magnitude"
    moves: Moves = "clients"
    alpha: float = 0.01
    interval: int = 15
    end: int = 0
    after: int = 0
    anneal: Annealing = "cosine"
    growth_data: Growth = "all"
    grow_any: bool = False
    path: Path = "sparse"
    epochs: int = 10
    calibrate: int = 0

    name: ClassVar[str] = "feddst"
    barrier: ClassVar[Barrier] = ALL

    def __post_init__(self) -> None:
        self.check_clients()
        if not 0 <= self.sparsity < 1:
            raise EdgePruneError(f"algorithm.sparsity is {self.sparsity}; it is the share of zeros, in [0, 1)")
        if not 0 <= self.alpha <= 1:
            raise EdgePruneError(f"algorithm.alpha is {self.alpha}; it is a share of the kept weights, in [0, 1]")
        if self.interval < 1 or self.end < 0 or self.after < 0:
            raise EdgePruneError("algorithm.interval must be 1 or more, end and after 0 or more")
        if self.epochs and self.after > self.epochs:
            raise EdgePruneError(f"algorithm.after is {self.after}, there are {self.epochs} epochs")
        choices = (
            ("distribution", get_args(masks.Distribution)),
            ("start", get_args(masks.Start)),
            ("moves", get_args(Moves)),
            ("growth_data", get_args(Growth)),
            ("anneal", get_args(Annealing)),
            ("path", get_args(Path)),
        )
        for key, known in choices:
            if getattr(self, key) not in known:
                raise EdgePruneError(f"algorithm.{key} is {getattr(self, key)!r}{nearest(getattr(self, key), known)}")

    # --- server -------------------------------------------------------------------------------------------------

    def init(self, setting: Setting, model: dict[str, Tensor]) -> State:
        """The initial weights under their first masks."""
        if self.after > setting.recipe.epochs:
            raise EdgePruneError(f"algorithm.after is {self.after}, there are {setting.recipe.epochs} epochs")
        if not setting.maskable:
            raise EdgePruneError("algorithm 'feddst': the task's model has no nn.Linear or nn.Conv2d to mask")
        weights = {name: model[name] for name in setting.maskable}
        first = masks.start(weights, 1 - self.sparsity, self.distribution, self.start, setting.seed)
        # A layer that keeps all its weights needs no mask: it is trained and sent whole.
        first = {name: mask for name, mask in first.items() if ops.mask_count(mask) < model[name].numel()}
        model = {**model, **{name: masks.applied(model[name], mask) for name, mask in first.items()}}
        plans = dict.fromkeys(setting.clients, SubmodelPlan.full(setting.graph))
        return State(0, model, plans, {}, {MASK + name: mask for name, mask in first.items()})

    def assign(self, setting: Setting, state: State) -> Sequence[Assignment]:
        """The kept weights and their masks to the clients of the round."""
        held, job = masks_of(state), self._job(setting, state.round)
        return [
            Assignment(client, state.plans[client], state.model, setting.recipe, held, job)
            for client in self.participants(setting, state.round)
        ]

    def merge(self, setting: Setting, state: State, updates: Sequence[Update]) -> State:
        """The mean over each weight's holders, and masks of exactly the old size."""
        if not updates:
            return replace(state, round=state.round + 1)
        old = masks_of(state)
        model = mean_of_holders(state.model, updates)
        sent = {name: masks.union([update.masks[name] for update in updates]) for name in old}
        new = {name: self._back_to_size(model[name], sent[name], old[name]) for name in old}
        if self.moves == "server" and self._share(setting, state.round):
            new = self._moved_by_server(model, new, updates, self._share(setting, state.round))
        model |= {name: masks.applied(model[name], mask) for name, mask in new.items()}
        memory = {"moves": _moves(old, sent, new)}
        tensors = {MASK + name: mask for name, mask in new.items()}
        return replace(state, round=state.round + 1, model=model, memory=memory, tensors=tensors)

    def facts(self, setting: Setting, state: State) -> dict[str, Any]:
        """The density served, and how far the masks moved in the round before."""
        sizes = {name: state.model[name].numel() for name in setting.maskable}
        kept = {name: ops.mask_count(mask) for name, mask in masks_of(state).items()}
        density = sum({**sizes, **kept}.values()) / sum(sizes.values())
        return {"density": density, **state.memory.get("moves", {})}

    # --- how masks move -----------------------------------------------------------------------------------------

    def alpha_at(self, round_: int, rounds: int) -> float:
        """alpha_r of round ``round_`` (from 0) in a run of ``rounds``; 0 from R_end on."""
        end = self.end or max(1, rounds // 2)
        if round_ >= end:
            return 0.0
        if self.anneal == "constant":
            return self.alpha
        annealed = self.alpha / 2 * (1 + math.cos(math.pi * round_ / end))
        return annealed * self.alpha if self.anneal == "squared" else annealed

    def _share(self, setting: Setting, round_: int) -> float:
        """The share exchanged in the round after ``round_``; mostly none."""
        due = self.moves != "never" and (round_ + 1) % self.interval == 0
        return self.alpha_at(round_, setting.rounds) if due else 0.0

    def _job(self, setting: Setting, round_: int) -> Job:
        moving = self._share(setting, round_)
        if self.moves == "server":
            return replace(self.job(), gradient=moving > 0, path=self.path)
        after = self.after or max(1, setting.recipe.epochs // 2)
        return replace(
            self.job(),
            readjust=moving,
            after=after,
            growth_data=self.growth_data,
            grow_any=self.grow_any,
            path=self.path,
        )

    def _back_to_size(self, weight: Tensor, sent: Tensor, old: Tensor) -> Tensor:
        """The union down to as many weights as before. (Less than that comes of ``grow_any`` alone.)"""
        keep = ops.mask_count(old)
        return sent if ops.mask_count(sent) <= keep else masks.pruned(weight, sent, keep)

    @staticmethod
    def _moved_by_server(
        model: Mapping[str, Tensor], held: Mapping[str, Tensor], updates: Sequence[Update], share: float
    ) -> dict[str, Tensor]:
        total = sum(update.samples for update in updates)
        new = {}
        for name, mask in held.items():
            gradient = sum(update.gradient[name].double() * (update.samples / total) for update in updates)
            assert isinstance(gradient, Tensor)
            keep = ops.mask_count(mask)
            left = masks.pruned(model[name], mask, keep - masks.exchange_count(keep, model[name].numel(), share))
            new[name] = masks.grown(gradient.float(), left, keep)
        return new


def masks_of(state: State) -> dict[str, Tensor]:
    """The server's masks by the name of their weight."""
    return {name.removeprefix(MASK): mask for name, mask in state.tensors.items() if name.startswith(MASK)}


def mean_of_holders(model: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """Every coordinate the mean over the clients that hold it, weighted by samples; exact in any order of them."""
    weights = whole_weights([update.samples for update in updates])
    reach = {name: largest([update.state[name] for update in updates]) for name in model}
    total = wire.Accumulator(model, total_weight=sum(weights), reach=reach)
    for update, weight in zip(updates, weights, strict=True):
        packed = {name: wire.pack_tensor(t, update.masks.get(name), name=name) for name, t in update.state.items()}
        total.add(packed, weight)
    return total.finish(model)


def _moves(old: Mapping[str, Tensor], sent: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, float]:
    """``moved``: share of the server's weights exchanged; ``grown``: of those the clients grew, in units of all kept;
    ``survived``: share of the grown that the server kept."""
    kept = sum(ops.mask_count(mask) for mask in old.values())
    grown = {name: sent[name] & (sent[name] ^ old[name]) for name in old}
    count = sum(ops.mask_count(mask) for mask in grown.values())
    stayed = sum(ops.mask_count(grown[name] & new[name]) for name in old)
    return {"moved": masks.moved(old, new), "grown": count / max(1, kept), "survived": stayed / count if count else 0.0}
