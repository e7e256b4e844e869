"""Step time and peak memory of Co-S2P's classes and of width alone at the same rate (B4, B5), and the latency tables.

    python benchmarks/papers/cos2p_times.py time        step times; writes the latency tables that the grid and the
                                                        package use, and benchmarks/results/cos2p_times.json
    python benchmarks/papers/cos2p_times.py memory      peak memory, each in a process of its own; adds to that file
    python benchmarks/papers/cos2p_times.py large       one step at each rate of a ViT of 0.11 billion parameters

One thread. A class of rate r: its quarters of the blocks and that share of every group. Width alone: all blocks and the
same share. "mask": learning the mask, that is a step of the class's blocks at full width.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cos2p_tasks
import harness
import torch
from cos2p_tasks import RATES, class_plan, equal_width, graph_of, width_plan
from torch import Tensor, nn

from edgeprune import tasks
from edgeprune.algorithms.mask_learning import learn_mask
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.rates import depth_plan
from edgeprune.algorithms.training import LocalData, make_step
from edgeprune.device.memory import peak_of, resident
from edgeprune.device.probe import beside_figures
from edgeprune.fleet.latency import Probe, measure
from edgeprune.pruning import ChannelGraph, SubmodelPlan, extract
from edgeprune.tasks import Task, transformers

TABLES = Path(__file__).resolve().parents[2] / "edgeprune" / "fleet" / "tables"
NAMES = ("uci-har", "cifar10-vit", "shakespeare")
WIDTHS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 5 / 8, 7 / 8)


def plans_of(name: str) -> dict[str, SubmodelPlan]:
    """Every shape that is measured, by kind and rate."""
    graph = graph_of(name)
    found: dict[str, SubmodelPlan] = {}
    for rate in RATES:
        found[f"cos2p {rate}"] = class_plan(name, rate)
        found[f"width {rate}"] = width_plan(name, rate)
        found[f"equal {rate}"] = width_plan(name, equal_width(name, rate))
        found[f"mask {rate}"] = depth_plan(graph, rate)
    return found


def batch_of(task: Task) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one batch, drawn: times do not depend on the values."""
    (x,) = task.example_inputs()
    x = x[:1].expand(task.batch_size, *x.shape[1:])
    x = torch.randn(x.shape) if x.is_floating_point() else torch.randint(0, 65, x.shape)
    y = torch.randint(0, 65, x.shape) if task.name == "shakespeare" else torch.randint(0, 6, (task.batch_size,))
    return x, y


def recipe_of(task: Task) -> Recipe:
    return Recipe(1, task.batch_size, task.lr, task.momentum, task.weight_decay)


def probe(task: Task, model: nn.Module, plan: SubmodelPlan) -> Probe:
    """The sub-model of ``plan``, ready to be timed."""
    graph = graph_of(task.name)
    small, (x, y) = extract(model, plan).train(), batch_of(task)
    step = make_step(small, task.loss, recipe_of(task))

    def forward() -> object:
        with torch.no_grad():
            return small(x)

    return Probe(graph.macs(plan.counts, plan.dropped), lambda: step(x, y), forward, lambda: extract(model, plan))


def time_task(name: str, seconds: float) -> dict[str, Any]:
    """The table over all sizes, and every kind's own median, taken in turns (a table never falls with size)."""
    task = tasks.get(name)
    model, plans = task.make_model(), plans_of(name)
    more = {f"sweep {share}": width_plan(name, share) for share in WIDTHS}
    sizes = {graph_of(name).macs(p.counts, p.dropped): p for p in [*plans.values(), *more.values()]}
    ordered, machine = list(sizes.values()), beside_figures()
    table = measure(
        name,
        task.batch_size,
        lambda i: probe(task, model, ordered[int(i)]),
        machine,
        tuple(range(len(ordered))),
        seconds,
    )
    (TABLES / f"{name}.json").write_text(json.dumps(table.to_json(), indent=1) + "\n")
    times = harness.interleaved_ms({kind: probe(task, model, plan).step for kind, plan in plans.items()}, 15)
    return {"rows": [row(name, kind, plan, times[kind]) for kind, plan in plans.items()]}


