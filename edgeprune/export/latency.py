"""How long ONNX Runtime takes for one input, for several files in the same minute."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

from torch import Tensor

from edgeprune.export.parity import as_float32, rows_around, session
from edgeprune.onnx_session import fixed_batch


def median_latencies(
    paths: Sequence[str | os.PathLike[str]],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    seconds: float = 0.5,
    warmup: int = 5,
    least: int = 20,
) -> list[float]:
    """Median seconds of one run with the first row of ``inputs``, one figure per file (or as many rows as it takes).

    The files take turns run by run, so that a machine that slows down slows all of them. ``seconds`` is the budget per
    file; ``least`` runs are made whatever they cost.
    """
    rows = as_float32((inputs,) if isinstance(inputs, Tensor) else inputs)
    sessions = [session(path, threads) for path in paths]
    feeds = []
    for runtime in sessions:
        names, size = [entry.name for entry in runtime.get_inputs()], fixed_batch(runtime) or 1
        asked = [x[rows_around(0, size, len(x))].numpy() for x in rows]
        feeds.append(dict(zip(names, asked, strict=True)))
    for runtime, feed in zip(sessions, feeds, strict=True):
        for _ in range(warmup):
            runtime.run(None, feed)
    times: list[list[float]] = [[] for _ in sessions]
    deadline = time.perf_counter() + seconds * len(sessions)
    while len(times[0]) < least or time.perf_counter() < deadline:
        for runtime, feed, taken in zip(sessions, feeds, times, strict=True):
            began = time.perf_counter()
            runtime.run(None, feed)
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]
