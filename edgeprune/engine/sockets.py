"""A carrier to resident workers on this machine: one connection to a Unix socket for each envelope."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeprune.engine import frames
from edgeprune.engine.carrier import Delivery, drained
from edgeprune.errors import EdgePruneError


class SocketCarrier:
    """``paths``: where each device's worker listens; several devices may share one."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = {device: str(path) for device, path in paths.items()}
        self._delivered: queue.SimpleQueue[Delivery] = queue.SimpleQueue()

    def devices(self) -> Sequence[str]:
        """Those whose sockets are there."""
        return [device for device, path in self._paths.items() if Path(path).is_socket()]

    def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
        """Ask in a thread of its own."""
        threading.Thread(target=self._ask, args=(device, token, data, seconds), daemon=True).start()

    def receive(self, seconds: float) -> Sequence[Delivery]:
        """Everything that has come."""
        return drained(self._delivered, seconds)

    def forget(self, tokens: Sequence[str]) -> None:
        """Late answers still come, and are counted."""

    def _ask(self, device: str, token: str, data: bytes, seconds: float) -> None:
        try:
            answer = frames.ask(self._paths[device], data, seconds)
        except EdgePruneError as error:
            self._delivered.put(Delivery(device, None, token, str(error)))
        else:
            self._delivered.put(Delivery(device, answer, token))
