"""ChannelGraph: which channels of which layers belong together, read off the ATen graph of torch.export."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.parameter import is_lazy

from edgeprune.errors import EdgePruneError, shown
from edgeprune.nn.copying import copied
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear
from edgeprune.pruning import rules as _rules  # noqa: F401  (fills the table)
from edgeprune.pruning import rules_attention as _rules_attention  # noqa: F401
from edgeprune.pruning import rules_norm as _rules_norm  # noqa: F401
from edgeprune.pruning import rules_recurrent as _rules_recurrent  # noqa: F401
from edgeprune.pruning import rules_shape as _rules_shape  # noqa: F401
from edgeprune.pruning.atoms import Atoms, Ids, Layout
from edgeprune.pruning.attributes import Candidate, candidates
from edgeprune.pruning.axes import Axis, AxisMap, local_size
from edgeprune.pruning.capture import Walk, batch_size, export, module_path, tensors, unfused_attention
from edgeprune.pruning.coupling import Coupling, Norms, Shape, shape_of, shapes_of
from edgeprune.pruning.depth import block_of, droppable
from edgeprune.pruning.grouping import AxisMaker, Found, find_groups
from edgeprune.pruning.surgery import REPAIRS


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that a group's channels lie in. ``role``: "out" (a layer's weight that makes these
    channels), "in" (one that reads them), "scale" (the weight of a batch norm), "" (anything else)."""

    tensor: str
    dim: int
    role: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or removed together; ``reason`` says why a group is not prunable."""

    name: str
    size: int
    prunable: bool
    reason: str | None
    members: tuple[Member, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """The channel groups of one model and the axes of its tensors; ``notes`` names what could not be followed."""

    groups: Mapping[str, ChannelGroup]
    map: AxisMap
    notes: tuple[str, ...]
    costs: tuple[tuple[tuple[Axis, ...], int], ...]
    batch: int
    cost_blocks: tuple[tuple[str, ...], ...] = ()

    @property
    def axes(self) -> Mapping[str, tuple[Axis, ...]]:
        """Per tensor name one Axis per dimension."""
        return self.map.tensors

    @property
    def prunable(self) -> dict[str, ChannelGroup]:
        """The groups that a plan may cut, in the order of the network."""
        return {name: g for name, g in self.groups.items() if g.prunable}

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that a plan may leave out (``plan.drop(name)``), in the order of the network; see depth.py."""
        return tuple(self.map.blocks)

    def macs(self, counts: Mapping[str, int], dropped: Sequence[str] = ()) -> int:
        """Multiply-adds of convolutions, linear and recurrent layers for one sample, with ``counts`` kept channels per
        group (all of those that are not named) and without the blocks ``dropped``."""
        costs, counts = self.costs, {**self.map.groups, **counts}
        if gone := set(dropped):
            costs = tuple(c for c, blocks in zip(costs, self.cost_blocks, strict=True) if not gone.intersection(blocks))
        return sum(times * local_size(axes, counts) for axes, times in costs) // self.batch

    @staticmethod
    def trace(
        model: nn.Module,
        example_inputs: tuple[Any, ...] | Tensor,
        *,
        whole: Iterable[str] = (),
        norms: Norms = "auto",
        attention: Literal["heads", "width"] = "heads",
        verify: bool = True,
    ) -> ChannelGraph:
        """Read the graph off ``model`` run on ``example_inputs`` (positional; batch of any size, 2 is best).

        Both the evaluation and the training path are followed. ``whole``: patterns such as ``"head.*"`` (or one) of
        tensors whose channels must stay. ``norms``: what becomes of channels over which a norm takes its statistics,
        since with fewer channels they are other statistics: "cut" removes them (the norm is that of the kept channels),
        "whole" keeps them, "auto" cuts them under group norms and keeps them under layer and RMS norms, whose width
        is a transformer's residual stream. ``attention``: whether heads go, or the width of every head.

        With ``verify`` (default) the model is cut at random once and its outputs, in double precision with random
        weights, are compared with those of the full model where the cut channels are zero; a group that fails stays
        whole and says why. The model is not changed.

        Raises EdgePruneError when torch.export cannot capture the model, or layers of it are masked.
        """
        if not isinstance(model, nn.Module):
            raise EdgePruneError(f"the model to prune is {shown(model)}; give a torch.nn.Module")
        if masked := [name for name, m in model.named_modules() if isinstance(m, MaskedLinear | MaskedConv2d)]:
            raise EdgePruneError(
                f"the layer {masked[0]!r} is masked, and channels are cut out of dense layers; call edgeprune.densify "
                "first"
            )
        if lazy := [name for name, t in tensors(model) if is_lazy(t)]:
            raise EdgePruneError(f"{lazy[0]!r} has no shape yet; run the model once with these inputs first")
        if verify:
            check_values(model)
        if norms not in get_args(Norms) or attention not in ("heads", "width"):
            raise EdgePruneError(
                f"norms must be one of {get_args(Norms)} and attention 'heads' or 'width', not {norms!r}, {attention!r}"
            )
        patterns = [whole] if isinstance(whole, str) or not isinstance(whole, Iterable) else list(whole)
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        builder = _Builder(copied("prune", model), inputs, norms, attention == "heads")
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), unfused_attention():
            warnings.simplefilter("ignore")
            builder.walk(training=False)
            builder.walk(training=True)
            for pattern in patterns:
                builder.keep_whole(pattern)
            graph = builder.graph()
            if verify:
                from edgeprune.pruning.verify import check, failing_blocks

                while True:
                    for name, why in failing_blocks(model, graph, builder.inputs).items():
                        del builder.blocks[name]
                        builder.notes.append(f"the block {name} cannot be left out: {why}")
                        graph = builder.graph()
                    failing, sizes, notes = check(
                        model, graph, builder.inputs, builder.walks, builder.candidates, builder.taken
                    )
                    if not failing:
                        return replace(graph, map=replace(graph.map, sizes=sizes), notes=(*graph.notes, *notes))
                    for name, why in failing.items():
                        builder.refuse(name, why)
                    graph = builder.graph()
        return graph


