"""torch model -> ONNX ModelProto, by whichever of torch's two exporters gives the wanted opset.

The TorchScript exporter comes first: it writes opset 17 / IR 8 directly, folds batch norm into the convolution before
it and needs nothing but onnx. torch calls it deprecated since 2.9. The torch.export one writes opset 18 / IR 10 at
the least; for an older target its graph is rewritten (_older.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.export._data_flow import value_read
from edgeprune.export._need import need
from edgeprune.export._older import to_opset_17

BATCH = "batch"
_DYNAMO_OPSET = 18  # the lowest opset the torch.export exporter writes, whatever it is asked for


EXPORTERS = ("torchscript", "torch.export")


@dataclass(frozen=True)
class Wanted:
    """Names in the file, and its opset. Dimension 0 of every input and output is ``batch``, or, where ``fixed``, the
    number of rows that the example inputs have."""

    names_in: Sequence[str]
    names_out: Sequence[str]
    opset: int
    fixed: bool = False


def to_proto(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    wanted: Wanted,
    exporter: str | None = None,
    check: Callable[[Any], None] = lambda proto: None,
) -> Any:
    """The model as a ModelProto at exactly ``wanted.opset``; EdgePruneError when neither exporter manages.

    ``exporter``: one of EXPORTERS and no other; None tries both. ``check`` raises EdgePruneError for a graph that is
    not the model's; then the other exporter's counts.

    ``model`` is in eval mode and may be changed by the exporter: pass a copy.
    """
    if exporter not in (None, *EXPORTERS):
        raise EdgePruneError(f"export: unknown exporter {exporter!r}{nearest(str(exporter), EXPORTERS)}")
    if read := value_read(model, inputs):
        raise EdgePruneError(
            f"export: {type(model).__name__} turns data into a Python value ({read}), so that a file could only hold "
            "what the example inputs gave; write it with tensors, such as torch.where"
        )
    reasons = []
    wrong: EdgePruneError | None = None
    for name, route in zip(EXPORTERS, (_by_torchscript, _by_export), strict=True):
        if exporter not in (None, name):
            continue
        try:
            with _quiet():
                proto = route(model, inputs, wanted)
        except EdgePruneError:
            raise
        except Exception as error:  # the exporters raise dozens of unrelated types for an operator they do not know
            reasons.append(f"{name}: {first_line(error)}")
            continue
        try:
            check(proto)
            return proto
        except EdgePruneError as error:
            wrong = wrong or error
    if wrong is not None:
        raise wrong
    newer = "" if wanted.opset >= _DYNAMO_OPSET else "try target jetpack7 or "
    raise EdgePruneError(
        f"export: {type(model).__name__} has no ONNX form at opset {wanted.opset} "
        f"({'; '.join(reasons)}); {newer}replace that operator"
    )


def _by_torchscript(model: nn.Module, inputs: tuple[Tensor, ...], wanted: Wanted) -> Any:
    onnx = need("onnx")
    draft: Any = io.BytesIO()  # torch's own annotation leaves it out
    torch.onnx.export(
        model,
        inputs,
        draft,
        dynamo=False,
        opset_version=wanted.opset,
        input_names=list(wanted.names_in),
        output_names=list(wanted.names_out),
        dynamic_axes=None if wanted.fixed else {name: {0: BATCH} for name in (*wanted.names_in, *wanted.names_out)},
    )
    proto = onnx.load_from_string(draft.getvalue())
    for node in proto.graph.node:
        for perm in node.attribute if node.op_type == "Transpose" else ():
            # Of movedim(-1, 1) torch leaves the -1, which ONNX does not know.
            perm.ints[:] = [axis % len(perm.ints) for axis in perm.ints]
    return proto


def _by_export(model: nn.Module, inputs: tuple[Tensor, ...], wanted: Wanted) -> Any:
    need("onnxscript")
    batch = torch.export.Dim(BATCH)
    exported = torch.onnx.export(
        model,
        inputs,
        None,
        dynamo=True,
        opset_version=max(wanted.opset, _DYNAMO_OPSET),
        input_names=list(wanted.names_in),
        output_names=list(wanted.names_out),
        dynamic_shapes=None if wanted.fixed else tuple({0: batch} for _ in inputs),
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("the exporter returned nothing")
    proto = exported.model_proto
    written = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written == wanted.opset:
        return proto
    older = to_opset_17(proto)
    need("onnx").checker.check_model(older, full_check=True)
    return older


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters: deprecation notes about our own choice, progress lines, a graph dump on failure."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _no_output_of_c():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _no_output_of_c() -> Iterator[None]:
    """What C++ prints to the standard output goes nowhere: Python's own redirection does not reach it."""
    flush = ctypes.CDLL(None).fflush
    flush(None)  # what was printed before belongs to the caller
    try:
        before = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(before, 1)
        os.close(nowhere)
        os.close(before)


def first_line(error: Exception) -> str:
    """What the exporter said, short and without colours: its messages run to pages and name files of the machine."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip()
    line = text.splitlines()[0].strip() if text else type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
