"""What a coupling rule sees of one ATen operation, and the table that rules are entered in.

A rule says which channel positions of the operands belong together and where they go in the result. It is a function
``rule(c: Coupling, call: Call) -> Layout | list[Layout] | None`` entered under the operation's name without overload
("aten.conv2d", or "mylib.my_op" for a custom operator); None means that nothing in the result can be removed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.fx import Node

from edgeprune.errors import EdgePruneError
from edgeprune.pruning.atoms import WHOLE, Atoms, Ids, Layout

Shape = tuple[int, ...]
Rule = Callable[["Coupling", "Call"], "Layout | list[Layout] | None"]

Norms = Literal["auto", "cut", "whole"]

RULES: dict[str, Rule] = {}
_TORCH = str(Path(torch.__file__).parent)


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Enter a rule for these operations: ``@rule("aten.relu", "mylib.my_op")``. A later entry replaces an earlier."""

    def enter(fn: Rule) -> Rule:
        for name in operations:
            RULES[name] = fn
        return fn

    return enter


class Call:
    """One operation of the exported graph, its arguments by the names of the operator's schema."""

    def __init__(self, node: Node, module: str) -> None:
        self.node = node
        self.module = module
        self.name = operation_name(node.target)
        self.args: dict[str, Any] = {}
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            for i, arg in enumerate(schema.arguments):
                given = node.args[i] if i < len(node.args) else node.kwargs.get(arg.name, arg.default_value)
                self.args[arg.name] = given

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    def tensors(self) -> Iterator[Node]:
        """Every operand that is a tensor (or a list of tensors), in order."""
        for value in [*self.node.args, *self.node.kwargs.values()]:
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Node):
                    yield item

    @property
    def where(self) -> str:
        """``operation in module (file:line)``."""
        line = source_line(self.node.meta.get("stack_trace"))
        return f"{self.name} in {self.module or 'the model'}" + (f" ({line})" if line else "")


