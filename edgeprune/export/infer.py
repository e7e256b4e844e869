"""An exported file at work: classes and accuracy on real data, prepared as the file's own metadata say."""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data import DataSet
from edgeprune.data.normalise import Standardise
from edgeprune.errors import EdgePruneError
from edgeprune.export import seal
from edgeprune.export.parity import rows_around, session
from edgeprune.export.targets import PRECISIONS
from edgeprune.onnx_session import fixed_batch
from edgeprune.ops.memory import MOST_ELEMENTS

MAX_CLASSES = 100_000
# What other inputs than ours are given: rows of the same kind, float or whole numbers, in the file's own width.
_WIDTHS = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
}


@dataclass(frozen=True)
class Inference:
    """``accuracy`` over ``targets`` targets (for text every character is one), None without any. ``times_s``: seconds
    of every full batch. ``chosen``: the class of every row; ``promised``: the accuracy in the file's metadata."""

    rows: int
    batch: int
    targets: int
    accuracy: float | None
    promised: float | None
    times_s: tuple[float, ...]
    chosen: np.ndarray
    precision: str


def infer(
    path: Path,
    x: Tensor,
    y: Tensor | None = None,
    *,
    normalise: Any = None,
    batch: int = 32,
    threads: int | None = None,
) -> Inference:
    """Run the file on the rows ``x`` [N, ...], as stored, in batches (of a file's own size, where it has one).

    Integers are normalised by the file's metadata, or by ``normalise`` where it says nothing; float32 rows are taken as
    they are, unless ``normalise`` is given. ``y``: the right classes, [N] or for text [N, L]. Raises EdgePruneError
    where the file does not load, takes other shapes, or does not give classes.
    """
    if not path.is_file():
        raise EdgePruneError(f"{path}: there is no such file; 'edgeprune export' writes one")
    if not len(x) or batch < 1:
        raise EdgePruneError(f"infer: {len(x)} rows in batches of {batch}; give at least one row and a batch of 1")
    seal.check(path)
    runtime = session(path, threads, f"infer: {path}")
    if len(runtime.get_inputs()) != 1:
        raise EdgePruneError(f"{path}: takes {len(runtime.get_inputs())} inputs; infer knows files with one")
    entry = runtime.get_inputs()[0]
    facts = metadata(runtime)
    prepare = _preparation(facts, x, normalise, path)
    right = targets = 0
    times: list[float] = []
    chosen = []
    fixed = fixed_batch(runtime)
    batch = fixed or batch
    if (fixed or 0) * x[0].numel() > MOST_ELEMENTS:
        raise EdgePruneError(f"{path}: takes batches of {fixed:,} rows alone, which do not fit memory; export another")
    for start in range(0, len(x), batch):
        rows = prepare(x[start : start + batch].clone())  # normalise may compute in place
        asked = len(rows)
        if fixed is not None and asked < fixed:  # filled up; what it says of the filling is not looked at
            rows = rows[rows_around(0, fixed, asked)]
        began = time.perf_counter()
        try:
            out = runtime.run(None, {entry.name: _as_wide(rows.numpy(), entry.type)})[0]
        except Exception as error:  # the runtime has its own exception types
            raise EdgePruneError(
                f"{path}: does not take rows of {tuple(rows.shape[1:])} {rows.dtype} ({_short(error)})"
            ) from None
        if len(rows) == batch or len(x) < batch:
            times.append(time.perf_counter() - began)
        if not isinstance(out, np.ndarray) or out.dtype.kind not in "fiub":
            raise EdgePruneError(f"{path}: its output is no array of numbers; infer knows files that give classes")
        if not out.ndim or len(out) != len(rows):
            raise EdgePruneError(
                f"{path}: its output {out.shape} does not go with {len(rows)} rows, one answer for each"
            )
        out = out[:asked]
        answer = y[start : start + batch].numpy() if y is not None else None
        classes = _classes(out, answer, path)
        chosen.append(classes)
        if answer is not None:
            right += int((classes == answer).sum())
            targets += answer.size
    promised = facts.get("accuracy")
    return Inference(
        rows=len(x),
        batch=batch,
        targets=targets,
        accuracy=right / targets if targets else None,
        promised=promised if isinstance(promised, float) and 0 <= promised <= 1 else None,
        times_s=tuple(times),
        chosen=np.concatenate(chosen),
        precision=facts["precision"] if facts.get("precision") in PRECISIONS else "not stated",
    )


def infer_on(path: Path, data: DataSet, *, batch: int = 32, threads: int | None = None) -> Inference:
    """The same on the test split of a loaded data set."""
    return infer(path, data.test.x, data.test.y, normalise=data.normalise, batch=batch, threads=threads)


