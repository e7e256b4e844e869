"""Extract, merge and graph of a ResNet-50, timed beside Torch-Pruning and torch's indexing (structured_graph.py)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.pruning import ChannelGraph, SubmodelPlan, extract, merge


def random_plan(graph: ChannelGraph, counts: dict[str, int], rng: np.random.Generator) -> SubmodelPlan:
    kept = {g: tuple(sorted(rng.choice(graph.map.groups[g], n, replace=False).tolist())) for g, n in counts.items()}
    return SubmodelPlan(graph.map, kept)


def timing(repeats: int) -> dict[str, Any]:
    """Medians of ``repeats`` turns, one thread."""
    import torch_pruning as tp
    from torchvision import models

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)
    start = time.perf_counter()
    graph = ChannelGraph.trace(model, (torch.randn(2, 3, 64, 64),))
    trace_s = time.perf_counter() - start
    start = time.perf_counter()
    ChannelGraph.trace(model, (torch.randn(2, 3, 64, 64),), verify=False)
    unverified_s = time.perf_counter() - start
    plan = random_plan(graph, {g: s // 2 for g, s in graph.map.groups.items()}, np.random.default_rng(0))
    state = {n: t.detach() for n, t in model.state_dict().items()}
    floats = [n for n, t in state.items() if t.is_floating_point()]
    local = {n: t.detach() for n, t in extract(model, plan).state_dict().items()}

    def indexed() -> dict[str, Tensor]:
        out = {}
        for n, t in state.items():
            for d, i in enumerate(plan.indices(n)):
                t = t if i is None else t.index_select(d, i)
            out[n] = t.clone()
        return out

    def advanced() -> dict[str, Tensor]:
        return {n: t[mesh(t)].clone() if t.dim() else t.clone() for n, t in state.items() for mesh in (_mesh(plan, n),)}

    def merged() -> dict[str, Tensor]:
        return merge(state, [(plan, local, 4.0)])

    def merged_by_index() -> dict[str, Tensor]:
        result = dict(state)
        for n in floats:
            t = state[n]
            total, count = torch.zeros_like(t), torch.zeros_like(t)
            at = _mesh(plan, n)(t)
            total[at] += 4.0 * local[n]
            count[at] += 4.0
            result[n] = torch.where(count > 0, total / count, t)
        return result

    dependency_start = time.perf_counter()
    tp.DependencyGraph().build_dependency(copy.deepcopy(model), example_inputs=x)
    dependency_s = time.perf_counter() - dependency_start

    def torch_pruning() -> float:
        small = copy.deepcopy(model)
        pruner = tp.pruner.MetaPruner(
            small, x, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=[small.fc]
        )
        start = time.perf_counter()
        pruner.step()
        return time.perf_counter() - start

    assert all(torch.equal(a, local[n]) for n, a in indexed().items())
    assert all(torch.equal(a, b) for a, b in zip(merged().values(), merged_by_index().values(), strict=True))
    sides = {
        "extract": lambda: extract(model, plan), "extract_index_select": indexed, "extract_advanced_index": advanced,
        "merge": merged, "merge_index": merged_by_index,
    }  # fmt: skip
    times: dict[str, list[float]] = {n: [] for n in sides} | {"torch_pruning_step": []}
    for _ in range(repeats):
        for name, work in sides.items():
            work()
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
        times["torch_pruning_step"].append(torch_pruning())
    ms = {n: round(1e3 * float(np.median(t)), 3) for n, t in times.items()}
    both = ms["extract"] + ms["merge"]
    by_index = min(ms["extract_index_select"], ms["extract_advanced_index"]) + ms["merge_index"]
    return {
        "network": "resnet50, half of the channels at random", "threads": 1, "median_ms": ms,
        "trace_s": round(trace_s, 2), "trace_without_check_s": round(unverified_s, 2),
        "torch_pruning_graph_s": round(dependency_s, 2),
        "torch_index_over_ours": round(by_index / both, 2),
        "torch_pruning_prune_over_our_extract": round(ms["torch_pruning_step"] / ms["extract"], 2),
    }  # fmt: skip


def _mesh(plan: SubmodelPlan, name: str) -> Callable[[Tensor], Any]:
    def mesh(t: Tensor) -> Any:
        index = [torch.arange(s) if i is None else i for s, i in zip(t.shape, plan.indices(name), strict=True)]
        return tuple(i.reshape([-1 if e == d else 1 for e in range(t.dim())]) for d, i in enumerate(index))

    return mesh
