"""An fp32 file as fp16 or int8: weights of half or a quarter of the size, inputs and outputs still fp32.

fp16 is a conversion of the graph. int8 is ONNX Runtime's static quantisation: QuantizeLinear and DequantizeLinear
around convolutions and matrix products, weights per output channel, activations by their smallest and largest value on
calibration inputs. Both stay within the standard operators, so the targets' opset and IR version hold.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.export._need import need
from edgeprune.export._trace import first_line
from edgeprune.export.parity import as_float32, rows_around
from edgeprune.export.targets import PRECISIONS, Target

ROUND_TO = {"fp32": 1, "fp16": 8, "int8": 16}
"""Channels in such multiples suit the device's matrix units (``edgeprune.prune(round_to=...)``)."""
CALIBRATION_BATCH = 8


def check_precision(name: str) -> str:
    """``name``; EdgePruneError with the nearest known one otherwise."""
    if name not in PRECISIONS:
        raise EdgePruneError(f"export: unknown precision {name!r}{nearest(str(name), PRECISIONS)}")
    return name


def to_fp16(proto: Any) -> Any:
    """``proto`` computing in fp16 between fp32 inputs and outputs; what overflows is clipped to the largest number."""
    convert = need("onnxruntime.transformers.float16").convert_float_to_float16
    with _quiet("fp16"):
        converted = convert(proto, keep_io_types=True)
        # The casts of the inputs are appended; a valid graph has them first.
        need("onnxruntime.quantization.onnx_model").ONNXModel(converted).topological_sort()
    return converted


def to_int8(proto: Any, calibration: Sequence[tuple[Tensor, ...]], target: Target) -> Any:
    """``proto`` quantised on ``calibration``: batches of real inputs, each a tuple of tensors in the file's order."""
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    if not calibration:
        raise EdgePruneError("export: int8 needs calibration inputs; give real ones, a hundred rows or more")
    names = [value.name for value in proto.graph.input]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.rows: Iterator[tuple[Tensor, ...]] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rows, None)
            return None if batch is None else {n: x.numpy() for n, x in zip(names, batch, strict=True)}

    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, _quiet("int8"):
        plain, ready, done = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        onnx.save_model(proto, plain)
        # Its optimiser would raise the file's version and fuse into operators that only this runtime knows.
        need("onnxruntime.quantization.shape_inference").quant_pre_process(
            plain, ready, skip_optimization=True, skip_symbolic_shape=True
        )
        quantization.quantize_static(
            ready,
            done,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in proto.graph.node if node.name and _grouped_transposed(node)],
            extra_options={"ActivationSymmetric": True},  # TensorRT takes no zero points
        )
        quantised = onnx.load(done)
    if not any(node.op_type == "DequantizeLinear" for node in quantised.graph.node):
        raise EdgePruneError("export: nothing in this model could be quantised; use fp32 or fp16")
    if any(node.domain not in ("", "ai.onnx") for node in quantised.graph.node):
        raise EdgePruneError("export: this ONNX Runtime quantises outside the standard operators; update onnxruntime")
    for entry in [e for e in quantised.opset_import if e.domain not in ("", "ai.onnx")]:
        quantised.opset_import.remove(entry)
    quantised.ir_version = target.ir_version
    return quantised


def _grouped_transposed(node: Any) -> bool:
    """A transposed convolution in groups, for whose weights ONNX Runtime makes too few scales; it stays fp32."""
    return node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def batches_of(
    rows: Tensor | tuple[Tensor, ...] | None, examples: Sequence[Tensor], size: int | None = None
) -> list[tuple[Tensor, ...]]:
    """Calibration rows [N, ...] in batches, small ones so that a pass over them does not need much memory.

    Or all of ``size`` rows, the last one filled up with the first rows again.

    EdgePruneError unless they are finite and of the shapes and types of ``examples``.
    """
    if rows is None:
        return []
    parts = tuple(rows) if isinstance(rows, tuple | list) else (rows,)
    if not all(isinstance(x, Tensor) and x.ndim for x in parts):
        raise EdgePruneError("export: calibration inputs must be tensors whose dimension 0 is the batch")
    parts = as_float32(parts)
    found, wanted = ([(tuple(x.shape[1:]), x.dtype) for x in xs] for xs in (parts, examples))
    if found != wanted:
        shown = [", ".join(f"{shape} {str(kind)[6:]}" for shape, kind in each) for each in (found, wanted)]
        raise EdgePruneError(f"export: a row of the calibration inputs is {shown[0]}; the model takes {shown[1]}")
    if len({len(x) for x in parts}) != 1:
        raise EdgePruneError("export: the calibration inputs differ in their number of rows")
    if not all(bool(torch.isfinite(x).all()) for x in parts):
        raise EdgePruneError("export: the calibration inputs hold NaN or infinity; leave those rows out")
    total, step = len(parts[0]), size or CALIBRATION_BATCH
    taken = [rows_around(i, size or min(step, total - i), total) for i in range(0, total, step)]
    return [tuple(x[index] for x in parts) for index in taken]


@contextmanager
def _quiet(precision: str) -> Iterator[None]:
    """ONNX Runtime's tools without their notes, and with their errors as EdgePruneError."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise EdgePruneError(
            f"export: {precision} needs {tempfile.gettempdir()} for a while, which cannot be written "
            f"({error.strerror or type(error).__name__}); make room there"
        ) from None
    except Exception as error:  # the runtime's exception types are private to its extension module
        more = "other calibration inputs or " if precision == "int8" else ""
        raise EdgePruneError(
            f"export: ONNX Runtime cannot make it {precision} ({first_line(error)}); try {more}fp32"
        ) from None
    finally:
        logging.disable(before)
