"""Does the file compute what the model computes? ONNX Runtime against PyTorch, on the same inputs."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.export._need import need
from edgeprune.export._outputs import tensors_of
from edgeprune.export._trace import first_line
from edgeprune.onnx_session import fixed_batch, left_out

BATCHES = (1, 2, 7)
RTOL = 1e-3
ATOL = 1e-5
# Root of the summed squares of the differences over that of the model's outputs, at most: 1/2 is where what is left
# of the answer is hardly larger than the error.
RELATIVE = {"fp16": 0.02, "int8": 0.5}
COARSE = 0.05
_SWEEP = 64  # rows at a time when more real inputs are given than the batches above use


@dataclass(frozen=True)
class Parity:
    """``max_abs_diff`` over every output and row; ``argmax_agreement`` in [0, 1], None where there are no classes;
    ``relative_error``: norm of all differences over the norm of the model's outputs."""

    batches: tuple[int, ...]
    rows: int
    real_inputs: bool
    max_abs_diff: float
    argmax_agreement: float | None
    relative_error: float = 0.0


def as_float32(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs on the CPU as a file takes them: every floating type as float32."""
    return tuple(x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu() for x in inputs)


def session(path: str | os.PathLike[str] | bytes, threads: int | None = None, what: str = "export: the file") -> Any:
    """An ONNX Runtime session on the CPU provider, of a file or its bytes; ``threads`` None: as the runtime likes.

    ``what`` begins the sentence of the EdgePruneError where the runtime does not load it.
    """
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is said by the exception
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return ort.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out(path)
        )
    except Exception as error:  # the runtime's exception types are private to its extension module
        raise EdgePruneError(
            f"{what} is not loaded by ONNX Runtime {ort.__version__} ({first_line(error)}); "
            "check the file and the version"
        ) from None


def check_parity(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    real: bool = False,
    precision: str = "fp32",
    batches: Sequence[int] = BATCHES,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> Parity:
    """Compare every output at each batch size; EdgePruneError on the first disagreement.

    A file that takes one batch size only is compared at that, as often as ``batches`` has sizes.

    ``example_inputs`` are tensors [N, ...]. ``real=True``: they are real data; every row is compared, in the batch
    sizes asked for and then in larger ones, and rows repeat where there are too few. Otherwise they give shapes and
    types only, and the values are drawn at random with a fixed seed.
    Agreement: ``|onnx - torch| <= atol + rtol * |torch|`` everywhere (so NaN disagrees) and the same class, where two
    classes that torch itself holds equal within rounding (atol + 1e-6 of the value) count as the same.
    A file in another ``precision`` than "fp32" is held to RELATIVE over all rows instead, and to finite numbers; how
    often it chooses the same class is reported, not demanded.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    inputs = as_float32(inputs)
    frozen = copy.deepcopy(model).cpu().eval().float()
    runtime = session(path)
    names = [entry.name for entry in runtime.get_inputs()]
    if len(names) != len(inputs):
        raise EdgePruneError(f"export: the file takes {len(names)} inputs, {len(inputs)} were given to compare on")

    fixed = fixed_batch(runtime)
    if fixed is not None:
        batches = (fixed,) * len(batches)
    if any(not x.ndim or not len(x) for x in inputs):
        raise EdgePruneError("export: the inputs to compare on hold no rows; give tensors [N, ...] of at least one")
    if not real:
        inputs = tuple(_random_like(x, sum(batches)) for x in inputs)
    rows = [rows_around(start, size, len(inputs[0])) for start, size in _chunks(batches, len(inputs[0]), fixed)]
    worst, agreed, judged = 0.0, 0, 0
    noise = signal = 0.0
    for index in rows:
        feed = [x[index] for x in inputs]
        try:
            with torch.no_grad():
                expected = frozen(*(x.clone() for x in feed))  # forward may compute in place
        except Exception as error:  # what a user's forward raises may be anything
            shapes = ", ".join(str(tuple(x.shape[1:])) for x in inputs)
            raise EdgePruneError(f"export: the model fails on rows of shape {shapes}: {first_line(error)}") from None
        try:
            found = runtime.run(None, {name: x.numpy() for name, x in zip(names, feed, strict=True)})
        except Exception as error:  # as in session()
            reason = str(error).splitlines()[0]
            raise EdgePruneError(f"export: ONNX Runtime fails at batch {len(index)}: {reason}") from None
        for want, got in zip(tensors_of(expected), found, strict=True):
            limits = (rtol, atol) if precision == "fp32" else (math.inf, math.inf)
            worst = max(worst, _compare(want.numpy(), got, len(index), *limits))
            noise += float(np.square(got.astype(np.float64) - want.numpy()).sum())
            signal += float(np.square(want.numpy().astype(np.float64)).sum())
        same, of = _same_class(tensors_of(expected)[0].numpy(), found[0], atol)
        agreed, judged = agreed + same, judged + of
    relative = math.sqrt(noise / signal) if signal else 0.0
    if precision != "fp32" and not relative <= RELATIVE[precision]:
        raise EdgePruneError(
            f"export: the {precision} file is off by {relative:.0%} of the model's outputs (allowed: "
            f"{RELATIVE[precision]:.0%}); calibrate on real inputs, or use fp32"
        )
    if precision == "fp32" and agreed != judged:
        raise EdgePruneError(
            f"export: the file and the model choose another class for {judged - agreed} of {judged} rows"
        )
    return Parity(tuple(batches), len(inputs[0]), real, worst, agreed / judged if judged else None, relative)


def check_graph(model: nn.Module, proto: Any, inputs: tuple[Tensor, ...]) -> None:
    """EdgePruneError unless the graph's floating outputs are those of ``model`` on ``inputs`` and on random ones.

    Coarser than :func:`check_parity`, since nobody vouches for the random inputs: it finds a graph that computes
    something else, or that does not run with another number of rows where that is free. Draws on which the model does
    not run or gives no finite number are left out; without ONNX Runtime nothing is compared.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return
    try:
        runtime = session(proto.SerializeToString(), what="export: the graph")
    except ValueError:  # 2 GiB and more, which no file holds; the export says so when it writes
        return
    names = [entry.name for entry in runtime.get_inputs()]
    if len(names) != len(inputs):
        raise EdgePruneError(f"export: forward uses {len(names)} of its {len(inputs)} inputs; give it those alone")
    fixed = fixed_batch(runtime)
    draws = [(1, len(inputs[0])), (2, len(inputs[0]))] if fixed else [(1, 1), (2, 3)]
    for feed in (inputs, *(tuple(_random_like(x, rows, seed) for x in inputs) for seed, rows in draws)):
        try:
            with torch.no_grad():
                expected = model(*(x.clone() for x in feed))  # forward may compute in place
        except Exception:  # a user's forward may refuse what it was not made for
            continue
        try:
            found = runtime.run(None, {name: x.numpy() for name, x in zip(names, feed, strict=True)})
        except Exception as error:  # as in session()
            size = len(feed[0])
            why = "" if size == len(inputs[0]) else "; forward may hard-code a batch size: export for one (batch=)"
            raise EdgePruneError(
                f"export: ONNX Runtime fails on the graph at batch {size}: {first_line(error)}{why}"
            ) from None
        for want, got in zip(tensors_of(expected), found, strict=True):
            if tuple(want.shape) != got.shape:
                raise EdgePruneError(
                    f"export: at batch {len(feed[0])} the graph gives shape {got.shape}, the model "
                    f"{tuple(want.shape)}; forward may do something else for other batches: export for one (batch=)"
                )
            if not want.is_floating_point() or not want.numel() or not bool(torch.isfinite(want).all()):
                continue
            known = want.double().numpy()
            off = np.linalg.norm(got - known) / max(float(np.linalg.norm(known)), ATOL * known.size**0.5)
            if not off <= COARSE:
                raise EdgePruneError(
                    f"export: the graph and the model disagree by {off:.0%} of the outputs; forward must depend on its "
                    "inputs and weights alone"
                )


def _chunks(batches: Sequence[int], available: int, fixed: int | None) -> list[tuple[int, int]]:
    """(first row, rows): the asked batches one after the other, then what is left in blocks, or in ``fixed`` ones."""
    chunks, start = [], 0
    for size in batches:
        chunks.append((start, size))
        start += size
    step = fixed or _SWEEP
    chunks += [(at, fixed or min(step, available - at)) for at in range(start, available, step)]
    return chunks


def rows_around(start: int, size: int, available: int) -> Tensor:
    """``size`` row numbers from ``start`` on, beginning again at 0 behind the last of ``available``."""
    return torch.arange(start, start + size) % available


def _random_like(x: Tensor, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=x.dtype)
    # Token ids and the like: nothing beyond the values seen is known to be legal.
    return x.flatten()[torch.randint(x.numel(), shape, generator=generator)]


def _compare(want: np.ndarray, got: np.ndarray, batch: int, rtol: float, atol: float) -> float:
    if want.shape != got.shape:
        raise EdgePruneError(f"export: at batch {batch} the file gives shape {got.shape}, the model {want.shape}")
    if want.size == 0:
        return 0.0
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if not (difference <= atol + rtol * np.abs(want)).all() or not np.isfinite(difference).all():  # NaN fails
        worst = float(difference.max())
        raise EdgePruneError(
            f"export: the file and the model disagree at batch {batch} by up to {worst:.3g} "
            f"(allowed: rtol {rtol:g}, atol {atol:g})"
        )
    return float(difference.max())


def _same_class(want: np.ndarray, got: np.ndarray, atol: float) -> tuple[int, int]:
    """(positions with the same class, positions). Classes are dimension 1, or the last one of [N, positions, C]."""
    if want.ndim < 2 or not np.issubdtype(want.dtype, np.floating):
        return 0, 0
    axis = 2 if want.ndim == 3 else 1
    if want.shape[axis] < 2:
        return 0, 0
    top = want.max(axis=axis)
    chosen = np.take_along_axis(want, np.expand_dims(got.argmax(axis=axis), axis), axis=axis).squeeze(axis)
    same = chosen >= top - (atol + 1e-6 * np.abs(top))
    return int(same.sum()), int(same.size)
