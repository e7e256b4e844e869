"""How much an update counts that was trained on weights of some rounds ago (Xie et al., 2019, arXiv 1903.03934).

tau             rounds between the weights that a client was sent and those that its update meets
constant        s(tau) = 1
polynomial      s(tau) = (tau + 1)^-a
hinge           s(tau) = 1 for tau <= b, otherwise 1 / (a (tau - b) + 1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgeprune.errors import EdgePruneError, nearest

Kind = Literal["constant", "polynomial", "hinge"]


@dataclass(frozen=True)
class Discounting:
    """The fields with which an algorithm's configuration chooses s: its kind, a and b."""

    staleness: Kind = "polynomial"
    staleness_a: float = 0.5
    staleness_b: int = 4

    def check_staleness(self) -> None:
        """One sentence of EdgePruneError for a configuration that means nothing."""
        if self.staleness not in get_args(Kind):
            raise EdgePruneError(f"algorithm.staleness is {self.staleness!r}{nearest(self.staleness, get_args(Kind))}")
        if not (math.isfinite(self.staleness_a) and self.staleness_a > 0):
            raise EdgePruneError(f"algorithm.staleness_a is {self.staleness_a}; it must be greater than 0")
        if self.staleness_b < 0:
            raise EdgePruneError(f"algorithm.staleness_b is {self.staleness_b}; it is a number of rounds, 0 or more")

    def discount(self, tau: int) -> float:
        """s(tau), in (0, 1]."""
        if self.staleness == "constant":
            return 1.0
        if self.staleness == "polynomial":
            return float((tau + 1) ** -self.staleness_a)
        late = tau - self.staleness_b
        return 1.0 if late <= 0 else 1 / (self.staleness_a * late + 1)
