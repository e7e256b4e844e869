"""Blocks that a network can do without: residual ones, whose input comes out again, and what lies behind an exit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from edgeprune.nn.exits import Exits
from edgeprune.pruning.capture import cloned
from edgeprune.pruning.coupling import operation_name, shape_of

_SUMS = 3  # a transformer's block adds two or three times, a stage of blocks more often
_THROUGH = frozenset(
    "aten." + name
    for name in ("relu", "relu6", "silu", "gelu", "hardswish", "hardtanh", "layer_norm", "rms_norm", "batch_norm",
                 "dropout", "clone", "contiguous", "permute", "transpose", "to", "_to_copy", "alias", "detach", "view",
                 "reshape")
)  # fmt: skip
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def droppable(model: nn.Module, program: Any, inputs: tuple[Any, ...]) -> dict[str, tuple[str, ...]]:
    """By name the modules (under all names they have) that can be replaced by their input, in the network's order.

    A block is a module called once, with one tensor out, of the shape of its first argument (and of no other), which
    reaches the output through at most three sums and otherwise only norms and activations; of nested ones the
    innermost. The part of an ``Exits`` behind each exit is one block of several modules, named "after" the exit.
    """
    calls = _calls(model, inputs)
    regions = _regions(program)
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    found = []
    for path, nodes in regions.items():
        if calls.get(path) and not isinstance(model.get_submodule(path), _CONTAINERS) and _residual(nodes, given):
            found.append(path)
    inner = [p for p in found if not any(q != p and q.startswith(f"{p}.") for q in found)]
    blocks: dict[str, tuple[str, ...]] = {p: (p,) for p in inner}
    for path, module in model.named_modules():
        if isinstance(module, Exits):
            prefix = f"{path}." if path else ""
            blocks.update({f"after {prefix}{at}": tuple(prefix + m for m in tail) for at, tail in module.tails.items()})
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {
        block: tuple(dict.fromkeys(n for p in paths for n in (p, *names[id(model.get_submodule(p))])))
        for block, paths in blocks.items()
    }


def _calls(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, bool]:
    """Whether a module was called once, with a tensor first and one of the same shape and type back."""
    names = {id(m): n for n, m in model.named_modules()}
    found: dict[str, bool] = {}

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        name = names[id(module)]
        x = args[0] if args else None
        same = isinstance(x, Tensor) and isinstance(out, Tensor) and x.shape == out.shape and x.dtype == out.dtype
        found[name] = same and name not in found

    hooks = [m.register_forward_hook(note) for n, m in model.named_modules() if n]
    try:
        with torch.no_grad():
            model.eval()(*cloned(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _regions(program: Any) -> dict[str, list[Node]]:
    """The nodes of every module, those of the modules within included."""
    found: dict[str, list[Node]] = {}
    for node in program.graph.nodes:
        for path in {str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()}:
            if path and node.op == "call_function":
                found.setdefault(path, []).append(node)
    return found


def _residual(nodes: list[Node], given: set[str]) -> bool:
    """Whether the one value from outside that has the result's shape comes out again through sums."""
    inside = set(nodes)
    results = [n for n in nodes if any(user not in inside for user in n.users)]
    if len(results) != 1:
        return False
    outside = {v for n in nodes for v in n.all_input_nodes if v not in inside}
    shape = shape_of(results[0])
    sources = {v for v in outside if shape_of(v) == shape and (v.op == "call_function" or v.name in given)}
    if len(sources) != 1:
        return False
    queue, seen = [(results[0], 0)], set()
    while queue:
        node, sums = queue.pop()
        if node in seen or sums > _SUMS:
            continue
        seen.add(node)
        if node not in inside:
            if sums and node in sources:
                return True
            continue
        name = operation_name(node.target)
        if name == "aten.add":
            queue += [(n, sums + 1) for n in node.all_input_nodes]
        elif name in _THROUGH and node.all_input_nodes:
            queue.append((node.all_input_nodes[0], sums))
    return False


def block_of(module: str, blocks: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The blocks that a module goes with."""
    return tuple(
        name for name, paths in blocks.items() if any(module == path or module.startswith(f"{path}.") for path in paths)
    )
