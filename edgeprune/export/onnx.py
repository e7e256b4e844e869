"""A torch model as one ONNX file that the runtimes of a Jetson read."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune._version import __version__
from edgeprune.errors import EdgePruneError
from edgeprune.export import precision as precisions
from edgeprune.export import targets
from edgeprune.export._need import need
from edgeprune.export._trace import to_proto
from edgeprune.export.verify import strip_notes, verify


@dataclass(frozen=True)
class Exported:
    """What was written: sizes in bytes, names as they stand in the file, ``metadata`` with its full keys."""

    path: Path
    target: str
    opset: int
    ir_version: int
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    target: str = targets.DEFAULT_TARGET,
    metadata: Mapping[str, object] | None = None,
    precision: str = "fp32",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    exporter: str | None = None,
) -> Exported:
    """Write ``model`` in eval mode to ``path`` as ONNX for ``target`` and check the written file.

    ``example_inputs``: one tensor or a tuple of tensors whose dimension 0 is the batch, which stays free in the file.
    ``precision``: "fp32", "fp16" or "int8" inside; inputs and outputs are fp32. "int8" needs ``calibration``: real
    inputs [N, ...], a hundred rows or more, which set the ranges of the activations.
    ``exporter``: torch's "torchscript" or "torch.export"; by default the first that manages, in this order.
    ``metadata`` entries are stored under ``edgeprune.<key>``, everything but strings as JSON; the package version and
    a digest of the weights are added, and the precision. Nothing of the exporter's notes (stack traces, paths) is kept.
    The model is copied: neither its weights, its buffers nor its training flag change. The file appears under its name
    only when every check has passed. Errors are EdgePruneError: a model that does not run on the inputs or has no ONNX
    form, a hard-coded batch size, a path that cannot be written, the ``onnx`` extra missing.
    """
    onnx = need("onnx")
    profile = targets.get(target)
    precisions.check_precision(precision)
    destination = Path(path)
    check_destination(destination)
    inputs = _two_rows(example_inputs)
    frozen = copy.deepcopy(model).cpu().eval()
    names_in, names_out = _names(frozen, inputs)

    with torch.no_grad():
        proto = to_proto(frozen, inputs, names_in, names_out, profile, exporter)
    # Lowering is safe here: nothing newer than IR 8 (types, functions, sharding notes) is left in a stripped graph, and
    # verify() runs the full checker on the result.
    proto.ir_version = profile.ir_version
    strip_notes(proto)
    if precision == "fp16":
        proto = precisions.to_fp16(proto)
    elif precision == "int8":
        proto = precisions.to_int8(proto, precisions.batches_of(calibration), profile)
    strip_notes(proto)
    proto.producer_name, proto.producer_version = "edgeprune", __version__
    proto.graph.name = "edgeprune"
    entries = _entries(model, {"precision": precision, **(metadata or {})})
    onnx.helper.set_model_props(proto, entries)

    with staged(destination) as draft:
        try:
            onnx.save_model(proto, str(draft))
        except ValueError as error:  # protobuf refuses messages from 2 GiB on
            raise EdgePruneError(f"export: the model does not fit one ONNX file ({error})") from None
        verify(draft, profile)
        size = draft.stat().st_size
        os.replace(draft, destination)
    return Exported(
        destination, profile.name, profile.opset, profile.ir_version, size, tuple(names_in), tuple(names_out), entries
    )


def annotate(exported: Exported, metadata: Mapping[str, object]) -> Exported:
    """The same file, not yet under its own name, with more ``metadata``: what only its own answers could tell."""
    onnx = need("onnx")
    proto = onnx.load(str(exported.path), load_external_data=False)
    entries = {**exported.metadata, **_prefixed(metadata)}
    onnx.helper.set_model_props(proto, entries)
    onnx.save_model(proto, str(exported.path))
    verify(exported.path, targets.get(exported.target))
    return replace(exported, size_bytes=exported.path.stat().st_size, metadata=entries)


class staged:
    """A path in a fresh hidden folder beside ``destination``: written there, then renamed over it in one step.

    A folder rather than a temporary file, so that the file gets the user's own permissions.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination

    def __enter__(self) -> Path:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=".edgeprune-", dir=self.destination.parent)
        except OSError as error:
            raise EdgePruneError(f"export: cannot write in {self.destination.parent}: {error.strerror}") from None
        return Path(self._folder.name) / self.destination.name

    def __exit__(self, *exc_info: object) -> None:
        self._folder.cleanup()


def check_destination(destination: Path) -> None:
    """EdgePruneError unless a file can be put at ``destination``; what stands there already would be replaced."""
    if destination.is_dir():
        raise EdgePruneError(f"export: {destination} is a folder; name the file, such as {destination / 'model.onnx'}")
    if not destination.parent.is_dir():
        raise EdgePruneError(f"export: the folder {destination.parent} does not exist; create it first")


def _two_rows(example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs on the CPU with exactly two rows: both exporters bake a batch of one into the graph as a constant."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim >= 1 and x.shape[0] >= 1 for x in inputs):
        raise EdgePruneError(
            "export: example inputs must be tensors with at least one row each; dimension 0 is the batch"
        )
    return tuple(torch.cat([x[:1], x[-1:]]).detach().cpu() for x in inputs)


def _names(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[str], list[str]]:
    """Names of the file's inputs and outputs, after one run that shows how many outputs there are."""
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except Exception as error:  # a user's forward may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EdgePruneError(
            f"export: {type(model).__name__} does not run on example inputs of shape {shapes}: {reason}"
        ) from None
    flat = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(flat, tuple | list) or not flat or not all(isinstance(y, Tensor) and y.ndim for y in flat):
        raise EdgePruneError(
            f"export: {type(model).__name__} returns {type(outputs).__name__}; "
            "an exported model returns a tensor or a tuple of tensors with the batch in dimension 0"
        )
    return _numbered("input", len(inputs)), _numbered("output", len(flat))


def _numbered(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _entries(model: nn.Module, metadata: Mapping[str, object] | None) -> dict[str, str]:
    entries = {"version": __version__, "torch": torch.__version__, "weights_sha256": weights_digest(model)}
    return _prefixed({**entries, **(metadata or {})})


def _prefixed(metadata: Mapping[str, object]) -> dict[str, str]:
    entries = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
        for key, value in metadata.items()
    }
    own = {place for place in (os.path.expanduser("~"), os.getcwd()) if len(place) > 1}
    for key, value in entries.items():
        if any(place in value for place in own):
            raise EdgePruneError(f"export: metadata {key!r} holds a path of this machine; leave it out of the file")
    return {f"edgeprune.{key}": value for key, value in sorted(entries.items())}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 in hex over names, types, shapes and bytes of the state dict: which weights a file was made from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
