"""Latency, throughput and energy of an ONNX file in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.bench.meter import Idle, Meter, Result
from edgeprune.errors import EdgePruneError
from edgeprune.onnx_session import fixed_batch, import_quiet, left_out
from edgeprune.ops.memory import MOST_ELEMENTS

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def measure_onnx(
    path: Path,
    meter: Meter,
    *,
    batches: Sequence[int] = (1, 32),
    seconds: float = 5.0,
    repeats: int = 3,
    thread_count: int = 1,
    provider: str = "CPU",
    idle_s: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Result], Idle, dict[str, Any]]:
    """(a result for every batch size, idle power, facts about the file). Batch 1 is MLPerf's single-stream."""
    session, facts = open_session(path, thread_count, provider)
    say("idle")
    before = meter.idle(idle_s)
    results = []
    for batch in batches:
        name = "single-stream" if batch == 1 else "offline"
        say(f"{name}, batch {batch}")
        feed = made_up_feed(session, batch, path)
        results.append(
            meter.measure(name, partial(session.run, None, feed), batch=batch, seconds=seconds, repeats=repeats)
        )
    return results, Idle(before, meter.idle(idle_s)), facts


def open_session(path: Path, threads: int, provider: str) -> tuple[Any, dict[str, Any]]:
    """(the loaded file, facts about it). Raises EdgePruneError."""
    try:
        onnxruntime = import_quiet()
    except ImportError:
        raise EdgePruneError("bench onnx needs ONNX Runtime; pip install 'edgeprune[onnx]'") from None
    if not path.is_file():
        raise EdgePruneError(f"{path}: there is no such file; 'edgeprune export' writes one")
    present = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}
    if provider.lower() not in present:
        raise EdgePruneError(
            f"bench onnx: this ONNX Runtime has no provider {provider!r}; it has {', '.join(sorted(present))}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=[present[provider.lower()]],
            disabled_optimizers=left_out(path) if provider.lower() == "cpu" else [],
        )
    except Exception as error:
        raise EdgePruneError(f"{path}: ONNX Runtime cannot read it ({str(error).splitlines()[0]})") from None
    facts = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "onnxruntime": onnxruntime.__version__,
        "provider": session.get_providers()[0],
        "metadata": dict(session.get_modelmeta().custom_metadata_map),
    }
    return session, facts


def batch_sizes(
    paths: Sequence[Path], asked: Sequence[int], threads: int = 1, provider: str = "CPU"
) -> tuple[int, ...]:
    """What is asked for; by default 1 and 32, or the one size that a file takes. EdgePruneError where they differ."""
    sizes = tuple(asked)
    for path in paths:
        session = open_session(path, threads, provider)[0]
        only = fixed_batch(session)
        sizes = sizes or (() if only is None else (only,))
        for size in sizes:
            _check_takes(session, size, path)
    return sizes or (1, 32)


def made_up_feed(session: Any, batch: int, path: Path) -> dict[str, np.ndarray]:
    """Random inputs of ``batch`` rows that the file was seen to run on."""
    _check_takes(session, batch, path)
    feed = {entry.name: _made_up(entry, batch, path) for entry in session.get_inputs()}
    try:
        session.run(None, feed)
    except Exception as error:  # the runtime has its own exception types
        raise EdgePruneError(
            f"{path}: batch {batch} does not run ({str(error).splitlines()[0]}); try another --batch"
        ) from None
    return feed


def _check_takes(session: Any, batch: int, path: Path) -> None:
    only = fixed_batch(session)
    if only not in (None, batch):
        raise EdgePruneError(f"{path}: takes batches of {only} alone; give --batch {only}")


def _made_up(entry: Any, batch: int, path: Path) -> np.ndarray:
    """Random values in the shape that the file asks for; free dimensions after the first become 1."""
    kind = _TYPES.get(entry.type)
    if kind is None:
        raise EdgePruneError(f"{path}: input {entry.name!r} is {entry.type}, which cannot be made up")
    shape = [size if isinstance(size, int) else (batch if i == 0 else 1) for i, size in enumerate(entry.shape)]
    if not 0 < math.prod(shape) <= MOST_ELEMENTS:
        raise EdgePruneError(f"{path}: input {entry.name!r} of shape {shape} cannot be made up; it must fit memory")
    random = np.random.default_rng(0)
    return random.integers(0, 2, shape).astype(kind) if kind is np.int64 else random.standard_normal(shape).astype(kind)
