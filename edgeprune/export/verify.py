"""A written ONNX file, opened again and held to what its target reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.errors import EdgePruneError
from edgeprune.export._need import need
from edgeprune.export.targets import Target

BATCH = "batch"


def verify(path: Path, target: Target, batch: int | None = None) -> Any:
    """Read ``path`` and return its ModelProto, or raise EdgePruneError naming the first property that fails.

    Asserted: valid and with shapes that fit (``checker(full_check=True)``), opset and IR version exactly the target's,
    only the default operator domain and no local functions, weights inside the file, dimension 0 of every input and
    output free (or ``batch``), no doc strings and no metadata but the model's own.
    """
    onnx = need("onnx")
    # Without this, a file that refers to external data would quietly pick up what lies beside it.
    proto = onnx.load(str(path), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        raise EdgePruneError("export: the file keeps weights outside itself; it must hold all of them")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EdgePruneError(f"export: the written graph is not valid ONNX: {str(error).splitlines()[0]}") from None

    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    if opsets != {"ai.onnx": target.opset}:
        raise EdgePruneError(f"export: the file needs {opsets}, {target.name} reads only opset {target.opset}")
    if proto.ir_version != target.ir_version:
        raise EdgePruneError(f"export: the file is IR {proto.ir_version}, {target.name} wants {target.ir_version}")
    _own_operators_only(proto)
    if batch is None:
        _batch_is_free(proto)
    else:
        _batch_is(proto, batch)
    if leftover := sorted(_texts(proto.graph)):
        raise EdgePruneError(f"export: the file still carries the exporter's notes ({leftover[0][:60]!r})")
    return proto


def strip_notes(message: Any) -> None:
    """Clear every doc string and metadata entry below ``message``: exporters leave stack traces with paths there."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in _children(value):
                strip_notes(child)


def _own_operators_only(proto: Any) -> None:
    foreign = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if foreign or proto.functions:
        names = sorted(foreign | {f.domain for f in proto.functions})
        raise EdgePruneError(f"export: the graph uses operators outside the ONNX standard ({', '.join(names)})")


def _batch_is(proto: Any, batch: int) -> None:
    """So many rows in every input; and in every output, where the graph says how many it has."""
    known = [(value, (batch,)) for value in proto.graph.input] + [(value, (batch, 0)) for value in proto.graph.output]
    for value, sizes in known:
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].dim_value not in sizes:
            rows = f"{dims[0].dim_value or 'any number of'} rows" if dims else "no rows"
            raise EdgePruneError(f"export: {value.name!r} has {rows}, not one for each of the batch's {batch}")


def _batch_is_free(proto: Any) -> None:
    """The declared dimension is named, and shape inference from the inputs alone does not pin it to a number.

    The second half matters: an exporter writes the name it was told to, also over a ``view(2, -1)``.
    """
    onnx = need("onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].dim_param != BATCH:
            raise EdgePruneError(f"export: {value.name!r} has no free batch dimension; export for one size (batch=)")
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    for value in inferred.graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value"):
            raise EdgePruneError(
                f"export: {value.name!r} always has {dims[0].dim_value} rows, whatever the batch; the model's forward "
                "hard-codes a batch size (write view(x.shape[0], ...), or export for that size alone: batch=)"
            )


def _children(value: Any) -> Any:
    return value if hasattr(value, "add") else (value,)


def _tensors(message: Any) -> Any:
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in _children(value):
                yield from _tensors(child)


def _texts(message: Any) -> Any:
    """Every doc string and metadata value below ``message``."""
    for field, value in message.ListFields():
        if field.name == "doc_string":
            yield value
        elif field.name == "metadata_props":
            yield from (entry.value for entry in value)
        elif field.message_type is not None:
            for child in _children(value):
                yield from _texts(child)
