"""A graph of opset 18 in the words of opset 17, for what onnx's own converter has no adapter for.

torch.export writes opset 18 at the least. Of its operators only those below are another thing one opset earlier; each
is rewritten where that is possible, and what is not raises ``CannotBeOlder``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeprune.export._need import need

OLDER_OPSET = 17  # what is written
NEW_IN_18 = frozenset(
    [
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "GroupNormalization",
        "LpPool",
        "Mish",
        "OptionalGetElement",
        "OptionalHasElement",
    ]
)


class CannotBeOlder(Exception):
    """A node that means something which opset 17 has no words for."""


def to_opset_17(proto: Any) -> Any:
    """A copy of ``proto``, a model of opset 18; CannotBeOlder says which node has no older form."""
    written = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != OLDER_OPSET + 1:
        raise CannotBeOlder(f"a graph of opset {written}")
    older = need("onnx").ModelProto()
    older.CopyFrom(proto)
    known = _Known(older)
    for graph in _graphs(older.graph):
        _rewrite(graph, known)
    graphs = list(_graphs(older.graph))
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs for value in graph.output}
    for unread in [t for t in older.graph.initializer if t.name not in read]:
        older.graph.initializer.remove(unread)
    for entry in older.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OLDER_OPSET
    return older


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph, and those that its nodes hold (loops, branches), which see its names."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)


class _Known:
    """Constants and shapes of a graph, and of those within it, by name; and new constants."""

    def __init__(self, proto: Any) -> None:
        onnx = need("onnx")
        self.graph = proto.graph
        self.shapes: dict[str, list[int | None]] = {}
        for graph in _graphs(onnx.shape_inference.infer_shapes(proto).graph):
            for value in (*graph.value_info, *graph.input, *graph.output):
                tensor = value.type.tensor_type
                if tensor.HasField("shape"):
                    dims = tensor.shape.dim
                    self.shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        graphs = list(_graphs(proto.graph))
        self.constants: dict[str, Any] = {t.name: t for graph in graphs for t in graph.initializer}
        self.taken = self.constants.keys() | {name for g in graphs for node in g.node for name in node.output}
        self.taken |= {value.name for graph in graphs for value in graph.input}
        for node in (node for graph in graphs for node in graph.node):
            if node.op_type == "Constant":
                for key, value in _attributes(node).items():
                    if key == "value":
                        self.constants[node.output[0]] = value
                    elif key in ("value_int", "value_ints"):
                        numbers = [value] if key == "value_int" else list(value)
                        made = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(numbers)], numbers)
                        self.constants[node.output[0]] = made
        for name, tensor in self.constants.items():
            self.shapes.setdefault(name, list(tensor.dims))

    def integers(self, name: str, node: Any) -> list[int]:
        if name not in self.constants:
            raise CannotBeOlder(f"{node.op_type} of opset 18 with {name!r} computed at run time")
        return [int(i) for i in need("onnx").numpy_helper.to_array(self.constants[name]).ravel()]

    def add(self, like: str, values: list[int]) -> str:
        onnx = need("onnx")
        name = next(n for i in range(len(self.taken) + 1) if (n := f"{like}_{i}") not in self.taken)
        self.taken.add(name)
        self.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
        self.shapes[name] = [len(values)]
        return name


def _rewrite(graph: Any, known: _Known) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in NEW_IN_18:
            raise CannotBeOlder(f"{node.op_type} is new in opset 18")
        if change := _CHANGED.get(node.op_type):
            change(node, known)


def _attributes(node: Any) -> dict[str, Any]:
    helper = need("onnx").helper
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _drop(node: Any, defaults: Mapping[str, object]) -> None:
    """Removes attributes that opset 17 does not know, where they are at what it does anyway."""
    kept = []
    for attribute in node.attribute:
        if attribute.name not in defaults:
            kept.append(attribute)
        elif _attributes(node)[attribute.name] != defaults[attribute.name]:
            raise CannotBeOlder(f"{node.op_type} with {attribute.name} is new in opset 18")
    kept = [type(a).FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(kept)


def _split(node: Any, known: _Known) -> None:
    """18 may say how many parts; 17 makes as many as there are outputs, equal ones unless it is told the sizes."""
    said = _attributes(node)
    parts = int(said.get("num_outputs", len(node.output)))
    _drop(node, {"num_outputs": parts})
    if len(node.input) > 1 and node.input[1]:
        return
    shape, axis = known.shapes.get(node.input[0]), int(said.get("axis", 0))
    size = shape[axis] if shape else None
    if size is None:
        raise CannotBeOlder("Split of a dimension whose size is not known")
    each = -(-size // parts)
    sizes = [max(0, min(each, size - i * each)) for i in range(parts)]
    del node.input[1:]
    node.input.append(known.add("split_sizes", sizes))


def _pad(node: Any, known: _Known) -> None:
    """18 may say which axes the paddings are of; 17 wants two for every dimension."""
    if _attributes(node).get("mode") == b"wrap":
        raise CannotBeOlder("Pad that wraps is new in opset 19")
    if len(node.input) < 4:
        return
    axes = node.input[3]
    if axes:
        rank = len(known.shapes.get(node.input[0]) or [])
        if not rank:
            raise CannotBeOlder("Pad of some axes of a tensor whose rank is not known")
        given, pads = known.integers(axes, node), known.integers(node.input[1], node)
        whole = [0] * (2 * rank)
        for i, axis in enumerate(given):
            whole[axis % rank], whole[rank + axis % rank] = pads[i], pads[len(given) + i]
        node.input[1] = known.add("pads", whole)
    del node.input[3:]


def _reduce(node: Any, known: _Known) -> None:
    """18 takes the axes as an input; 17, but for sums, as an attribute."""
    onnx = need("onnx")
    axes = known.integers(node.input[1], node) if len(node.input) > 1 and node.input[1] else []
    noop = int(_attributes(node).get("noop_with_empty_axes", 0))
    if noop and not axes:
        raise CannotBeOlder(f"{node.op_type} that does nothing without axes is new in opset 18")
    _drop(node, {"noop_with_empty_axes": noop})
    if axes:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    del node.input[1:]


def _resize(node: Any, known: _Known) -> None:
    _drop(node, {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"})
    if "axes" in _attributes(node):
        raise CannotBeOlder("Resize of some axes is new in opset 18")


def _scatter(node: Any, known: _Known) -> None:
    if _attributes(node).get("reduction", b"none") not in (b"none", b"add", b"mul"):
        raise CannotBeOlder(f"{node.op_type} that keeps the larger or smaller is new in opset 18")


_CHANGED: dict[str, Callable[[Any, _Known], None]] = {
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    **dict.fromkeys(
        [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        ],
        _reduce,
    ),
}
