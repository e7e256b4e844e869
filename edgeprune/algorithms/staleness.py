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
class Discount:
    """``Discount("hinge", a, b)(tau)`` is in (0, 1]."""

    kind: Kind = "polynomial"
    a: float = 0.5
    b: int = 4

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise EdgePruneError(f"algorithm.staleness is {self.kind!r}{nearest(self.kind, get_args(Kind))}")
        if not (math.isfinite(self.a) and self.a > 0):
            raise EdgePruneError(f"algorithm.staleness_a is {self.a}; it must be greater than 0")
        if self.b < 0:
            raise EdgePruneError(f"algorithm.staleness_b is {self.b}; it is a number of rounds, 0 or more")

    def __call__(self, tau: int) -> float:
        """s(tau)."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "polynomial":
            return float((tau + 1) ** -self.a)
        return 1.0 if tau <= self.b else 1 / (self.a * (tau - self.b) + 1)


@dataclass(frozen=True)
class Discounting:
    """The fields with which an algorithm's configuration chooses s."""

    staleness: Kind = "polynomial"
    staleness_a: float = 0.5
    staleness_b: int = 4

    def discount(self) -> Discount:
        """s."""
        return Discount(self.staleness, self.staleness_a, self.staleness_b)
