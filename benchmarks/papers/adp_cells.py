"""The grid of benchmarks/papers/adp.py: which runs there are, and what is asked of a run with gates when it ends."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from paper_runs import Cell
from scipy.stats import spearmanr
from torch import Tensor

SEEDS = (0, 1, 2)
SPLITS = {
    "0.1": ("data.partition=dirichlet", "data.alpha=0.1"),
    "0.5": ("data.partition=dirichlet", "data.alpha=0.5"),
    "1.0": ("data.partition=dirichlet", "data.alpha=1.0"),
    "iid": ("data.partition=iid",),
}
ROUNDS, DEVICES = 25, 10
KEEP = 0.7


def cell(row: str, split: str, seed: int, task: str, *sets: str) -> Cell:
    shared = (
        f"task.name=adp_tasks:{task}",
        *SPLITS[split],
        "data.samples=3000",
        f"fleet.devices={DEVICES}",
        "algorithm.calibrate=1",
        f"run.rounds={ROUNDS}",
        "run.evaluate_every=5",
    )
    return Cell(f"{row}-{split}-seed{seed}", f"{row}-{split}", seed, (*shared, *sets))


def gated(row: str, split: str, seed: int, *sets: str) -> Cell:
    own = ("algorithm.name=adp", f"algorithm.keep={KEEP}", f"algorithm.every={ROUNDS}")
    return cell(row, split, seed, "gated", *own, *sets)


def one_seed(seed: int) -> Iterator[Cell]:
    yield gated("gated", "0.1", seed)
    yield cell("dense", "0.1", seed, "dense", "algorithm.name=fedavg")
    yield gated("gated-prox", "0.1", seed, "algorithm.prox=0.01")
    yield cell("dense-prox", "0.1", seed, "dense", "algorithm.name=fedavg", "algorithm.prox=0.01")
    for split in ("iid", "1.0", "0.5"):
        yield gated("gated", split, seed)
    yield gated("threshold", "0.1", seed, "algorithm.threshold=0.001")


def cells(grid: str = "all") -> list[Cell]:
    """Every cell, one seed after the other."""
    return list(itertools.chain.from_iterable(one_seed(seed) for seed in SEEDS))


def finish(run: Any) -> dict[str, Any]:
    """Of a run with gates: how well static models of equal work serve the devices, by whose channels they keep (D3)."""
    from edgeprune import engine
    from edgeprune.algorithms.adp import difference, used
    from edgeprune.engine.evaluation import class_shares
    from edgeprune.nn.gated import GatedNet, active_macs, gate_statistics
    from edgeprune.pruning import choose, extract, scores
    from edgeprune.tasks import evaluate_by_class

    model, _ = run.model()
    if not isinstance(model, GatedNet):
        return {}
    prepared = engine.prepare(run.experiment)
    graph, clients = prepared.graph, list(prepared.local)
    shares = class_shares(prepared.local, len(prepared.data.classes))
    assert shares is not None
    found = {}
    for client, part in prepared.local.items():
        found[client] = gate_statistics(model, (part.normalise(x) for x in part.x.split(256)))
    own = {client: choose(graph, used(graph, found[client]), KEEP) for client in clients}
    mean = {name: torch.stack([found[c][name] for c in clients]).mean(0) for name in found[clients[0]]}
    drawn = {n: torch.rand(s, generator=torch.Generator().manual_seed(1)) for n, s in graph.map.groups.items()}
    everybodys = {
        "shared": choose(graph, used(graph, mean), KEEP),
        "l2": choose(graph, scores(model, graph, "l2"), KEEP),
        "random": choose(graph, drawn, KEEP),
    }
    makers = {"own": own, **{name: dict.fromkeys(clients, plan) for name, plan in everybodys.items()}}
    memory: dict[str, Tensor] = {}

    def served(client: str, plan: Any) -> float:
        if plan.id not in memory:
            small = extract(model, plan)
            memory[plan.id] = torch.tensor(evaluate_by_class(small, prepared.data, prepared.task)[2])
        return float(shares[clients.index(client)] @ memory[plan.id].double())

    whole = torch.tensor(evaluate_by_class(model, prepared.data, prepared.task)[2]).double()
    (x,) = prepared.task.example_inputs()
    active, dense = active_macs(model, x[:1])
    return {
        "macs": active / dense,
        "gated": float((shares @ whole).mean()),
        **{how: statistics.fmean(served(c, plans[c]) for c in clients) for how, plans in makers.items()},
        "follows_labels": _follows(own, shares, difference),
        "difference": _mean_difference(own, difference),
    }


def _pairs(plans: Mapping[str, Any]) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(plans)), 2))


def _mean_difference(plans: Mapping[str, Any], difference: Any) -> float:
    each = list(plans.values())
    return statistics.fmean(difference(each[i], each[j]) for i, j in _pairs(plans))


def _follows(plans: Mapping[str, Any], shares: Tensor, difference: Any) -> float:
    """Spearman's correlation, over pairs of devices, of how much their sets and their labels differ."""
    each = list(plans.values())
    sets = [difference(each[i], each[j]) for i, j in _pairs(plans)]
    labels = [float((shares[i] - shares[j]).abs().sum()) / 2 for i, j in _pairs(plans)]
    return float(spearmanr(sets, labels).statistic)


FINISH = finish
