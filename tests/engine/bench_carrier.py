"""A carrier to real resident devices in this process, whose deliveries a test may spoil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeprune.engine import frames
from edgeprune.engine.carrier import Delivery
from edgeprune.engine.frames import Frame
from edgeprune.engine.resident import Resident, residents

Spoil = Callable[["BenchCarrier", Frame, Delivery], Sequence[Delivery]]


class BenchCarrier:
    """``spoil(carrier, asked, answer)``: what is delivered in place of the honest ``answer``; ``history`` keeps the
    honest ones."""

    def __init__(self, devices: Mapping[str, Resident], spoil: Spoil = lambda _, __, answer: [answer]) -> None:
        self._devices = devices
        self._spoil = spoil
        self._waiting: list[Delivery] = []
        self.history: list[tuple[Frame, Delivery]] = []
        self._now = 0.0

    def devices(self) -> Sequence[str]:
        return list(self._devices)

    def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
        asked = Frame.from_bytes(data, frames.ASKS)
        assert asked.token == token and asked.client == device
        if asked.verb == "hello":
            answer = self._devices[device].hello(token)
        elif asked.verb == "bye":
            answer = Frame("hello", device, token)
        else:
            answer = self._devices[device].work(asked)
        honest = Delivery(device, answer.to_bytes(), token)
        if asked.verb == "work":
            self._waiting += self._spoil(self, asked, honest)
            self.history.append((asked, honest))
        else:
            self._waiting.append(honest)

    def clock(self) -> float:
        """Seconds that pass only where nothing is there to be received, however slow this machine is."""
        return self._now

    def receive(self, seconds: float) -> Sequence[Delivery]:
        self._now += 0.01 if self._waiting else seconds
        found, self._waiting = self._waiting, []
        return found

    def forget(self, tokens: Sequence[str]) -> None:
        pass


def bench(experiment, folder: Path, spoil: Spoil | None = None) -> BenchCarrier:
    """All devices of ``experiment``, here."""
    names = [f"device-{i}" for i in range(experiment.fleet.devices)]
    made = residents(experiment, names, None, folder)
    return BenchCarrier(made) if spoil is None else BenchCarrier(made, spoil)


def rewritten(delivery: Delivery, **changes) -> Delivery:
    """The delivery with other words in its envelope."""
    assert delivery.data is not None
    return replace(delivery, data=replace(Frame.from_bytes(delivery.data, frames.ANSWERS), **changes).to_bytes())
