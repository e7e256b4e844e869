"""The port between server and devices: four verbs over opaque bytes. The server's loop knows nothing else of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Reply:
    """What came back from ``client``: bytes, or None if nothing came by the deadline.

    ``update_time_s`` runs from send to receipt; ``parts_s`` splits it where the transport knows how (download,
    compute, rebuild, upload). ``fault``: why nothing came, where more is known than that time was up.
    """

    client: str
    blob: bytes | None
    update_time_s: float
    parts_s: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""


Take = Callable[[Reply], Reply]


@dataclass(frozen=True)
class Collected:
    """What one wait brought: the replies in the order asked for, and the seconds from push to the end of the wait."""

    replies: tuple[Reply, ...]
    seconds: float


@dataclass(frozen=True)
class Arrival:
    """One answer, the time at which it came, and the round whose work it answers; without bytes it is given up then."""

    reply: Reply
    at_s: float
    round: int


class Transport(Protocol):
    """Moves assignments out and updates in."""

    def nodes(self) -> Sequence[str]:
        """The devices that can be asked now."""
        ...

    def push(self, round_: int, assignments: Mapping[str, bytes], kind: str = "update") -> None:
        """Send each named device its bytes. ``kind``: of the answers that are asked for, which take times of their
        own."""
        ...

    def pull(self, clients: Sequence[str], patience: float, take: Take | None = None) -> Collected:
        """Wait for ``clients``, in their order: at most ``patience`` times as long as the slowest that answered.

        ``take`` is given every reply that has bytes as soon as it is there; what it makes of it (still with bytes, be
        they none) is collected in its place.
        """
        ...

    def cancel(self, clients: Sequence[str]) -> None:
        """Their answers are no longer wanted."""
        ...

    def memory(self) -> Mapping[str, Tensor]:
        """What a checkpoint must keep of devices that end with this process; nothing where they live on."""
        ...


class Interleaving(Transport, Protocol):
    """A transport that also hands out answers one by one, as they come, while other devices go on."""

    def begin(self, round_: int, assignments: Mapping[str, bytes], now_s: float, patience: float) -> None:
        """Send each named device its bytes at ``now_s``; none of them is under way with anything else."""
        ...

    def next(self, until_s: float) -> Arrival | None:
        """The next answer that comes by ``until_s``; None if there is none."""
        ...
