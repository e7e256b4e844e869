"""How many clients train each weight: N*, the least of them, is what the convergence of unequal sub-models hangs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.pruning.graph import ChannelGraph
from edgeprune.pruning.submodel import SubmodelPlan


@dataclass(frozen=True)
class Coverage:
    """``least`` (N*) and ``mean`` clients per weight, the share of weights that just ``least`` hold, and that nobody
    holds."""

    least: int
    mean: float
    at_least: float
    uncovered: float

    def to_json(self) -> dict[str, Any]:
        """As a record takes it."""
        return asdict(self)


def coverage(graph: ChannelGraph, plans: Iterable[SubmodelPlan], names: Iterable[str]) -> Coverage:
    """Over the tensors ``names`` of the full model, for one plan per client."""
    held = list(plans)
    each = [holders(graph, name, held).flatten() for name in names]
    count = torch.cat(each) if each else torch.zeros(1, dtype=torch.int64)
    least = int(count.min())
    return Coverage(
        least,
        float(count.double().mean()),
        float((count == least).double().mean()),
        float((count == 0).double().mean()),
    )


def holders(graph: ChannelGraph, name: str, plans: Iterable[SubmodelPlan]) -> Tensor:
    """int64, of the full tensor's shape: how many of ``plans`` hold each of its elements."""
    count = torch.zeros(graph.map.shape(name), dtype=torch.int64)
    for plan, times in Counter(plans).items():
        if not plan.holds(name):
            continue
        inside = torch.full((), times)
        for d, index in enumerate(plan.indices(name)):
            size = count.shape[d]
            held = torch.ones(size, dtype=torch.int64)
            if index is not None:
                held = torch.zeros(size, dtype=torch.int64).index_fill_(0, index, 1)
            inside = inside * held.reshape([-1 if e == d else 1 for e in range(count.dim())])
        count += inside
    return count
