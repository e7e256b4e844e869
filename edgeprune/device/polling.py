"""A sampler that reads files or a library in a thread of this process: for sources that cannot block."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgeprune.device.samples import Recording, Sample, forget


class PollingSampler:
    """Calls ``read`` every ``interval_s`` until :meth:`stop`. An OSError or ValueError ends it with a sentence."""

    def __init__(self, source: str, rail: str | None, read: Callable[[], Sample], interval_s: float = 0.5) -> None:
        self._source = source
        self._rail = rail
        self._read = read
        self._interval = interval_s
        self._samples: list[Sample] = []
        self._fault: str | None = None
        self.instead_of: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"{source} sampler", daemon=True)

    def start(self) -> PollingSampler:
        """Take the first sample, then go on in a thread."""
        self._take()
        if self._fault is None:
            self._thread.start()
        return self

    def recording(self) -> Recording:
        """What was seen so far."""
        seen = tuple(self._samples)
        return Recording(self._source, seen, self._rail, self._interval, 0, self._fault, self.instead_of)

    def forget(self, before_s: float) -> None:
        """Drop samples older than ``before_s``, but the last of them."""
        forget(self._samples, before_s)

    def stop(self) -> Recording:
        """A last sample, so that the window's end is covered, and everything that was seen."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(5)
        return self.recording()

    def __enter__(self) -> PollingSampler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _poll(self) -> None:
        while not self._end.wait(self._interval) and self._fault is None:
            self._take()
        if self._fault is None:
            self._take()

    def _take(self) -> None:
        try:
            self._samples.append(self._read())
        except (OSError, ValueError) as error:
            self._fault = f"power: not measured: {self._source} stopped answering ({error}); measure again"


class NoSampler:
    """Power cannot be had here; ``why`` says so in one sentence and what would change it."""

    def __init__(self, why: str) -> None:
        self._why = why

    def start(self) -> NoSampler:
        """Nothing to begin."""
        return self

    def recording(self) -> Recording:
        """Nothing was seen, and why."""
        return Recording("none", fault=self._why)

    def forget(self, before_s: float) -> None:
        """Nothing to forget."""

    def stop(self) -> Recording:
        """Nothing was seen, and why."""
        return self.recording()

    def __enter__(self) -> NoSampler:
        return self

    def __exit__(self, *_: object) -> None:
        pass
