"""A round's messages, made when they are sent: who sends one after the other holds one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter


class Outbox(Mapping[str, bytes]):
    """``make(client)`` for each of ``clients``. ``sizes``: bytes of those made so far; ``seconds``: what making them
    took."""

    def __init__(self, clients: Iterable[str], make: Callable[[str], bytes]) -> None:
        self._clients = dict.fromkeys(clients)
        self._make = make
        self.sizes: dict[str, int] = {}
        self.seconds = 0.0

    def __getitem__(self, client: str) -> bytes:
        if client not in self._clients:
            raise KeyError(client)
        began = perf_counter()
        blob = self._make(client)
        self.seconds += perf_counter() - began
        self.sizes[client] = len(blob)
        return blob

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)