def check_values(model: nn.Module) -> None:
    """EdgePruneError for a model whose tensors have no values."""
    if meta := [name for name, t in tensors(model) if t.is_meta]:
        raise EdgePruneError(f"prune: {meta[0]!r} is on the meta device and has no values; load the weights first")


class _Builder:
    """Walks exported graphs over one set of atoms and turns the result into a ChannelGraph."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], norms: Norms, heads: bool) -> None:
        self.model, self.inputs = model, inputs
        self.norms, self.heads = norms, heads
        self.blocks: dict[str, tuple[str, ...]] = {}
        self.cost_modules: list[str] = []
        self.walks: dict[bool, Walk] = {}
        self.candidates: list[Candidate] = []
        self.taken: set[str] = set()
        self._taken: list[Ids] = []
        self._handled: dict[str, dict[bytes, tuple[Ids | None, int]]] = {}
        self.atoms = Atoms()
        self.layouts: dict[str, Layout] = {}
        self.shapes: dict[str, Shape] = {}
        self.alias: dict[str, str] = {}
        self.costs: list[tuple[Layout, Shape, int]] = []
        self.notes: list[str] = []
        self.roles: dict[tuple[str, int], str] = {}
        self.reached: list[str] = []
        self.batch = 1
        first: dict[int, str] = {}
        for name, t in tensors(model):
            self.alias[name] = first.setdefault(id(t), name)
            if self.alias[name] == name:
                self.shapes[name] = tuple(t.shape)
                self.layouts[name] = tuple(self.atoms.new(s) if s > 1 else None for s in t.shape)

    # --- walking ---

    def walk(self, training: bool) -> None:
        """Export in one mode and couple along the graph."""
        program, self.inputs = export(self.model, self.inputs, training)
        c = Coupling(self.atoms, self.norms, self.heads)
        targets = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = self.alias.get(targets[node.name].target or "")
                if name is not None:
                    c.layouts[node] = self.layouts[name]
            elif node.op == "call_function":
                c.step(node, module_path(node))
                self._handles(c, node)
                self._reach(node, targets)
            elif node.op == "output":
                self._outputs(c, node, program.graph_signature.output_specs)
        if not training:
            self.costs, self.batch = c.costs, batch_size(self.inputs)
            self.cost_modules = [module_path(node) for node in c.cost_nodes]
            self.blocks = droppable(self.model, program, self.inputs)
        self._taken += [ids for node, d in c.taken if (ids := c.layout(node)[d]) is not None]
        self.notes += [note for note in c.notes if note not in self.notes]
        self.walks[training] = Walk(
            program, {n: (c.layout(n.args[0]), shape_of(n.args[0])) for n in c.normed}, c.random
        )
        for name, layout in self.layouts.items():
            for d, ids in enumerate(layout):
                if ids is not None and int(ids[0]) in c.roles:
                    self.roles.setdefault((name, d), c.roles[int(ids[0])])

    def _outputs(self, c: Coupling, node: Node, specs: Sequence[Any]) -> None:
        """What the user gets stays whole; a buffer's new value (older exports return it) lies as the buffer does."""
        for value, spec in zip(node.args[0], specs, strict=True):  # type: ignore[arg-type]
            for d, ids in enumerate(c.layout(value)):
                if ids is None:
                    continue
                buffer = self.layouts.get(self.alias.get(spec.target or "", ""))
                own = buffer[d] if buffer is not None and spec.kind.name == "BUFFER_MUTATION" else None
                if own is not None:
                    self.atoms.union(ids, own, "a buffer's new value is made of channels that stay whole")
                else:
                    self.atoms.pin(ids, "the network's output")

    def _reach(self, node: Node, targets: Mapping[str, Any]) -> None:
        """Note the parameters in the order in which the network reads them."""
        for value in node.all_input_nodes:
            name = self.alias.get(targets[value.name].target or "") if value.op == "placeholder" else None
            if name is not None and name not in self.reached:
                self.reached.append(name)

    def _handles(self, c: Coupling, node: Node) -> None:
        """Note which dimensions a module sees: an attribute of it may hold their size."""
        paths = {str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()}
        for value in (node, *node.all_input_nodes):
            parts = c.layouts.get(value)
            many = (
                [(lay, s) for lay, s in zip(parts, shapes_of(value), strict=False)]
                if isinstance(parts, list)
                else [(c.layout(value), shape_of(value))]
            )
            for layout, shape in many:
                for ids, size in zip(layout, shape, strict=True):
                    key = b"%d" % size if ids is None else ids.tobytes()
                    for path in paths:
                        self._handled.setdefault(path, {})[key] = (ids, size)

    # --- what stays whole ---

    def keep_whole(self, pattern: str) -> None:
        hits = [name for name in self.alias if isinstance(pattern, str) and fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise EdgePruneError(f"no tensor of the model matches {shown(pattern)}, which was to stay whole")
        for name in hits:
            self._pin_tensor(self.alias[name], f"asked to stay whole ({pattern})")

    def refuse(self, group: str, why: str) -> None:
        """Keep one group whole that turned out not to work."""
        found = next(f for f in self._found if self._named.get(id(f)) == group)
        self.atoms.pin(found.roots, why)
        self.notes.append(f"{group} stays whole: {why}")

    def _pin_tensor(self, name: str, why: str) -> None:
        for ids in self.layouts[name]:
            if ids is not None:
                self.atoms.pin(ids, why)

    # --- the result ---

    def graph(self) -> ChannelGraph:
        for name in self.layouts:
            if name not in self.reached:
                self._pin_tensor(name, f"{name} is not reached by the forward pass")
        costs = [(f"cost {i}", layout, shape) for i, (layout, shape, _) in enumerate(self.costs)]
        while True:
            refusals: list[Ids] = []
            self._found = find_groups(self.atoms, self._ordered())
            names = self._names()
            maker = AxisMaker(self.atoms, names, self._found)
            axes = {n: maker.axes(lay, self.shapes[n], refusals.append) for n, lay in self.layouts.items()}
            cost_axes = [maker.axes(layout, shape, refusals.append) for _, layout, shape in costs]
            for walk in self.walks.values():
                walk.axes = {n: maker.axes(lay, shape, refusals.append) for n, (lay, shape) in walk.normed.items()}
            if not refusals:
                break
            for ids in refusals:
                self.atoms.pin(ids, "its channels are interleaved with others in a way that a plan cannot write")
        handled = {
            path: [maker.axes((ids,), (size,), lambda ids: None)[0] for ids, size in seen.values()]
            for path, seen in self._handled.items()
        }
        taken = {int(root) for ids in self._taken for root in self.atoms.find(ids)}
        found = zip(names, self._found, strict=True)
        self.taken = {n for n, f in found if n is not None and not taken.isdisjoint(f.roots.tolist())}
        self.candidates = candidates(self.model, handled, tuple(REPAIRS))
        first = {c.name: c.first for c in self.candidates if c.first is not None}
        used = dict.fromkeys(n for n in names if n is not None)
        sizes = {n: len(f.roots) for n, f in zip(names, self._found, strict=True) if n is not None}
        groups = {g.name: g for g in self._channel_groups(names)}
        return ChannelGraph(
            groups=groups,
            map=AxisMap({n: sizes[n] for n in used}, {n: axes[a] for n, a in self.alias.items()}, first, self.blocks),
            notes=tuple(self.notes),
            costs=tuple((a, times) for a, (_, _, times) in zip(cost_axes, self.costs, strict=True)),
            batch=self.batch,
            cost_blocks=tuple(block_of(module, self.blocks) for module in self.cost_modules),
        )

    def _ordered(self) -> dict[str, Layout]:
        """Layouts with the tensors in the order in which the network reaches them."""
        return {n: self.layouts[n] for n in [*self.reached, *(n for n in self.layouts if n not in self.reached)]}

    def _producer(self, found: Found) -> str | None:
        outs = [t for t, d in found.keys if self.roles.get((t, d)) == "out"]
        return outs[0].rsplit(".", 1)[0] if outs and "." in outs[0] else (outs[0] if outs else None)

    def _names(self) -> list[str | None]:
        """A name for every prunable group (that of the first layer that makes its channels), None for the others."""
        self._named: dict[int, str] = {}
        taken: dict[str, int] = {}
        for found in self._found:
            if len(found.roots) == 1 and found.reason is None:
                self.atoms.pin(found.roots, "a single channel")
                found.reason = "a single channel"
        for found in sorted(self._found, key=lambda f: f.reason is not None):
            base = self._producer(found)
            if base is None:
                self.atoms.pin(found.roots, "no layer makes these channels")
                continue
            taken[base] = taken.get(base, 0) + 1
            self._named[id(found)] = base if taken[base] == 1 else f"{base}#{taken[base]}"
        return [self._named.get(id(found)) if found.reason is None else None for found in self._found]

    def _channel_groups(self, names: list[str | None]) -> Iterable[ChannelGroup]:
        for found in self._found:
            name = self._named.get(id(found))
            if name is not None:
                members = tuple(Member(t, d, self.roles.get((t, d), "")) for t, d in found.keys)
                yield ChannelGroup(name, len(found.roots), found.reason is None, found.reason, members)
