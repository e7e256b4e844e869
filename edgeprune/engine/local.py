"""The local engine's transport: every device in this process, real training, virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune import wire
from edgeprune.algorithms.training import planned_steps
from edgeprune.engine.executor import Executor, Outcome
from edgeprune.engine.transport import Collected, Reply, Take
from edgeprune.engine.worker import Answer, Order, Worker
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import Device, Fleet, Times, Work, charge, size_of
from edgeprune.pruning import ChannelGraph

PLAN = ":plan"  # no tensor's name has a colon


class LocalTransport:
    """Has the workers' orders done by the executor and charges what their round would have taken on the fleet: by each
    device's ``times``, its own profile's where it has one."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, Worker],
        graph: ChannelGraph,
        times: Mapping[str, Times],
        seed: int,
        executor: Executor,
    ) -> None:
        self._fleet = {device.name: device for device in fleet.devices}
        self._workers = workers
        self._graph = graph
        self._times = times
        self._seed = seed
        self._executor = executor
        self._round = 0
        self._sent: Mapping[str, bytes] = {}

    def nodes(self) -> Sequence[str]:
        """Every device of the fleet; one that will not answer is found out by waiting, as in the field."""
        return tuple(self._fleet)

    def push(self, round_: int, assignments: Mapping[str, bytes], kind: str = "update") -> None:
        """Take the bytes; the work is done when they are asked for."""
        self._round = round_
        self._sent = assignments

    def pull(self, clients: Sequence[str], patience: float, take: Take | None = None) -> Collected:
        """Train and charge; the wait ends with the last arrival, or with the end of patience if one is missing."""
        replies = self._answers(clients, take)
        if replies and all(reply.fault for reply in replies):  # nothing of this fleet can go on
            raise EdgePruneError(f"{replies[0].client}: {replies[0].fault}")
        arrived = [reply.update_time_s for reply in replies if reply.blob is not None]
        waited = max(arrived or [reply.update_time_s for reply in replies] or [0.0])
        if len(arrived) < len(replies):
            waited *= patience
            replies = [reply if reply.blob is not None else replace(reply, update_time_s=waited) for reply in replies]
        return Collected(tuple(replies), waited)

    def cancel(self, clients: Sequence[str]) -> None:
        """Nothing to do: work begins when it is asked for."""

    def memory(self) -> Mapping[str, Tensor]:
        """What error feedback owes on every device, as "device/tensor", and beside it the plan whose weights these
        are (the server forgets that of a device which did not answer)."""
        kept: dict[str, Tensor] = {}
        for client, worker in self._workers.items():
            kept |= {f"{client}/{name}": tensor for name, tensor in worker.residual.items()}
            if worker.residual and worker.plan and (plan := worker.plan.kept_bytes()):
                kept[f"{client}/{PLAN}"] = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        return kept

    def _answers(self, clients: Sequence[str], take: Take | None = None) -> list[Reply]:
        """Everybody's reply, in the order asked for, or what ``take`` made of it."""
        sizes: dict[str, int] = {}
        replies: dict[str, Reply] = {}

        def keep(reply: Reply) -> None:
            replies[reply.client] = take(reply) if take and reply.blob is not None else reply

        def orders() -> Iterator[Order]:
            for client in clients:
                blob = self._sent[client]
                sizes[client] = len(blob)
                opened = self._workers[client].open(blob)
                if isinstance(opened, Answer):
                    keep(self._answered(client, len(blob), opened))
                else:
                    yield opened

        for order, done in self._executor(orders()):
            client = order.message.client
            keep(self._closed(client, sizes[client], order, done))
        return [replies[client] for client in clients]

    def _closed(self, client: str, sent: int, order: Order, done: Outcome) -> Reply:
        """The answer to an order, or as from a device of its own why there is none."""
        if isinstance(done, EdgePruneError):
            return self._failed(client, sent, order, done)
        try:
            answer = self._workers[client].close(order, done)
        except EdgePruneError as error:
            return self._failed(client, sent, order, error)
        return self._answered(client, sent, answer)

    def _failed(self, client: str, sent: int, order: Order, error: EdgePruneError) -> Reply:
        """No bytes, after the time that the work would have taken."""
        nothing = Answer(b"", order.plan, planned_steps(len(order.data), order.recipe), 0, order.rebuilt)
        return replace(self._charged(client, sent, nothing), fault=str(error))

    def _answered(self, client: str, sent: int, answer: Answer) -> Reply:
        blob = _spoiled(answer, self._fleet[client], self._round)
        return replace(self._charged(client, sent, answer), blob=blob)

    def _charged(self, client: str, sent: int, answer: Answer) -> Reply:
        """What the answer took, still without its bytes."""
        size = size_of(self._graph, answer.plan.counts, answer.plan.dropped)
        work = Work(sent, len(answer.blob), answer.steps, size.macs, int(answer.rebuilt), answer.forwards, size)
        cost = charge(self._fleet[client], work, self._times[client], round_=self._round, seed=self._seed)
        parts = {
            "download": cost.download_s,
            "compute": cost.compute_s,
            "rebuild": cost.rebuild_s,
            "upload": cost.upload_s,
        }
        return Reply(client, None, cost.total, parts)


def _spoiled(answer: Answer, device: Device, round_: int) -> bytes | None:
    """The answer's bytes as the device's fault of this round leaves them."""
    fault, blob = device.fault_at(round_), answer.blob
    if fault in (None, "duplicate"):
        return blob
    if fault == "drop":
        return None
    if fault == "truncated":
        return blob[: len(blob) // 2]
    message = wire.decode(blob, kind=("update", "statistics"), masks=answer.masks, keep_packed=True)
    packed = dict(message.packed)
    tensors = {**message.tensors, **{name: one.tensor() for name, one in packed.items()}}
    name = next((name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point()), None)
    if fault == "forged" or name is None:  # an answer without values can only be forged
        middle = len(blob) - 64
        return blob[:middle] + bytes(byte ^ 0x5A for byte in blob[middle:])
    tensor = tensors[name].clone()
    if fault == "nan":
        tensor.view(-1)[0] = float("nan")
    else:
        tensor = torch.cat([tensor, tensor])
    packed.pop(name, None)
    return wire.encode(replace(message, tensors={**message.tensors, name: tensor}, packed=packed))
