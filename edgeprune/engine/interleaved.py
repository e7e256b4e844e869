"""The server's loop where a round does not wait for everybody: who is still training goes on, on its old weights.

a round     who is idle is asked; answers are taken one by one as they come, each against what that device was sent;
            with the K-th that can be used the round ends (after its grace), and what came is merged
under way   a device's assignment is kept as it was sent until its answer comes: the weights that its change is
            measured from, and the round that its staleness is counted from. An answer that nobody waits for (a
            second copy, or after it was given up) is counted as a stray, its bytes too, and merged nowhere
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeprune.algorithms.protocol import Update
from edgeprune.engine.acceptance import accept
from edgeprune.engine.checkpoint import Checkpoint, Sent
from edgeprune.engine.rounds import Gathered, Server
from edgeprune.engine.transport import Interleaving, Reply
from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class InterleavedServer(Server):
    """The same loop over a transport that interleaves."""

    transport: Interleaving

    def _gather(self, at: Checkpoint) -> Gathered:
        round_ = at.state.round + 1
        asked, sent, control = self._ask(at)
        self.transport.begin(round_, sent, at.time_s, self.patience)
        flight = dict(at.flight)
        flight.update({c: Sent(a, round_, at.time_s, sent.sizes[c]) for c, a in asked.items()})
        downloaded, uploaded = sum(sent.sizes.values()), 0
        working = {client: flight[client] for client in self.setting.clients if client in flight}

        barrier = self.algorithm.barrier
        need = min(barrier.need or len(flight), len(flight))
        now, end = at.time_s, math.inf
        accepted: dict[str, Update] = {}
        rejected: dict[str, str] = {}
        replies: list[Reply] = []
        strays: list[str] = []
        came: dict[str, float] = {}
        while flight and not (accepted and len(accepted) >= need and now >= end):
            arrival = self.transport.next(end)
            if arrival is None:
                now = end if end < math.inf else now
                break
            now, name = max(now, arrival.at_s), arrival.reply.client
            uploaded += len(arrival.reply.blob or b"")
            if name not in flight or flight[name].round != arrival.round:
                strays.append(name)
                continue
            was = flight.pop(name)
            replies.append(replace(arrival.reply, blob=None))
            try:
                update = accept(arrival.reply, was.asked, was.nbytes, was.round, self.setting.samples[name])
                accepted[name] = replace(update, staleness=round_ - was.round)
            except EdgePruneError as error:
                rejected[name] = str(error)
            if arrival.reply.blob is not None:
                came[name] = now
            if len(accepted) == need and end == math.inf:
                end = now + barrier.grace * (now - at.time_s)

        updates = [accepted[client] for client in self.setting.clients if client in accepted]
        more = {
            "staleness": {update.client: update.staleness for update in updates},
            "in_flight": [client for client in self.setting.clients if client in flight],
            "strays": strays,
        }
        return Gathered(
            asked,
            downloaded,
            uploaded,
            replies,
            updates,
            rejected,
            now - at.time_s,
            control + sent.seconds,
            {client: was.asked.plan.retention for client, was in working.items()},
            _busy(working, came, flight, at.time_s, now),
            flight,
            more,
        )


def _busy(
    working: Mapping[str, Sent], came: Mapping[str, float], flight: Mapping[str, Sent], begin_s: float, end_s: float
) -> dict[str, float]:
    """Seconds of [begin_s, end_s] in which each device was at work; what was given up counts as idle."""
    until = {**came, **dict.fromkeys(flight, end_s)}
    return {c: until[c] - max(begin_s, was.at_s) for c, was in working.items() if c in until}
