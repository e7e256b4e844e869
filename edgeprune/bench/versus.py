"""Two ONNX files against each other: run in turns, so that a slow minute of the machine meets both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.bench.onnx import made_up_feed, open_session


@dataclass(frozen=True)
class Versus:
    """Medians in milliseconds of every repeat, and what they give: ``speedup`` is the median of the repeats' ratios,
    ``low`` and ``high`` the extremes."""

    batch: int
    this_ms: tuple[float, ...]
    other_ms: tuple[float, ...]
    iterations: int

    @property
    def ratios(self) -> list[float]:
        """The other's time over this one's, per repeat."""
        return [other / this for this, other in zip(self.this_ms, self.other_ms, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        ratios = self.ratios
        own = {"speedup": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        return {**asdict(self), "this_ms": list(self.this_ms), "other_ms": list(self.other_ms), **own}


def compare(
    this: Path,
    other: Path,
    *,
    batches: Sequence[int] = (1, 32),
    seconds: float = 3.0,
    repeats: int = 3,
    least: int = 5,
    thread_count: int = 1,
    provider: str = "CPU",
    say: Callable[[str], None] = lambda text: None,
) -> list[Versus]:
    """``repeats`` windows of ``seconds`` at every batch size, the files taking turns run by run.

    Raises EdgePruneError where a file does not load or run.
    """
    sides = [(path, open_session(path, thread_count, provider)[0]) for path in (this, other)]
    found = []
    for batch in batches:
        say(f"against {other.name}, batch {batch}")
        feeds = [made_up_feed(session, batch, path) for path, session in sides]
        medians: list[list[float]] = [[], []]
        iterations = 0
        for _ in range(repeats):
            times: list[list[float]] = [[], []]
            end = time.perf_counter() + seconds
            while len(times[0]) < least or time.perf_counter() < end:
                for (_, session), feed, taken in zip(sides, feeds, times, strict=True):
                    began = time.perf_counter()
                    session.run(None, feed)
                    taken.append(time.perf_counter() - began)
            iterations += len(times[0])
            for side, taken in zip(medians, times, strict=True):
                side.append(statistics.median(taken) * 1e3)
        found.append(Versus(batch, tuple(medians[0]), tuple(medians[1]), iterations))
    return found