def row(name: str, kind: str, plan: SubmodelPlan, step_ms: float) -> dict[str, Any]:
    own = extract(tasks.get(name).make_model(), plan)
    return {
        "kind": kind.split()[0],
        "rate": float(kind.split()[1]),
        "parameters": sum(p.numel() for p in own.parameters()),
        "macs": graph_of(name).macs(plan.counts, plan.dropped),
        "step_ms": step_ms,
    }


def _peak(task: str, learns: bool, model: nn.Module, graph: ChannelGraph, plan: SubmodelPlan, pipe: Any) -> None:
    """In a process of its own: bytes of the weights, and what three steps of two batches take above them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = tasks.get(task)
    x, y = batch_of(spec)
    x, y = torch.cat([x, x]), torch.cat([y, y])
    data = LocalData(x, y, lambda t: t)
    recipe = recipe_of(spec)
    step = make_step(model.train(), spec.loss, recipe)
    nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the libraries' own buffers
    base = resident() or 0

    def work() -> None:
        for _ in range(3):
            if learns:
                once = Recipe(1, len(x), recipe.lr, 0.0, 0.0)
                learn_mask(model, graph, plan, data, spec.loss, once, Job(learn=0.5), 0)
            else:
                step(x, y)

    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    pipe.send(max(0, (peak_of(work) or 0) - base) + weights)


def memory_of(name: str, kind: str) -> int:
    """Bytes of weights, gradients, momentum and activations at the highest moment of a step of two batches."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    plan = plans_of(name)[kind]
    model = extract(tasks.get(name).make_model(), plan)
    given = (name, kind.startswith("mask"), model, graph_of(name), plan, theirs)
    child = context.Process(target=_peak, args=given)
    child.start()
    found = int(ours.recv())
    child.join()
    return found


def large() -> list[dict[str, Any]]:
    """A ViT of 0.11 billion parameters: at every rate its parameters, its account (weights, gradients and momentum in
    float32), and the loss and the peak of one real step of two pictures."""
    torch.manual_seed(0)

    def make() -> nn.Module:
        return transformers.vit(width=864, heads=12, depth=12, patch=16, side=64, classes=10)

    task = Task("large", "cifar-10", make, lambda: (torch.zeros(2, 3, 64, 64),), 2, 0.01,
                loss=tasks.get("cifar10-vit").loss)  # fmt: skip
    model = make()
    graph = ChannelGraph.trace(model, task.example_inputs(), verify=False)
    rows = []
    for rate in RATES:
        shares = {group: torch.rand(size) for group, size in graph.map.groups.items()}
        plan = cos2p_tasks.choose(graph, shares, rate).drop(*depth_plan(graph, rate).dropped)
        rows.append(large_row(task, extract(model, plan).train(), rate))
        rows[-1]["share"] = rows[-1]["parameters"] / rows[0]["parameters"]
        print(rows[-1], flush=True)
    return rows


def large_row(task: Task, model: nn.Module, rate: float) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters())
    step, losses = make_step(model, task.loss, Recipe(1, 2, 0.01, 0.9, 0.0)), []
    base = resident() or 0
    peak = peak_of(lambda: losses.append(float(step(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])))))
    return {
        "rate": rate,
        "parameters": parameters,
        "account_bytes": 12 * parameters,
        "measured_bytes": (peak or 0) - base + 4 * parameters,
        "loss": losses[0],
    }


def main() -> None:
    torch.set_num_threads(1)
    path = harness.RESULTS / "cos2p_times.json"
    about = harness.machine()
    before = {entry["task"]: entry for entry in json.loads(path.read_text())["results"]} if path.exists() else {}
    verb = sys.argv[1]
    if verb == "large":
        before["large"] = {"task": "large", "rows": large()}
    for name in NAMES if verb != "large" else ():
        if verb == "time":
            before[name] = {"task": name, **time_task(name, 0.45)}
        else:
            for one in before[name]["rows"]:
                one["peak_bytes"] = memory_of(name, f"{one['kind']} {one['rate']}")
        print(name, *before[name]["rows"], sep="\n  ", flush=True)
    harness.write_result("cos2p_times", about, list(before.values()))


if __name__ == "__main__":
    main()
