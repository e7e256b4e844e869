"""The local engine's transport where rounds do not wait for everybody: a queue of answers on the virtual clock.

A device trains when it is sent its work (its bytes do not depend on anything later), and its answer waits in the queue
for the time at which it would have come. So devices interleave as they would in the field: one may begin its third
round while another is still at its first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.engine.executor import Executor
from edgeprune.engine.local import LocalTransport
from edgeprune.engine.transport import Arrival, Reply
from edgeprune.engine.worker import Worker
from edgeprune.fleet import Fleet, Times
from edgeprune.pruning import ChannelGraph

PENDING = ":answer"  # no tensor's name has a colon
PARTS = ("download", "compute", "rebuild", "upload")


@dataclass(frozen=True, order=True)
class _Pending:
    """Ordered by time, and at one time by the order in which work was sent."""

    at_s: float
    number: int
    round: int
    reply: Reply


class EventTransport(LocalTransport):
    """``memory`` gives the answers that are on their way to a checkpoint; ``recall`` takes them back."""

    def __init__(
        self,
        fleet: Fleet,
        workers: Mapping[str, Worker],
        graph: ChannelGraph,
        times: Mapping[str, Times],
        seed: int,
        executor: Executor,
    ) -> None:
        super().__init__(fleet, workers, graph, times, seed, executor)
        self._queue: list[_Pending] = []
        self._number = 0
        self._longest = 0.0  # update time of any device so far: what the server knows of how long to wait

    def begin(self, round_: int, assignments: Mapping[str, bytes], now_s: float, patience: float) -> None:
        """Train, and queue the answers.

        One that will not come is given up ``patience`` times the longest update time after it was sent.
        """
        self.push(round_, assignments)
        replies = self._answers(list(assignments))
        arrived = [reply.update_time_s for reply in replies if reply.blob is not None]
        self._longest = max([self._longest, *arrived])
        for reply in replies:
            if reply.blob is None:
                reply = replace(reply, update_time_s=patience * (self._longest or reply.update_time_s))
            self._put(now_s + reply.update_time_s, round_, reply)
            if self._fleet[reply.client].fault_at(round_) == "duplicate":
                self._put(now_s + reply.update_time_s + reply.parts_s["upload"], round_, reply)

    def next(self, until_s: float) -> Arrival | None:
        """The first answer of the queue, if it comes by ``until_s``."""
        if not self._queue or self._queue[0].at_s > until_s:
            return None
        first = self._queue.pop(0)
        return Arrival(first.reply, first.at_s, first.round)

    def memory(self) -> Mapping[str, Tensor]:
        """What the devices owe, and the queue: each answer's bytes, and its times in seconds in double."""
        kept = dict(super().memory())
        kept[f"/{PENDING}"] = torch.tensor([self._number, self._longest], dtype=torch.float64)
        for pending in self._queue:
            reply = pending.reply
            key = f"{reply.client}/{PENDING}{pending.number}"
            times = [pending.at_s, pending.round, reply.update_time_s, *(reply.parts_s[part] for part in PARTS)]
            kept[f"{key}.times"] = torch.tensor(times, dtype=torch.float64)
            for part, held in (("bytes", reply.blob), ("fault", reply.fault.encode())):
                if held:
                    kept[f"{key}.{part}"] = torch.frombuffer(bytearray(held), dtype=torch.uint8)
        return kept

    def recall(self, kept: Mapping[str, Tensor]) -> None:
        """Take back what ``memory`` gave."""
        if f"/{PENDING}" in kept:
            number, self._longest = kept[f"/{PENDING}"].tolist()
            self._number = int(number)
        self._queue = []
        for key, times in kept.items():
            client, _, name = key.partition("/")
            if not (name.startswith(PENDING) and name.endswith(".times")):
                continue
            blob, fault = (kept.get(f"{key.removesuffix('.times')}.{part}") for part in ("bytes", "fault"))
            at_s, round_, update_time_s, *parts = times.tolist()
            reply = Reply(
                client,
                None if blob is None else blob.numpy().tobytes(),
                update_time_s,
                dict(zip(PARTS, parts, strict=True)),
                "" if fault is None else fault.numpy().tobytes().decode(),
            )
            number = int(name.removeprefix(PENDING).removesuffix(".times"))
            insort(self._queue, _Pending(at_s, number, int(round_), reply))

    def _put(self, at_s: float, round_: int, reply: Reply) -> None:
        self._number += 1
        insort(self._queue, _Pending(at_s, self._number, round_, reply))
