"""Energy of pieces of work in a process that lives for days: bounded memory, and a source that fails is tried again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import TracebackType

from edgeprune.device.power import Sampler, open_sampler
from edgeprune.device.samples import Energy, now

LEAST_SAMPLES = 4
TEND_S, AGAIN_S = 30.0, 300.0


class EnergyMeter:
    """Samples power from its making until :meth:`close`. ``open_`` gives a started sampler, or one that says why not.

    Every ``tend_s`` seconds, in the background, samples of no use are dropped, and a source that was there and stopped
    answering is opened again when ``again_s`` seconds have passed since it was opened last.
    """

    def __init__(
        self, open_: Callable[[], Sampler] = open_sampler, tend_s: float = TEND_S, again_s: float = AGAIN_S
    ) -> None:
        self._open = open_
        self._tend_s, self._again_s = tend_s, again_s
        self._opened_s = now()
        self._sampler = open_()
        self._begun_s = math.inf
        self._end = threading.Event()
        self._tender = threading.Thread(target=self._tend, name="energy meter", daemon=True)
        if self._sampler.recording().fault is None:
            self._tender.start()

    @property
    def source(self) -> str:
        """Where power comes from, or why it is not measured; one line."""
        seen = self._sampler.recording()
        return seen.fault or f"power through {seen.source}, rail {seen.rail}"

    def begin(self) -> None:
        """The work begins."""
        self._begun_s = now()

    def finish(self) -> Energy:
        """What the rail gave since :meth:`begin`, idle power included. Not measured with fewer than four samples."""
        begun, self._begun_s = self._begun_s, math.inf
        return self._sampler.recording().energy(begun, now(), LEAST_SAMPLES, 0.0)

    def close(self) -> None:
        """Stop sampling."""
        self._end.set()
        if self._tender.is_alive():
            self._tender.join()
        self._sampler.stop()

    def _tend(self) -> None:
        while not self._end.wait(self._tend_s):
            self._sampler.forget(min(self._begun_s, now()))
            if self._sampler.recording().fault is not None and now() - self._opened_s >= self._again_s:
                self._opened_s = now()
                self._sampler.stop()
                self._sampler = self._open()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
