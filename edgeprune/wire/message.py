"""One message: a kind, a small JSON header and named tensors, as safetensors bytes (see format.md)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError

VERSION = 1
KINDS = ("assignment", "update", "calibrate", "statistics")
_RESERVED = ("version", "kind", "round", "client", "plan", "crc32")


@dataclass(frozen=True)
class Message:
    """A decoded message; ``header`` holds the keys that only its kind knows."""

    kind: str
    round: int
    client: str
    plan: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """The bytes of ``message``: the same message always gives the same bytes."""
    if message.kind not in KINDS:
        raise EdgePruneError(f"wire: unknown kind {message.kind!r}; known are {', '.join(KINDS)}")
    clash = sorted(set(message.header) & set(_RESERVED))
    if clash:
        raise EdgePruneError(f"wire: header key {clash[0]!r} belongs to the format; use another name")
    tensors = {name: message.tensors[name].detach().contiguous() for name in sorted(message.tensors)}
    header = {
        **message.header,
        "version": VERSION,
        "kind": message.kind,
        "round": message.round,
        "client": message.client,
        "plan": message.plan,
        "crc32": _checksum(tensors),
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors.torch.save(tensors, metadata={"edgeprune": text})


def decode(blob: bytes, *, kind: str | tuple[str, ...], limit: int | None = None) -> Message:
    """The message in ``blob``.

    Raises :class:`EdgePruneError` (one sentence) if the bytes are longer than ``limit``, not a message of
    this version, not of (one of) ``kind``, or fail their checksum. Nothing beyond ``len(blob)`` bytes is allocated.
    """
    if limit is not None and len(blob) > limit:
        raise EdgePruneError(f"wire: message of {len(blob)} bytes is over the limit of {limit}; it was not read")
    header = _read_header(blob)
    if header.get("version") != VERSION:
        raise EdgePruneError(f"wire: message has version {header.get('version')!r}, this reader knows {VERSION}")
    kinds = (kind,) if isinstance(kind, str) else kind
    if header.get("kind") not in kinds:
        raise EdgePruneError(
            f"wire: expected a message of kind {' or '.join(map(repr, kinds))}, got {header.get('kind')!r}"
        )
    for key, expected in (("round", int), ("client", str), ("plan", str), ("crc32", int)):
        if type(header.get(key)) is not expected:
            raise EdgePruneError(f"wire: header key {key!r} is missing or not {expected.__name__}; message refused")
    try:
        tensors = safetensors.torch.load(blob)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise EdgePruneError(f"wire: tensors cannot be read ({_first_line(error)}); message refused") from None
    if _checksum(tensors) != header["crc32"]:
        raise EdgePruneError("wire: checksum of the tensors does not match the header; message refused")
    rest = {key: value for key, value in header.items() if key not in _RESERVED}
    return Message(header["kind"], header["round"], header["client"], header["plan"], tensors, rest)


def _read_header(blob: bytes) -> dict[str, Any]:
    """The ``edgeprune`` JSON in the safetensors header; its length is compared with what is there before it is read."""
    if len(blob) < 8:
        raise EdgePruneError(f"wire: {len(blob)} bytes are too few for a message; it was truncated")
    length = int.from_bytes(blob[:8], "little")
    if length > len(blob) - 8:
        raise EdgePruneError(f"wire: header says {length} bytes but {len(blob) - 8} are left; message refused")
    try:
        outer = json.loads(blob[8 : 8 + length].decode("utf-8"))
        header = json.loads(outer["__metadata__"]["edgeprune"])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError):
        raise EdgePruneError("wire: header is not an edgeprune message; message refused") from None
    if not isinstance(header, dict):
        raise EdgePruneError("wire: header is not a JSON object; message refused")
    return header


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        if tensors[name].numel():
            # A flat byte view, for numpy does not know bfloat16.
            crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
