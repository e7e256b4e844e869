"""What an engine does for the port: it moves bytes to and from devices that it has authenticated."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Delivery:
    """What came from ``device`` for the envelope ``token``, by the carrier's own knowledge: bytes, or why there are
    none (``fault``)."""

    device: str
    data: bytes | None
    token: str
    fault: str = ""


def drained(delivered: queue.SimpleQueue[Delivery], seconds: float) -> list[Delivery]:
    """Everything that has come; waits for the first at most ``seconds``."""
    found: list[Delivery] = []
    try:
        found.append(delivered.get(timeout=max(seconds, 0.001)))
        while True:
            found.append(delivered.get_nowait())
    except queue.Empty:
        return found


class Carrier(Protocol):
    """What an engine does for the port. A ``device`` is whoever holds the key made for that name, nobody else."""

    def devices(self) -> Sequence[str]:
        """Those that can be reached now."""
        ...

    def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
        """Take ``data`` to ``device``; an answer that comes after ``seconds`` may be dropped. Must not wait."""
        ...

    def receive(self, seconds: float) -> Sequence[Delivery]:
        """What has come; waits for the first at most ``seconds``."""
        ...

    def forget(self, tokens: Sequence[str]) -> None:
        """Nobody waits for answers to these any more; what still comes may be given or not."""
        ...
