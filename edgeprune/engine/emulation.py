"""Where the virtual fleet's step times come from: a table shipped with the package, one from a file, or a fresh one."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import LocalData, make_step
from edgeprune.device.probe import beside_figures
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import LatencyTable, Probe, Times, measure, read_times
from edgeprune.fleet.description import LATENCIES
from edgeprune.pruning import ChannelGraph
from edgeprune.pruning.cost import plan_macs
from edgeprune.pruning.importance import scores
from edgeprune.pruning.plan import choose
from edgeprune.pruning.surgery import extract, extract_state, load_local
from edgeprune.tasks import Task

PROFILES = Path(__file__).resolve().parents[1] / "fleet" / "profiles"


def latency_table(choice: str, task: Task, graph: ChannelGraph, data: LocalData, recipe: Recipe) -> Times:
    """The times that ``fleet.latency`` asks for: ``"builtin"``, ``"profile"``, ``"measure"``, or the path of a table or
    a profile.

    What ships with the package serves only the batch size it was measured with; for another, times are measured here.
    """
    if choice == "profile" or choice not in LATENCIES:
        table = read_times(shipped_profile(task.name) if choice == "profile" else Path(choice))
        if (table.task, table.batch_size) != (task.name, recipe.batch_size):
            raise EdgePruneError(
                f"fleet.latency: {choice!r} holds times of {table.task!r} with batches of {table.batch_size}, the "
                f"experiment trains {task.name!r} with {recipe.batch_size}; use latency = 'measure'"
            )
        return table
    shipped = resources.files("edgeprune.fleet").joinpath(f"tables/{task.name}.json")
    if choice == "builtin" and shipped.is_file():
        table = LatencyTable.from_json(json.loads(shipped.read_text()), f"latency table of {task.name}")
        if table.batch_size == recipe.batch_size:
            return table
    return measure_task(task, graph, data, recipe)


def shipped_profile(task: str) -> Path:
    """The device profile that ships for a built-in task: of the machine that it names, not of this one."""
    path = PROFILES / f"{task}.json"
    if not path.is_file():
        raise EdgePruneError(
            f"fleet.latency is 'profile' and none ships for {task!r}; set it to a file that 'edgeprune profile {task}' "
            "wrote"
        )
    return path


def measure_task(
    task: Task,
    graph: ChannelGraph,
    data: LocalData,
    recipe: Recipe,
    widths: tuple[float, ...] | None = None,
    seconds: float = 0.4,
) -> LatencyTable:
    """Measure one-thread training steps of ``task``'s really narrowed models on this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build = probe_builder(task, graph, data, recipe)
        machine = beside_figures()
        if widths is None:
            return measure(task.name, recipe.batch_size, build, machine, seconds=seconds)
        return measure(task.name, recipe.batch_size, build, machine, widths, seconds)
    finally:
        torch.set_num_threads(threads)


def probe_builder(task: Task, graph: ChannelGraph, data: LocalData, recipe: Recipe) -> Callable[[float], Probe]:
    """``width -> Probe``: the task's model at that retention, with one step on one real batch."""
    model = task.make_model()
    ranked = scores(model, graph, how="l1")
    batch = torch.arange(recipe.batch_size) % len(data)
    inputs_of, x, y = data.ready(), data.x[batch], data.y[batch]

    def build(width: float) -> Probe:
        plan = choose(graph, ranked, keep=width, scope="layer", min_channels=2)
        small = extract(model, plan)
        step = make_step(small, task.loss, recipe)
        state = extract_state(model.state_dict(), plan)
        small.train()
        return Probe(
            macs=plan_macs(graph, plan),
            step=lambda: step(inputs_of(batch), y),
            forward=lambda: _forward(small, data.normalise(x)),
            rebuild=lambda: load_local(extract(model, plan), state),
        )

    return build


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)
