"""Who takes a round's replies as they come: checked at once, summed at once where the algorithm's merge allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from edgeprune.algorithms.protocol import Assignment, Update
from edgeprune.algorithms.running_mean import RunningMean, Summed
from edgeprune.engine.acceptance import accept
from edgeprune.engine.transport import Reply
from edgeprune.errors import EdgePruneError


class Intake:
    """``sizes``: the bytes that each was sent, as they become known; ``samples``: of every client, in the fleet's
    order; ``running``: what sums the updates, None where they are kept.

    ``nbytes``: of all replies; ``seconds``: what summing them took.
    """

    def __init__(
        self,
        asked: Mapping[str, Assignment],
        sizes: Mapping[str, int],
        round_: int,
        samples: Mapping[str, int],
        running: RunningMean | None,
    ) -> None:
        self._asked, self._sizes, self._round = asked, sizes, round_
        self._samples, self._running = samples, running
        self._accepted: dict[str, Update] = {}
        self._rejected: dict[str, str] = {}
        self.nbytes = 0
        self.seconds = 0.0

    def take(self, reply: Reply) -> Reply:
        """Look at a reply, once for each client; what is left of it, which is no bytes."""
        name = reply.client
        self.nbytes += len(reply.blob or b"")
        try:
            update = accept(reply, self._asked[name], self._sizes[name], self._round, self._samples[name])
            if self._running is not None:
                began = perf_counter()
                update = self._running.add(update)
                self.seconds += perf_counter() - began
            self._accepted[name] = update
        except EdgePruneError as error:
            self._rejected[name] = str(error)
        return replace(reply, blob=b"" if reply.blob is not None else None)

    def close(self, replies: Sequence[Reply]) -> tuple[Sequence[Update], dict[str, str]]:
        """The updates that may be merged, in the setting's order, and for each other client of ``replies``, which were
        all taken but for those without bytes, the reason why not."""
        for reply in replies:
            if reply.blob is None:
                self.take(reply)
        updates: Sequence[Update] = [self._accepted[client] for client in self._samples if client in self._accepted]
        if self._running is not None:
            updates = Summed(updates, self._running)
        return updates, {
            reply.client: self._rejected[reply.client] for reply in replies if reply.client in self._rejected
        }
