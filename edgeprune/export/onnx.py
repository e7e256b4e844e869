"""A torch model as one ONNX file that the runtimes of a Jetson read."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeprune._version import __version__
from edgeprune.destination import check_destination, staged
from edgeprune.digest import digest_of
from edgeprune.errors import EdgePruneError, is_whole
from edgeprune.export import precision as precisions
from edgeprune.export import seal, targets
from edgeprune.export._need import need
from edgeprune.export._outputs import names_of, returning_tuple
from edgeprune.export._plain import plain
from edgeprune.export._trace import Wanted, first_line, to_proto
from edgeprune.export.parity import as_float32, check_graph, rows_around
from edgeprune.export.verify import strip_notes, verify

RESERVED = ("file_sha256", "precision", "torch", "version", "weights_sha256")
LARGEST_FP16 = 65504


@dataclass(frozen=True)
class Exported:
    """What was written: sizes in bytes, names as they stand in the file, ``metadata`` with its full keys.

    ``batch``: the only number of rows that it takes, None for any.
    """

    path: Path
    target: str
    opset: int
    ir_version: int
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]
    batch: int | None = None


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    target: str = targets.DEFAULT_TARGET,
    metadata: Mapping[str, object] | None = None,
    precision: str = "fp32",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    exporter: str | None = None,
    batch: int | None = None,
) -> Exported:
    """Write ``model`` in eval mode to ``path`` as ONNX for ``target`` and check the written file.

    ``example_inputs``: one tensor or a tuple of tensors whose dimension 0 is the batch, which stays free in the file;
    with ``batch`` the file takes exactly so many rows, which some runtimes want and some models need.
    Weights and inputs of other floating types become fp32, masked layers dense ones.
    ``precision``: "fp32", "fp16" or "int8" inside; inputs and outputs are fp32. "int8" needs ``calibration``: real
    inputs [N, ...], a hundred rows or more, which set the ranges of the activations.
    ``exporter``: torch's "torchscript" or "torch.export"; by default the first whose graph answers as the
    model does, in this order.
    ``metadata`` entries are stored under ``edgeprune.<key>``, everything but strings as JSON. Those RESERVED are added:
    versions of package and torch, digests of the weights and of the file (seal.py), the precision. Nothing of the
    exporter's notes (stack traces, paths) is kept.
    The model is copied: neither its weights, its buffers nor its training flag change. The file appears under its name
    only when every check has passed; where ONNX Runtime is installed, one is that the graph answers as the model does
    on the example and on random inputs. Errors are EdgePruneError: a model that does not run on the inputs, has no ONNX
    form, decides by the values of its data or has weights that are not finite, a hard-coded batch size, a path that
    cannot be written, the ``onnx`` extra missing.
    """
    onnx = need("onnx")
    profile = targets.get(target)
    precisions.check_precision(precision)
    destination = check_destination(path, "export")
    frozen = in_float32(model)
    inputs = _example_rows(example_inputs, batch)
    own = {"version": __version__, "torch": torch.__version__, "weights_sha256": weights_digest(model)}
    entries = {**_prefixed(metadata or {}), **_prefixed({**own, "precision": precision}), seal.KEY: seal.BLANK}
    if reserved := sorted({*RESERVED} & {*(metadata or {})}):
        raise EdgePruneError(f"export: metadata {reserved[0]!r} is written by the export itself; choose another key")
    _check_weights(frozen, precision)
    batches = precisions.batches_of(calibration, inputs, batch) if precision == "int8" else []
    names_in = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    outputs = _first_run(frozen, inputs)
    names_out = names_of(frozen, outputs, names_in)
    if isinstance(outputs, Mapping):
        frozen = returning_tuple(frozen)

    def check(proto: Any) -> None:
        _floats_are_fp32(proto)
        # Lowering is safe here: nothing newer than IR 8 (types, functions, sharding notes) is left in a stripped graph,
        # and verify() runs the full checker on the result.
        proto.ir_version = profile.ir_version
        strip_notes(proto)
        check_graph(in_float32(model), proto, inputs)

    with torch.no_grad():
        wanted = Wanted(names_in, names_out, profile.opset, fixed=batch is not None)
        proto = to_proto(frozen, inputs, wanted, exporter, check)
    if precision == "fp16":
        proto = precisions.to_fp16(proto)
    elif precision == "int8":
        proto = precisions.to_int8(proto, batches, profile)
    strip_notes(proto)
    proto.producer_name, proto.producer_version = "edgeprune", __version__
    proto.graph.name = "edgeprune"
    onnx.helper.set_model_props(proto, entries)

    with staged(destination, "export") as draft:
        try:
            onnx.save_model(proto, str(draft))
        except ValueError as error:  # protobuf refuses messages from 2 GiB on
            raise EdgePruneError(f"export: the model does not fit one ONNX file ({error})") from None
        verify(draft, profile, batch)
        entries[seal.KEY] = seal.seal(draft)
        size = draft.stat().st_size
    names = tuple(names_in), tuple(names_out)
    return Exported(destination, profile.name, profile.opset, profile.ir_version, size, *names, entries, batch)


def annotate(exported: Exported, metadata: Mapping[str, object]) -> Exported:
    """The same file, not yet under its own name, with more ``metadata``: what only its own answers could tell."""
    onnx = need("onnx")
    proto = onnx.load(str(exported.path), load_external_data=False)
    entries = {**exported.metadata, **_prefixed(metadata), seal.KEY: seal.BLANK}
    onnx.helper.set_model_props(proto, entries)
    onnx.save_model(proto, str(exported.path))
    verify(exported.path, targets.get(exported.target), exported.batch)
    entries[seal.KEY] = seal.seal(exported.path)
    return replace(exported, size_bytes=exported.path.stat().st_size, metadata=entries)


def in_float32(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, floating types as float32, our own layers as torch's (``plain``), and of a
    compiled model what was compiled: no exporter looks through torch.compile."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise EdgePruneError(f"export: the model is {what}; give an instance of torch.nn.Module")
    if any(is_lazy(weight) for weight in (*model.parameters(), *model.buffers())):
        raise EdgePruneError(
            f"export: {type(model).__name__} has lazy weights; run it once on its inputs, then export it"
        )
    inner = model._modules.get("_orig_mod") if type(model).__module__.startswith("torch._dynamo") else None
    try:
        return plain(copy.deepcopy(model if inner is None else inner).cpu().eval()).float()
    except Exception as error:  # what a user's module holds may refuse to be copied in any way
        raise EdgePruneError(f"export: {type(model).__name__} cannot be copied: {first_line(error)}") from None


def _example_rows(example_inputs: Tensor | tuple[Tensor, ...], batch: int | None) -> tuple[Tensor, ...]:
    """The inputs on the CPU with ``batch`` rows; two where it stays free: both exporters bake a batch of one in."""
    if batch is not None and (not is_whole(batch) or batch < 1):
        raise EdgePruneError(f"export: a batch of {batch!r}; give the number of rows, 1 or more, or leave it free")
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim >= 1 and x.shape[0] >= 1 for x in inputs):
        raise EdgePruneError(
            "export: example inputs must be tensors with at least one row each; dimension 0 is the batch"
        )
    if len({len(x) for x in inputs}) > 1:
        rows = ", ".join(str(len(x)) for x in inputs)
        raise EdgePruneError(
            f"export: the example inputs have {rows} rows, and dimension 0 of each is the batch; give all as many, and "
            "keep what is the same for every row as a buffer of the model"
        )
    if batch is None:
        return as_float32(tuple(torch.cat([x[:1], x[-1:]]) for x in inputs))
    return as_float32(tuple(x[rows_around(0, batch, len(x))] for x in inputs))


def _check_weights(model: nn.Module, precision: str) -> None:
    """EdgePruneError for a parameter that is not finite, or that fp16 does not hold (buffers may: masks do)."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        largest = float(weight.detach().abs().max())
        if not math.isfinite(largest):
            raise EdgePruneError(f"export: the weight {name!r} holds NaN or infinity in float32; train it anew")
        if precision == "fp16" and largest > LARGEST_FP16:
            raise EdgePruneError(
                f"export: the weight {name!r} reaches {largest:.3g}, fp16 ends at {LARGEST_FP16}; use fp32"
            )


