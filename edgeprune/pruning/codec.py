"""The text of a plan, and the way back from a text that nobody vouches for.

    {"format": "edgeprune.plan/1",
     "groups": {"layer1.0.conv1": [64, "b<base64>"], ...},      size, kept channels
     "kinds":  ["weight=$0 $1 3 3", "weight=$0;bias=$0;...", ...],
     "axes":   {"layer1.0.conv1": "0 #2 #1", ...},              module -> kind, what $0, $1 ... stand for
     "sizes":  {"blocks.0.attn.num_heads": "#7", ...}}          attributes of modules; left out when there are none
     "blocks": {"layer1.1": [1, "layer1.1"], ...}}              0 when left out, then the modules; as above

Kept channels: "" all, "r0-31,40" runs, "b" + base64 of the bitmap (lowest bit first); the shortest is written.
An axis is a sum of segments: ``17`` positions that stay, ``#2`` the channels of group number 2, ``#2*49`` each as a
block of 49, ``#2*1x4`` four times over. A kind lists the tensors of a module with their axes, separated by blanks.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from edgeprune.errors import EdgePruneError, shown
from edgeprune.pruning.axes import Axis, AxisMap, Segment

FORMAT = "edgeprune.plan/1"
MAX_TEXT = 1 << 24  # characters; a plan of ResNet-50 has about 6,000
MAX_CHANNELS = 1 << 20  # of all groups together
MAX_LENGTH = 1 << 26  # positions of one dimension
MAX_TENSORS = 1 << 17
MAX_RANK = 8
MAX_SEGMENTS = 1 << 14  # of one dimension

_SEGMENT = re.compile(r"#(\d{1,6})(?:\*(\d{1,8})(?:x(\d{1,8}))?)?|(\d{1,10})", re.ASCII)
_RUN = re.compile(r"(\d{1,8})(?:-(\d{1,8}))?", re.ASCII)


def bitmap(kept: npt.NDArray[np.int64], size: int) -> bytes:
    """``size`` bits, the kept ones set, lowest bit of a byte first."""
    bits = np.zeros(size, np.uint8)
    bits[kept] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def from_bitmap(data: bytes, size: int, group: str) -> tuple[int, ...]:
    """The kept channels; EdgePruneError when the length is wrong or bits beyond ``size`` are set."""
    if len(data) != (size + 7) // 8:
        raise EdgePruneError(
            f"the bitmap of {group!r} has {len(data)} bytes, its {size} channels need {(size + 7) // 8}"
        )
    bits = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"))
    if len(bits) and bits[-1] >= size:
        raise EdgePruneError(f"the bitmap of {group!r} keeps channel {bits[-1]}, it has {size}")
    return tuple(bits.tolist())


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(axes: AxisMap, kept: Mapping[str, npt.NDArray[np.int64]], dropped: tuple[str, ...] = ()) -> str:
    """The JSON text of a map, its kept channels and the blocks left out."""
    number = {name: i for i, name in enumerate(axes.groups)}
    modules: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, tensor_axes in axes.tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tuple(_axis_text(axis, number) for axis in tensor_axes)
    kinds: dict[str, int] = {}
    lines: dict[str, str] = {}
    for module, tensors in modules.items():
        slots: dict[str, str] = {}
        parts = []
        for leaf, texts in tensors.items():
            named = [slots.setdefault(t, f"${len(slots)}") if "#" in t else t for t in texts]
            parts.append(f"{quote(leaf, safe='')}={' '.join(named)}")
        kind = kinds.setdefault(";".join(parts), len(kinds))
        lines[module] = " ".join([str(kind), *slots])
    groups = {name: [size, _kept_text(kept[name], size)] for name, size in axes.groups.items()}
    text: dict[str, Any] = {"format": FORMAT, "groups": groups, "kinds": list(kinds), "axes": lines}
    if axes.sizes:
        text["sizes"] = {name: _axis_text(axis, number) for name, axis in axes.sizes.items()}
    if axes.blocks:
        text["blocks"] = {name: [int(name not in dropped), *modules] for name, modules in axes.blocks.items()}
    return json.dumps(text, separators=(",", ":"))


def _axis_text(axis: Axis, number: Mapping[str, int]) -> str:
    def one(s: Segment) -> str:
        if s.group is None:
            return str(s.size)
        tail = f"*{s.block}x{s.repeat}" if s.repeat > 1 else f"*{s.block}" if s.block > 1 else ""
        return f"#{number[s.group]}{tail}"

    return "+".join(one(s) for s in axis) or "0"


def _kept_text(kept: npt.NDArray[np.int64], size: int) -> str:
    if len(kept) == size:
        return ""
    cuts = np.flatnonzero(np.diff(kept) != 1)
    starts, ends = kept[np.append(0, cuts + 1)].tolist(), kept[np.append(cuts, len(kept) - 1)].tolist()
    as_runs = "r" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    as_bits = "b" + base64.b64encode(bitmap(kept, size)).decode()
    return min(as_runs, as_bits, key=len)


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(text: str | bytes) -> tuple[AxisMap, dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The map, the kept channels and the blocks left out; one sentence of EdgePruneError on any other text."""
    if not isinstance(text, str | bytes):
        raise EdgePruneError(f"a plan is text, not {shown(text)}; write it with SubmodelPlan.to_json")
    if len(text) > MAX_TEXT:
        raise EdgePruneError(f"a plan of {len(text)} characters is too long, the limit is {MAX_TEXT}")
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise EdgePruneError("the plan is not valid JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise EdgePruneError(f"this is not a plan: the key 'format' must be {FORMAT!r}")
    if missing := {"groups", "kinds", "axes"} - data.keys():
        raise EdgePruneError(f"the plan lacks the key {min(missing)!r}")
    groups, kept = _groups(data["groups"])
    sizes = _sizes(data.get("sizes", {}), groups)
    blocks = _blocks(data.get("blocks", {}))
    axes = AxisMap(groups, _tensors(data["kinds"], data["axes"], groups), sizes, {n: m for n, (_, m) in blocks.items()})
    return axes, kept, tuple(name for name, (held, _) in blocks.items() if not held)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise EdgePruneError("the plan has a key twice")
    return dict(pairs)


def _groups(data: Any) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    if not isinstance(data, dict):
        raise EdgePruneError("the plan's 'groups' must be an object")
    sizes: dict[str, int] = {}
    kept: dict[str, tuple[int, ...]] = {}
    total = 0
    for name, entry in data.items():
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], str)):
            raise EdgePruneError(f"the plan's group {name!r} must be [size, kept channels as text]")
        size, written = entry
        total += max(size, 0)
        if size < 1 or total > MAX_CHANNELS:
            raise EdgePruneError(f"the plan's group {name!r} has an impossible size of {size} channels")
        sizes[name] = size
        kept[name] = _kept(written, size, name)
        if not kept[name]:
            raise EdgePruneError(f"the plan keeps no channel of {name!r}; keep at least one")
    return sizes, kept


