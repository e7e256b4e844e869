"""The sub-models that a profile measures: narrower, shallower, sparser.

Widths come in two kinds, as the algorithms make them: the same share of every layer (``layer``), and one ranking over
all layers (``global``), which leaves some layers wide and others narrow. Depth leaves out residual blocks whose output
has the shape of their input. Density needs the masked layers of :func:`edgeprune.sparsify`; without it there is none.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.device.profile import ModelSize
from edgeprune.errors import EdgePruneError
from edgeprune.fleet.size import size_of
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, extract, ranking, scores

WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHECKS = (0.08, 0.18, 0.35, 0.55, 0.75, 0.95)
DENSITIES = (0.5, 0.2, 0.1)
DEPTHS = (0.75, 0.5)


@dataclass(frozen=True)
class Shape:
    """One sub-model to measure. ``kind``: layer, global, depth or density; ``check``: left out of the fit."""

    kind: str
    width: float
    depth: float
    density: float
    size: ModelSize
    build: Callable[[], nn.Module]
    check: bool = False


def widths_of(
    model: nn.Module, graph: ChannelGraph, widths: Sequence[float] = WIDTHS, checks: Sequence[float] = CHECKS
) -> Iterator[Shape]:
    """Narrower models, smallest first; those of ``checks`` are for judging the fit only. Equal plans come once."""
    found: dict[str, Shape] = {}
    by_layer, overall = scores(model, graph, "l1"), ranking(graph, scores(model, graph, "l2"), 2)
    for check, shares in ((False, widths), (True, checks)):
        for share in shares:
            for kind in ("layer", "global"):
                plan = choose(graph, by_layer, share, min_channels=2) if kind == "layer" else overall.plan(share)
                found.setdefault(plan.id, _narrow(model, graph, plan, kind, check))
    return iter(sorted(found.values(), key=lambda shape: shape.size.macs))


def _narrow(model: nn.Module, graph: ChannelGraph, plan: SubmodelPlan, kind: str, check: bool) -> Shape:
    size = size_of(graph, plan.counts)
    return Shape(kind, plan.retention, 1.0, 1.0, size, lambda: extract(model, plan), check)


def depths_of(model: nn.Module, inputs: tuple[Any, ...], depths: Sequence[float] = DEPTHS) -> list[Shape]:
    """Shallower models; none when the model has no residual block that can be left out."""
    blocks = droppable_blocks(model, inputs)
    found: dict[int, Shape] = {}
    for depth in depths:
        kept = round(depth * len(blocks))
        if blocks and kept < len(blocks) and kept not in found:
            small = without_blocks(model, blocks[kept:])
            graph = ChannelGraph.trace(small, inputs)
            size = size_of(graph, SubmodelPlan.full(graph).counts)
            found[kept] = Shape("depth", 1.0, kept / len(blocks), 1.0, size, _copier(small))
    return list(found.values())


def droppable_blocks(model: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """Names of residual blocks, in the order of the network: members of an ``nn.Sequential`` that are made of further
    modules and whose output has their input's shape."""
    candidates = {
        f"{name}.{child_name}" if name else child_name: child
        for name, parent in model.named_modules()
        if isinstance(parent, nn.Sequential)
        for child_name, child in parent.named_children()
        if not isinstance(child, nn.Sequential) and any(True for _ in child.children())
    }
    found: list[str] = []
    hooks = []
    for name, child in candidates.items():

        def look(_: nn.Module, args: tuple[Any, ...], out: Any, name: str = name) -> None:
            same = isinstance(out, Tensor) and len(args) == 1 and isinstance(args[0], Tensor)
            if same and out.shape == args[0].shape:
                found.append(name)

        hooks.append(child.register_forward_hook(look))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def without_blocks(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of ``model`` in which these blocks pass their input on."""
    small = copy.deepcopy(model)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, nn.Identity())
    return small


def densities_of(
    model: nn.Module, graph: ChannelGraph, densities: Sequence[float] = DENSITIES
) -> tuple[list[Shape], str | None]:
    """(sparse models of full width, why there are none)."""
    sparsify = sparsifier()
    if sparsify is None:
        return [], "densities: not measured, this version has no edgeprune.sparsify"
    size = size_of(graph, SubmodelPlan.full(graph).counts)
    shapes: list[Shape] = []
    for density in densities:
        try:
            sparse = sparsify(copy.deepcopy(model), density=density)
        except EdgePruneError as error:
            return shapes, f"densities: not measured ({error})"
        shapes.append(Shape("density", 1.0, 1.0, density, size, _copier(sparse)))
    return shapes, None


def _copier(model: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(model)


def sparsifier() -> Callable[..., nn.Module] | None:
    """``edgeprune.sparsify`` where this version has it."""
    try:
        found = getattr(importlib.import_module("edgeprune"), "sparsify", None)
    except (ImportError, AttributeError):
        return None
    return found if callable(found) and not inspect.ismodule(found) else None
