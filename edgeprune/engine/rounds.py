"""The server's loop: assign, push, pull, accept, merge. The same for every algorithm and every transport."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

from torch import Tensor

from edgeprune import wire
from edgeprune.algorithms.calibration import MEAN, VAR, pooled
from edgeprune.algorithms.protocol import Algorithm, Assignment, Job, Setting, State, Update
from edgeprune.algorithms.running_mean import RunningMean
from edgeprune.engine.acceptance import checked
from edgeprune.engine.checkpoint import Checkpoint, Sent
from edgeprune.engine.intake import Intake
from edgeprune.engine.outbox import Outbox
from edgeprune.engine.transport import Reply, Transport
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan

Evaluate = Callable[[Mapping[str, Tensor]], "Evaluated"]


@dataclass(frozen=True)
class Evaluated:
    """What the test split says of global weights; ``clients``: how well they serve each device's own classes."""

    accuracy: float
    loss: float
    clients: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Gathered:
    """What one round's wait brought.

    ``asked``: this round's assignments, ``download_bytes`` in all; ``replies``: what came, without its bytes, of which
    there were ``upload_bytes``; ``seconds``: how long the round lasted; ``busy_s``: each device at work in it;
    ``flight``: who still is; ``more``: for the record.
    """

    asked: Mapping[str, Assignment]
    download_bytes: int
    upload_bytes: int
    replies: Sequence[Reply]
    updates: Sequence[Update]
    rejected: Mapping[str, str]
    seconds: float
    control_s: float
    retention: Mapping[str, float]
    busy_s: Mapping[str, float]
    flight: Mapping[str, Sent] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """Everything the loop needs. ``evaluate`` judges global weights."""

    algorithm: Algorithm
    setting: Setting
    transport: Transport
    evaluate: Evaluate
    seed: int
    evaluate_every: int
    patience: float

    def start(self, model: dict[str, Tensor]) -> Checkpoint:
        """The state before the first round: nobody holds a plan yet."""
        totals = {"upload_bytes": 0, "download_bytes": 0, "rejected": 0, "control_wall_s": 0.0, "overhead_bytes": 0}
        return Checkpoint(self.algorithm.init(self.setting, model), {}, 0.0, totals)

    def rounds(self, at: Checkpoint) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
        """From ``at`` to the last round: (what to save, the round's record) after each."""
        while at.state.round < self.setting.rounds:
            try:
                at, record = self._round(at)
            except EdgePruneError as error:
                raise EdgePruneError(f"round {at.state.round + 1}: {error}") from None
            yield at, record

    def _round(self, at: Checkpoint) -> tuple[Checkpoint, dict[str, Any]]:
        return self._finish(at, self._gather(at))

    def _gather(self, at: Checkpoint) -> Gathered:
        """Ask, wait for all, accept."""
        round_ = at.state.round + 1
        asked, sent, control = self._ask(at)
        intake = self._intake(at, asked, sent)
        self.transport.push(round_, sent)
        collected = self.transport.pull(list(asked), self.patience, intake.take)
        updates, rejected = intake.close(collected.replies)
        busy = {reply.client: reply.update_time_s for reply in collected.replies if reply.blob is not None}
        retention = {client: a.plan.retention for client, a in asked.items()}
        return Gathered(
            asked,
            sum(sent.sizes.values()),
            intake.nbytes,
            collected.replies,
            updates,
            rejected,
            collected.seconds,
            control + sent.seconds + intake.seconds,
            retention,
            busy,
        )

    def _intake(self, at: Checkpoint, asked: Mapping[str, Assignment], sent: Outbox) -> Intake:
        """What takes this round's replies: one that sums them as they come where the algorithm's merge allows it."""
        summing = getattr(self.algorithm, "summing", None)
        how = summing(self.setting, at.state) if summing else None
        running = None
        if how is not None and asked:
            running = RunningMean(at.state.model, {client: self.setting.samples[client] for client in asked}, how)
        samples = {client: self.setting.samples[client] for client in self.setting.clients}
        return Intake(asked, sent.sizes, at.state.round + 1, samples, running)

    def _ask(self, at: Checkpoint) -> tuple[dict[str, Assignment], Outbox, float]:
        """Who is asked for what in the next round, the messages that say so, and the seconds that took; making the
        messages takes more (``Outbox.seconds``)."""
        started = perf_counter()
        state = replace(at.state, busy=frozenset(at.flight))
        asked = {a.client: a for a in self.algorithm.assign(self.setting, state) if a.client not in at.flight}
        packer = Packer()
        sent = Outbox(asked, lambda client: self._encode(asked[client], at.held, at.state.round + 1, packer))
        return asked, sent, perf_counter() - started

    def _finish(self, at: Checkpoint, found: Gathered) -> tuple[Checkpoint, dict[str, Any]]:
        """Merge, judge, record."""
        round_ = at.state.round + 1
        started = perf_counter()
        state = self.algorithm.merge(self.setting, at.state, found.updates)
        control = found.control_s + perf_counter() - started
        self._refuse_diverged(state)

        traffic = {
            "upload_bytes": found.upload_bytes,
            "download_bytes": found.download_bytes,
        }
        time_s = at.time_s + found.seconds
        last = round_ == self.setting.rounds
        told = getattr(self.transport, "facts", None)
        transport = told() if told else None
        verdict = dict.fromkeys(("accuracy", "loss", "client_accuracy", "calibration"))
        if last or round_ % self.evaluate_every == 0:
            state, verdict = self._judge(state)
        calibration = verdict.pop("calibration")
        record = {
            "round": round_,
            "time_s": time_s,
            **verdict,
            **traffic,
            "participants": [update.client for update in found.updates],
            "rejected": found.rejected,
            "retention": found.retention,
            "update_time_s": {reply.client: reply.update_time_s for reply in found.replies},
            "parts_s": {reply.client: dict(reply.parts_s) for reply in found.replies},
            "utilisation": utilisation(found.busy_s, found.seconds, len(self.setting.clients)),
            **found.more,
            "calibration": calibration,
        }
        facts = getattr(self.algorithm, "facts", None)
        if facts is not None:
            record["facts"] = facts(self.setting, state)
        if transport is not None:
            record["transport"] = transport
        totals = {
            "upload_bytes": at.totals["upload_bytes"] + traffic["upload_bytes"],
            "download_bytes": at.totals["download_bytes"] + traffic["download_bytes"],
            "rejected": at.totals["rejected"] + len(found.rejected),
            "control_wall_s": at.totals["control_wall_s"] + control,
            "overhead_bytes": at.totals["overhead_bytes"] + self._plan_bytes(found.asked, at.held),
        }
        # A device that failed may have lost what it was sent: it is told its plan again.
        held = {**at.held, **{client: a.plan for client, a in found.asked.items()}}
        held = {client: plan for client, plan in held.items() if client not in found.rejected}
        devices = dict(self.transport.memory())
        return Checkpoint(state, held, time_s, totals, devices, found.flight, at.experiment), record

    def judged(self, at: Checkpoint, record: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, Any]]:
        """``at`` and its ``record`` as they would be had this been the last round from the start."""
        state, verdict = self._judge(at.state)
        return replace(at, state=state), {**record, **verdict}

    def _judge(self, state: State) -> tuple[State, dict[str, Any]]:
        """``state`` calibrated where the algorithm asks for it, and what its round's record says of it."""
        calibration = None
        if self.algorithm.calibrate:
            state, calibration = self._calibrated(state, state.round)
            told = getattr(self.transport, "facts", None)
            if told:
                calibration["transport"] = told()
        judged = self.evaluate(state.model)
        return state, {
            "accuracy": judged.accuracy,
            "loss": judged.loss,
            "client_accuracy": dict(judged.clients) if judged.clients else None,
            "calibration": calibration,
        }

    @staticmethod
    def _refuse_diverged(state: State) -> None:
        """Every update was finite; their merge need not be. No round would come back from that."""
        for name, tensor in state.model.items():
            if tensor.is_floating_point() and not wire.all_finite(tensor):
                raise EdgePruneError(
                    f"the run diverged, the merged tensor {name!r} holds a value that is not finite; start it anew "
                    "with a smaller lr or server_lr"
                )

    def _calibrated(self, state: State, round_: int) -> tuple[State, dict[str, Any]]:
        """``state`` with batch-norm statistics pooled from the devices' own data, and what finding them cost.

        Training does not need them (it normalises by each batch), so they change no weight, and a run that evaluates
        more often trains the same model. Their cost is kept apart from the training clock: the caller adds the one
        calibration that the model in use needs.
        """
        names = [name for name in state.model if name.endswith((MEAN, VAR))]
        cost: dict[str, Any] = {"time_s": 0.0, "upload_bytes": 0, "download_bytes": 0, "rejected": {}}
        model = dict(state.model)
        for number in range(self.algorithm.calibrate if names else 0):
            payload = model if number == 0 else {name: model[name] for name in names}
            found = self._statistics(payload, {name: model[name] for name in names}, number == 0, round_, cost)
            if not found:
                break
            model.update(pooled(found))
        return replace(state, model=model), cost

    def _statistics(
        self,
        payload: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        first: bool,
        round_: int,
        cost: dict[str, Any],
    ) -> list[tuple[int, Mapping[str, Tensor]]]:
        """One pass over everybody's data: (samples, statistics) of each device that answered well; adds to ``cost``."""
        plan = SubmodelPlan.full(self.setting.graph).id
        header = {"batch_size": self.setting.recipe.batch_size, "first": first}
        clients = [client for client in self.setting.clients if client not in cost["rejected"]]

        def asking(client: str) -> bytes:
            drawn = {**header, "seed": seed_of(self.seed, round_, client)}
            return wire.encode(wire.Message("calibrate", round_, client, plan, payload, drawn))

        sent = Outbox(clients, asking)
        self.transport.push(round_, sent, "statistics")
        found: list[tuple[int, Mapping[str, Tensor]]] = []
        collected = self.transport.pull(clients, self.patience)
        for reply in collected.replies:
            samples = self.setting.samples[reply.client]
            cost["upload_bytes"] += len(reply.blob or b"")
            try:
                message = checked(reply, "statistics", plan, expected, sent.sizes[reply.client], round_, samples)
                found.append((samples, message.tensors))
            except EdgePruneError as error:
                cost["rejected"][reply.client] = str(error)
        cost["time_s"] += collected.seconds
        cost["download_bytes"] += sum(sent.sizes.values())
        return found

    def _encode(self, asked: Assignment, held: Mapping[str, SubmodelPlan], round_: int, packer: Packer) -> bytes:
        header = {"recipe": asdict(asked.recipe), "seed": seed_of(self.seed, round_, asked.client)}
        job = {key: value for key, value in asdict(asked.job).items() if value != getattr(Job(), key)}
        if job:
            header["job"] = job
        known = asked.client in held and held[asked.client].id == asked.plan.id
        kept = b"" if known else asked.plan.kept_bytes()
        whole = {name: tensor for name, tensor in asked.state.items() if name not in asked.masks}
        packed = packer.packed(asked)
        return wire.encode(
            wire.Message("assignment", round_, asked.client, asked.plan.id, whole, header, kept=kept, packed=packed)
        )

    @staticmethod
    def _plan_bytes(assignments: Mapping[str, Assignment], held: Mapping[str, SubmodelPlan]) -> int:
        """Bytes that only the pruning costs: plans sent because they changed."""
        changed = (a for a in assignments.values() if a.client in held and held[a.client].id != a.plan.id)
        return sum(len(a.plan.kept_bytes()) for a in changed)


def utilisation(busy_s: Mapping[str, float], seconds: float, clients: int) -> float | None:
    """Busy device-seconds over those that passed; None for a round without length. Busy is from send to receipt."""
    return sum(busy_s.values()) / (seconds * clients) if seconds > 0 else None


class Packer:
    """The masked tensors of one round's assignments, packed once for all clients that are sent the same ones."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], dict[str, wire.PackedTensor]] = {}

    def packed(self, asked: Assignment) -> dict[str, wire.PackedTensor]:
        """By name; the assignments of the round must all be alive."""
        key = (id(asked.state), id(asked.masks))
        if key not in self._made:
            each = asked.masks.items()
            self._made[key] = {name: wire.pack_tensor(asked.state[name], mask, name=name) for name, mask in each}
        return self._made[key]


def seed_of(seed: int, round_: int, client: str) -> int:
    """The seed of one client's local work in one round: a hash, so that it depends on nothing else."""
    digest = hashlib.sha256(f"{seed}/{round_}/{client}".encode()).digest()
    return int.from_bytes(digest[:6], "little")