def _kept(text: str, size: int, group: str) -> tuple[int, ...]:
    if text == "":
        return tuple(range(size))
    if text[0] == "b":
        try:
            return from_bitmap(base64.b64decode(text[1:], validate=True), size, group)
        except (binascii.Error, ValueError):
            raise EdgePruneError(f"the bitmap of {group!r} is not base64") from None
    if text[0] != "r":
        raise EdgePruneError(f"the kept channels of {group!r} must start with 'r' or 'b'")
    channels: list[int] = []
    for part in text[1:].split(","):
        run = _RUN.fullmatch(part)
        first = int(run[1]) if run else -1
        last = int(run[2] or run[1]) if run else -1
        if run is None or not (channels[-1] if channels else -1) < first <= last < size:
            raise EdgePruneError(f"the kept channels of {group!r} are not increasing runs within 0..{size - 1}")
        channels.extend(range(first, last + 1))
    return tuple(channels)


def _tensors(kinds: Any, modules: Any, groups: Mapping[str, int]) -> dict[str, tuple[Axis, ...]]:
    if not isinstance(kinds, list) or not all(isinstance(k, str) for k in kinds):
        raise EdgePruneError("the plan's 'kinds' must be a list of texts")
    if not isinstance(modules, dict) or not all(isinstance(m, str) for m in modules.values()):
        raise EdgePruneError("the plan's 'axes' must be an object of texts")
    names = list(groups)
    parsed = [[_kind_part(part) for part in kind.split(";")] for kind in kinds]
    tensors: dict[str, tuple[Axis, ...]] = {}
    axes: dict[str, Axis] = {}
    for module, line in modules.items():
        kind, *slots = line.split(" ")
        if not (kind.isascii() and kind.isdigit() and len(kind) < 7 and int(kind) < len(parsed)):
            raise EdgePruneError(f"the plan's module {module!r} has an unknown kind {kind[:20]!r}")
        for leaf, dims in parsed[int(kind)]:
            row = []
            for dim in dims:
                text = dim
                if dim.startswith("$"):
                    slot = dim[1:]
                    if not (slot.isascii() and slot.isdigit() and len(slot) < 4 and int(slot) < len(slots)):
                        raise EdgePruneError(f"the plan's module {module!r} lacks what {dim[:20]!r} stands for")
                    text = slots[int(slot)]
                if text not in axes:
                    axes[text] = _axis(text, names, groups, module)
                row.append(axes[text])
            tensors[f"{module}.{leaf}" if module else leaf] = tuple(row)
            if len(tensors) > MAX_TENSORS:
                raise EdgePruneError(f"the plan has more than {MAX_TENSORS} tensors")
    return tensors