class Coupling:
    """The state while a graph is walked: the layout of every value so far, and the costs of conv and linear."""

    def __init__(self, atoms: Atoms, norms: Norms = "auto", heads: bool = True) -> None:
        """``norms``, ``heads``: see ChannelGraph.trace (``heads`` False cuts the width of attention heads)."""
        self.atoms = atoms
        self.norms, self.heads = norms, heads
        self.normed: list[Node] = []
        self.taken: list[tuple[Node, int]] = []  # dimensions of which a fixed number is taken
        self._spread: list[tuple[int, int]] = []
        self.layouts: dict[Node, Layout | list[Layout]] = {}
        self.costs: list[tuple[Layout, Shape, int]] = []
        self.cost_nodes: list[Node] = []
        self.at: Node  # the node being walked
        self.notes: list[str] = []
        self.roles: dict[int, str] = {}
        self.random = False

    # reading

    def layout(self, value: Any) -> Layout:
        """The layout of a tensor operand; () for None and numbers."""
        if not isinstance(value, Node):
            return ()
        layout = self.layouts.get(value)
        if isinstance(layout, tuple):
            return layout
        return (None,) * len(shape_of(value))

    # saying what belongs together

    def couple(self, call: Call, a: Ids | None, b: Ids | None) -> None:
        """Position i of one dimension goes with position i of the other."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.whole(call, b if a is None else a, "meets channels that stay whole")
        else:
            self.atoms.union(a, b, f"{call.where}: meets channels that stay whole")

    def whole(self, call: Call, ids: Ids | None, why: str) -> None:
        """Never remove these positions, because ``why``."""
        if ids is not None:
            self.atoms.pin(ids, f"{call.where}: {why}")

    def whole_dims(self, call: Call, layout: Layout, dims: Sequence[int], why: str) -> None:
        for d in dims:
            self.whole(call, layout[d], why)

    def equal_pattern(self, call: Call, ids: Ids | None, rows: int) -> Ids | None:
        """Cut a dimension into ``rows`` equal runs that must lose the same positions; the pattern of one run."""
        if ids is None:
            return None
        table = ids.reshape(rows, -1)
        for row in table[1:]:
            self.couple(call, table[0], row)
        return table[0] if table.shape[1] > 1 else None

    def broadcast(self, call: Call, operands: Sequence[Node], out: Shape) -> Layout:
        """Couple operands as elementwise operations do; the layout of the result."""
        result: list[Ids | None] = [None] * len(out)
        for d, size in enumerate(out):
            if size == 1:
                continue
            at = d - len(out)
            full = [n for n in operands if len(shape_of(n)) >= -at and shape_of(n)[at] == size]
            if full:
                first = self.layout(full[0])[at]
                for other in full[1:]:
                    ids = self.layout(other)[at]
                    self.couple(call, first, ids)
                    first = ids if first is None else first
                result[d] = first
        return tuple(result)

    def note(self, call: Call, text: str) -> None:
        """Named among the graph's notes, once."""
        note = f"{call.where}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def role(self, ids: Ids | None, role: str) -> None:
        """What a parameter's dimension is to its layer: "out" (makes channels), "in" (reads them), "scale"."""
        if ids is not None:
            self.roles.setdefault(int(ids[0]), role)

    def count(self, layout: Layout, shape: Shape, times: int) -> None:
        """``times`` multiply-adds for every element of a (weight-like) tensor of this layout."""
        self.costs.append((layout, shape, times))
        self.cost_nodes.append(self.at)

    def count_product(self, layout: Layout, shape: Shape) -> None:
        """A multiply-add for every position of these dimensions (a product of two computed matrices)."""
        cut = [d for d, ids in enumerate(layout) if self.atoms.prunable(ids)]
        times = math.prod(s for d, s in enumerate(shape) if d not in cut)
        self.count(tuple(layout[d] for d in cut) or (None,), tuple(shape[d] for d in cut) or (1,), times)

    def spread(self, size: int) -> Ids:
        """Fresh positions of a dimension that is one value repeated; they follow what they meet next."""
        ids = self.atoms.new(size)
        self._spread.append((int(ids[0]), int(ids[-1])))
        return ids

    def is_spread(self, ids: Ids | None) -> bool:
        """Whether these are repeated values that have met nothing yet."""
        if ids is None or not len(ids) or not np.array_equal(self.atoms.find(ids), ids):
            return False
        return any(a <= int(ids[0]) <= b for a, b in self._spread)

    # walking

    def step(self, node: Node, module: str) -> None:
        """Couple what this node couples and note the layout of its result."""
        self.at = node
        if node.target is operator.getitem:
            source, index = node.args
            parts = self.layouts.get(source)  # type: ignore[arg-type]
            if isinstance(parts, list) and isinstance(index, int) and index < len(parts):
                self.layouts[node] = parts[index]
            return
        call = Call(node, module)
        tags = getattr(node.target, "tags", ())
        self.random |= torch.Tag.nondeterministic_seeded in tags
        found = RULES.get(call.name)
        if found is None and torch.Tag.pointwise in tags:
            found = RULES["pointwise"]
        if found is None:
            self._unknown(call)
            return
        result = found(self, call)
        if result is not None:
            shapes = shapes_of(node) if isinstance(result, list) else [shape_of(node)]
            for layout, shape in zip([result] if isinstance(result, tuple) else result, shapes):  # noqa: B905
                if len(layout) != len(shape) or any(i is not None and len(i) != n for i, n in zip(layout, shape)):  # noqa: B905
                    raise EdgePruneError(f"the coupling rule of {call.where} gave a layout that does not fit {shape}")
            self.layouts[node] = result

    def _unknown(self, call: Call) -> None:
        touched = False
        for operand in call.tensors():
            parts = self.layouts.get(operand)
            for layout in parts if isinstance(parts, list) else [self.layout(operand)]:
                for ids in layout:
                    touched |= ids is not None and bool((self.atoms.find(ids) != WHOLE).any())
                    self.whole(call, ids, "no coupling rule for this operation")
        if touched:
            self.note(call, "no coupling rule for this operation; its channels stay whole")


def shape_of(value: Any) -> Shape:
    """The shape of a graph value as plain numbers; () for what is not one tensor."""
    val = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(int(s) for s in val.shape) if isinstance(val, torch.Tensor) else ()


def shapes_of(value: Node) -> list[Shape]:
    """The shapes of a graph value that is a tuple of tensors."""
    val = value.meta.get("val")
    parts = val if isinstance(val, (list, tuple)) else [val]
    return [tuple(int(s) for s in v.shape) if isinstance(v, torch.Tensor) else () for v in parts]


def operation_name(target: Any) -> str:
    """``aten.add`` for ``torch.ops.aten.add.Tensor`` and for its in-place variant."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet) if packet is not None else getattr(target, "__name__", str(target))
    return name[:-1] if name.startswith("aten.") and name.endswith("_") and not name.endswith("__") else name


def source_line(stack_trace: str | None) -> str:
    """``file.py:12`` of the innermost frame outside torch, or ''."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack_trace or "")
    for file, line in reversed(frames):
        if not file.startswith(_TORCH):
            return f"{Path(file).name}:{line}"
    return ""