def metadata(runtime: Any) -> dict[str, Any]:
    """The file's ``edgeprune.*`` entries without the prefix; texts that are JSON as what they say."""
    found = {}
    for key, value in runtime.get_modelmeta().custom_metadata_map.items():
        if key.startswith("edgeprune."):
            try:
                found[key.removeprefix("edgeprune.")] = json.loads(value)
            except (ValueError, RecursionError):
                found[key.removeprefix("edgeprune.")] = value
    return found


def _preparation(facts: dict[str, Any], x: Tensor, normalise: Any, path: Path) -> Any:
    written = facts.get("normalisation")
    if written and (not x.is_floating_point() or normalise is not None):
        try:
            own = Standardise(
                tuple(map(float, written["mean"])), tuple(map(float, written["std"])), float(written["unit"])
            )
            if own.unit == 0 or 0 in own.std or x.dim() < 2 or len(own.mean) != len(own.std):
                raise ValueError
            if len(own.mean) not in (1, x.shape[1]):
                raise ValueError
            return own
        except (KeyError, TypeError, ValueError):
            raise EdgePruneError(
                f"{path}: its metadata do not say how rows of {tuple(x.shape[1:])} are normalised; give float32 rows"
            ) from None
    if normalise is not None:
        return normalise
    if not x.is_floating_point() and x.dtype != torch.int64:
        raise EdgePruneError(f"{path}: its metadata hold no normalisation; give rows as float32, ready for the network")
    return lambda rows: rows


def _as_wide(rows: np.ndarray, wanted: str) -> np.ndarray:
    kind = np.dtype(_WIDTHS.get(wanted, rows.dtype))
    return rows.astype(kind) if kind.kind == rows.dtype.kind else rows


def _classes(out: np.ndarray, answer: np.ndarray | None, path: Path) -> np.ndarray:
    """The largest along the axis of the classes: 1, or 2 where the output is [N, L, C] and the answers [N, L]."""
    if out.ndim < 2 or out.shape[1] > MAX_CLASSES or not out.size:
        raise EdgePruneError(f"{path}: its output {out.shape} holds no classes")
    if np.isnan(out).any():
        raise EdgePruneError(f"{path}: its output holds NaN, which is no answer; check the rows, or export it as fp32")
    text = out.ndim == 3 and (answer is None or answer.shape == out.shape[:2])
    classes: np.ndarray = out.argmax(axis=2 if text else 1)
    if answer is not None and answer.shape != classes.shape:
        raise EdgePruneError(f"{path}: its output {out.shape} does not go with answers {answer.shape}")
    known = out.shape[2 if text else 1]
    if answer is not None and answer.size and not 0 <= answer.min() <= answer.max() < known:
        wrong = int(answer.max() if answer.max() >= known else answer.min())
        raise EdgePruneError(f"{path}: it knows {known} classes, 0 to {known - 1}, and one answer is {wrong}")
    return classes


def read_rows(path: Path) -> tuple[Tensor, Tensor | None]:
    """(x, y or None) of an .npz file with the arrays ``x`` and, if they are known, ``y``. Nothing is unpickled.

    Raises EdgePruneError where an array is not what it should be; only a missing ``y`` is no mistake.
    """
    from edgeprune.data.npz import read_npz

    try:
        arrays = read_npz(path, ("x",))
        with zipfile.ZipFile(path) as archive:
            known = "y.npy" in archive.namelist()
        arrays |= read_npz(path, ("y",)) if known else {}
    except EdgePruneError as error:
        what, fetch, _ = str(error).partition("; fetch it again")  # a remedy for published data sets
        remedy = "; write it with numpy.savez(FILE, x=..., y=...) from arrays of numbers in C order" if fetch else ""
        raise EdgePruneError(what + remedy) from None
    x = _values(path, arrays["x"])
    y = _labels(path, arrays["y"]) if known else None
    if y is not None and len(y) != len(x):
        raise EdgePruneError(f"{path}: {len(x)} rows and {len(y)} answers; give one for each")
    return x, y


def _values(path: Path, values: np.ndarray) -> Tensor:
    if values.ndim < 1:
        raise EdgePruneError(f"{path}: x is a single number; give an array with a row for each sample")
    kind: Any = np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        kind = np.int64
    with np.errstate(over="ignore"):
        x = values.astype(kind)
    if not np.isfinite(x).all():
        raise EdgePruneError(f"{path}: x holds NaN, infinity or numbers beyond float32; leave those rows out")
    return torch.from_numpy(x)


def _labels(path: Path, values: np.ndarray) -> Tensor:
    with np.errstate(invalid="ignore"):
        y = values.astype(np.int64)
    if values.ndim < 1 or not np.array_equal(y, values) or (y.size and y.min() < 0):
        raise EdgePruneError(f"{path}: y must hold the number of a class for each row, whole numbers from 0")
    return torch.from_numpy(y)


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__