def _sizes(data: Any, groups: Mapping[str, int]) -> dict[str, Axis]:
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()) or len(data) > MAX_TENSORS:
        raise EdgePruneError("the plan's 'sizes' must be an object of texts")
    return {name: _axis(text, list(groups), groups, name) for name, text in data.items()}


def _blocks(data: Any) -> dict[str, tuple[bool, tuple[str, ...]]]:
    found: dict[str, tuple[bool, tuple[str, ...]]] = {}
    if not isinstance(data, dict) or len(data) > MAX_TENSORS:
        raise EdgePruneError("the plan's 'blocks' must be an object")
    for name, entry in data.items():
        held, modules = (entry[0], entry[1:]) if isinstance(entry, list) and entry else (None, [])
        if (
            type(held) is not int
            or held not in (0, 1)
            or not modules
            or not all(m and isinstance(m, str) for m in modules)
        ):
            raise EdgePruneError(f"the plan's block {name!r} must be [0 or 1, modules]")
        found[name] = (bool(held), tuple(modules))
    return found


def _kind_part(text: str) -> tuple[str, list[str]]:
    leaf, equals, dims = text.partition("=")
    found = dims.split(" ") if dims else []
    if not leaf or not equals or len(found) > MAX_RANK:
        raise EdgePruneError(f"the plan's kind {text[:40]!r} must be 'tensor=axis axis ...'")
    return unquote(leaf), found


def _axis(text: str, names: list[str], groups: Mapping[str, int], module: str) -> Axis:
    segments = []
    length = 0
    if text.count("+") >= MAX_SEGMENTS:
        raise EdgePruneError(f"the plan's module {module!r} has an axis of more than {MAX_SEGMENTS} segments")
    for part in text.split("+"):
        m = _SEGMENT.fullmatch(part)
        if m is None or (m[1] and int(m[1]) >= len(names)):
            raise EdgePruneError(f"the plan's module {module!r} has an unreadable axis {text[:40]!r}")
        if m[4]:
            segment = Segment(None, int(m[4]))
        else:
            group = names[int(m[1])]
            segment = Segment(group, groups[group], int(m[2] or 1), int(m[3] or 1))
        length += segment.length
        if (segment.length == 0 and text != "0") or length > (MAX_LENGTH if "#" in text else 1 << 34):
            raise EdgePruneError(f"the plan's module {module!r} has an axis of impossible length, {text[:40]!r}")
        segments.append(segment)
    return tuple(segments) if length else ()
