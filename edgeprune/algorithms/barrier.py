"""For whom a round waits: a value of the algorithm."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class Barrier:
    """A round ends with the ``need``-th answer that can be used (0: with the last of all that were asked).

    ``grace``: after that answer the round stays open for this share of the time it has lasted so far, for those who are
    nearly done. Who has not answered when it ends goes on with the weights it was sent; its update belongs to the round
    in which it arrives, with a staleness of as many rounds as passed since it was sent.
    """

    need: int = 0
    grace: float = 0.0

    def __post_init__(self) -> None:
        if self.need < 0:
            raise EdgePruneError(f"a barrier waits for {self.need} answers; give a number of clients, 0 for all")
        if not (math.isfinite(self.grace) and self.grace >= 0):
            raise EdgePruneError(f"a barrier's grace is {self.grace}; give a share of the round's time, 0 or more")

    @property
    def synchronous(self) -> bool:
        """Whether nobody is under way when a round ends."""
        return self.need == 0


ALL, NONE = Barrier(), Barrier(1)