def _floats_are_fp32(proto: Any) -> None:
    onnx = need("onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if kind in ("DOUBLE", "FLOAT16", "BFLOAT16"):
            raise EdgePruneError(
                f"export: {value.name!r} is {kind.lower()} whatever the model's weights are; let forward give float32"
            )


def _first_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return model(*inputs)
    except Exception as error:  # a user's forward may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise EdgePruneError(
            f"export: {type(model).__name__} does not run on example inputs of shape {shapes}: {first_line(error)}"
        ) from None


def _prefixed(metadata: Mapping[str, object]) -> dict[str, str]:
    entries: dict[str, str] = {}
    if not isinstance(metadata, Mapping):
        raise EdgePruneError(f"export: metadata is {type(metadata).__name__}; give a mapping of names to values")
    for key, value in metadata.items():
        try:
            entries[key] = value if isinstance(value, str) else _json(value)
            (key + entries[key]).encode()
        except (TypeError, ValueError, RecursionError):  # a key that is no text, a lone surrogate, a tensor, NaN
            raise EdgePruneError(
                f"export: metadata {key!r}: keys must be text, values text or what JSON holds (finite numbers, lists, "
                f"dicts), not {type(value).__name__}"
            ) from None
    own = {place for place in (os.path.expanduser("~"), os.getcwd()) if len(place) > 1}
    for key, value in entries.items():
        if any(place in value for place in own):
            raise EdgePruneError(f"export: metadata {key!r} holds a path of this machine; leave it out of the file")
    return {f"edgeprune.{key}": value for key, value in sorted(entries.items())}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 in hex over names, types, shapes and bytes of the state dict: which weights a file was made from."""
    return digest_of({name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)})
