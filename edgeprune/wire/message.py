"""One message: a kind, who and when, a little JSON, and named tensors, dense or packed (see format.md)."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, shown
from edgeprune.wire import directory, layout, positions
from edgeprune.wire.directory import Entry
from edgeprune.wire.layout import ALL, KINDS, KNOWN, Cursor, Header, refused
from edgeprune.wire.tensors import PackedTensor, from_bytes, pack_tensor, to_bytes

DENSE_LIMIT = 1 << 32  # bytes of dense tensors that a reader makes unless it says otherwise


@dataclass(frozen=True)
class Message:
    """A message. ``plan`` and ``mask`` are ids of 16 hex digits, or empty.

    ``tensors`` travel whole, bit for bit; ``packed`` with their positions and coding; a name may stand in one of them.
    ``kept`` is the plan's kept channels (SubmodelPlan.kept_bytes) where the receiver may not hold it. ``samples``: what
    the sender's weights rest on, 0 where that says nothing. ``header`` holds the keys that only its kind knows.
    """

    kind: str
    round: int
    client: str
    plan: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    mask: str = ""
    kept: bytes = b""
    packed: Mapping[str, PackedTensor] = field(default_factory=dict)


def mask_id(masks: Mapping[str, Tensor]) -> str:
    """16 hex digits of sha256 over names and bitmaps: what both sides name a set of masks by."""
    digest = hashlib.sha256()
    for name in sorted(masks, key=str.encode):
        digest.update(name.encode() + b"\0" + masks[name].numel().to_bytes(8, "little"))
        digest.update(to_bytes(masks[name]))
    return digest.hexdigest()[:16]


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The bytes of ``message``: the same message always gives the same bytes."""
    if message.kind not in KINDS:
        raise EdgePruneError(f"wire: unknown kind {message.kind!r}; known are {', '.join(KINDS)}")
    if both := sorted(message.tensors.keys() & message.packed.keys()):
        raise EdgePruneError(f"wire: tensor {both[0]!r} is given both whole and packed; give it once")
    everything = {name: pack_tensor(x, name=name) for name, x in message.tensors.items()} | dict(message.packed)
    entries: list[Entry] = []
    body: list[bytes | memoryview] = []
    for name in sorted(everything, key=_utf8):
        packed = everything[name]
        entries.append(directory.entry_of(name, packed, packed.placed))
        body += [packed.placed.data, b"" if packed.scales is None else to_bytes(packed.scales), to_bytes(packed.values)]
    client, meta, listed = _utf8(message.client), _meta_text(message.header), directory.to_bytes(entries)
    header = Header(
        message.kind,
        message.round,
        len(entries),
        message.samples,
        message.plan,
        message.mask,
        sum(entry.dense_bytes for entry in entries),
        sum(map(len, body)),
        len(listed),
        len(message.kept),
        len(meta),
        len(client),
    )
    parts = [header.to_bytes(), client, message.kept, meta, listed, *body]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([*parts, crc.to_bytes(4, "little")])


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EdgePruneError(f"wire: the name {text!r} is not text that UTF-8 can hold") from None


def _meta_text(header: Mapping[str, Any]) -> bytes:
    if not header:
        return b""
    try:
        text = json.dumps(dict(header), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgePruneError(f"wire: the header cannot be written as JSON ({error})") from None
    if len(text) > layout.MAX_META:
        raise EdgePruneError(f"wire: a header of {len(text)} bytes is over the limit of {layout.MAX_META}")
    return text.encode()


# --- reading ---------------------------------------------------------------------------------------------------------


class Repeats:
    """For who reads many messages that may bring the same tensors (a simulated fleet): byte for byte the same as in the
    one before, they come as the same objects, in the same dictionaries. They are not to be written to."""

    def __init__(self) -> None:
        self._listed, self._body = b"", np.empty(0, np.uint8)
        self._read: tuple[dict[str, Tensor], dict[str, PackedTensor]] | None = None

    def find(self, listed: memoryview, body: memoryview) -> tuple[dict[str, Tensor], dict[str, PackedTensor]] | None:
        """What the same bytes gave before."""
        same = self._listed == listed and np.array_equal(self._body, np.frombuffer(body, np.uint8))
        return self._read if same else None

    def note(
        self, listed: memoryview, body: memoryview, read: tuple[dict[str, Tensor], dict[str, PackedTensor]]
    ) -> None:
        """What these bytes gave."""
        self._listed, self._body, self._read = bytes(listed), np.frombuffer(body, np.uint8), read


def decode(
    blob: bytes,
    *,
    kind: str | tuple[str, ...],
    limit: int | None = None,
    dense_limit: int = DENSE_LIMIT,
    masks: Mapping[str, Tensor] | None = None,
    keep_packed: bool = False,
    repeats: Repeats | None = None,
) -> Message:
    """The message in ``blob``.

    ``limit``: bytes it may have; ``dense_limit``: bytes its tensors may take unpacked. ``masks``: bitmaps that both
    sides know, for tensors that come without positions. ``keep_packed``: what has positions or a coding stays as it is,
    in ``packed``; otherwise all become dense ``tensors``. ``repeats``: the same reader's, who knows no masks.

    Raises :class:`EdgePruneError` (one sentence) for whatever is not a message of (one of) ``kind`` within the limits.
    Takes at most 4 x len(blob) + the dense bytes + 24 bytes an element of the largest tensor + 4 KiB a tensor + 1 MiB.
    """
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise EdgePruneError(f"wire: a message is bytes, not {shown(blob)}; give what was received or read from a file")
    if limit is not None and len(blob) > limit:
        raise EdgePruneError(f"wire: message of {len(blob)} bytes is over the limit of {limit}; it was not read")
    header = Header.from_bytes(blob)
    kinds = (kind,) if isinstance(kind, str) else kind
    if header.kind not in kinds:
        raise refused(f"expected a message of kind {' or '.join(map(repr, kinds))}, got {header.kind!r}")
    if header.dense > dense_limit:
        raise refused(f"its tensors would take {header.dense} bytes, over the limit of {dense_limit}")
    data = memoryview(blob)
    if zlib.crc32(data[: -layout.TRAILER]).to_bytes(4, "little") != data[-layout.TRAILER :]:
        raise refused("the checksum does not match what was received")
    cursor = Cursor(data[layout.HEADER_BYTES : -layout.TRAILER], "message")
    client, kept, meta = _text(cursor.take(header.client)), bytes(cursor.take(header.kept)), cursor.take(header.meta)
    listed = cursor.take(header.directory)
    entries = directory.from_bytes(listed, header.tensors, header.body, header.dense)
    known = _known(entries, header, masks or {})
    rest = data[len(data) - layout.TRAILER - header.body : -layout.TRAILER]
    found = repeats.find(listed, rest) if repeats else None
    if found is None:
        found = {}, {}
        for entry in entries:
            one = _read(entry, cursor, known)
            if keep_packed and (one.mask is not None or one.coding != "own"):
                found[1][entry.name] = one
            else:
                found[0][entry.name] = one.tensor()
        if repeats:
            repeats.note(listed, rest, found)
    tensors, packed = found
    header_rest = _meta(meta)
    return Message(
        header.kind,
        header.round,
        client,
        header.plan,
        tensors,
        header_rest,
        header.samples,
        header.mask,
        kept,
        packed,
    )


def _read(entry: Entry, cursor: Cursor, known: Mapping[str, Tensor]) -> PackedTensor:
    placed, scale_data, value_data = (
        cursor.take(entry.position_bytes),
        cursor.take(entry.scale_bytes),
        cursor.take(entry.value_bytes),
    )
    mask: Tensor | None = None
    if entry.positions == KNOWN:
        mask = known[entry.name]
    elif entry.positions != ALL:
        mask = positions.decode(entry.positions, entry.parameter, placed, entry.numel, entry.kept, entry.name)
    values = from_bytes(value_data)
    if entry.dtype is torch.bool and values.numel() and int(values.max()) > 1:
        raise refused(f"tensor {entry.name!r} holds a truth value other than 0 and 1")
    scales: Tensor | None = None
    if entry.coding == "i8":
        scales = from_bytes(scale_data).view(torch.float32)
        if not bool(((scales >= 0) & (scales < math.inf)).all()):
            raise refused(f"tensor {entry.name!r} has a scale that is negative or not finite")
    return PackedTensor(
        entry.shape, entry.dtype, entry.coding, values, scales, mask, entry.kept, entry.positions == KNOWN
    )


def _known(entries: list[Entry], header: Header, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The receiver's masks, if they are those that the sender meant."""
    names = [entry.name for entry in entries if entry.positions == KNOWN]
    if not names:
        return {}
    if not header.mask or mask_id(masks) != header.mask:
        raise refused(f"tensor {names[0]!r} rests on mask {header.mask or '(none named)'}, which is not held here")
    for entry in entries:
        if entry.positions == KNOWN:
            held = masks.get(entry.name)
            if held is None or positions.check_bitmap(held, entry.numel, entry.name) != entry.kept:
                raise refused(f"tensor {entry.name!r} and the mask held here keep unequal numbers of elements")
    return masks


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise refused("the client's name is not UTF-8") from None


def _meta(data: memoryview) -> dict[str, Any]:
    if not len(data):
        return {}
    try:
        value = json.loads(bytes(data), object_pairs_hook=_once, parse_constant=_not_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise refused("the header's JSON cannot be read") from None
    if not isinstance(value, dict):
        raise refused("the header's JSON is not an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise refused("the header's JSON has a key twice")
    return dict(pairs)


def _not_finite(name: str) -> NoReturn:
    raise refused(f"the header's JSON holds {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise refused(f"the header's JSON holds {text[:20]}, which is not finite")
    return value
