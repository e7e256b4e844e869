"""Latency, throughput, memory and energy of a task's model in PyTorch: inference and training steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import make_step
from edgeprune.bench.made_up import made_up
from edgeprune.bench.meter import Idle, Meter, Result, threads
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import prune
from edgeprune.tasks import Task
from edgeprune.tasks.task import examples_of, made


def measure_model(
    task: Task,
    meter: Meter,
    *,
    width: float = 1.0,
    seconds: float = 5.0,
    repeats: int = 3,
    thread_count: int = 1,
    device: str = "cpu",
    idle_s: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Result], Idle]:
    """Single-stream inference (batch 1), offline inference and training steps (the task's batch), at ``width``.

    Inputs are random: the time of dense layers does not depend on values.
    """
    place = _place(device)
    model = made(task)
    if width < 1:
        model = prune(model, examples_of(task), keep=width, min_channels=2).model
    model = model.to(place)
    batch = task.batch_size
    x, y = (each.to(place) for each in made_up(task, batch, "bench model", "export it and bench the file"))
    step = make_step(model, task.loss, Recipe(1, batch, task.lr, task.momentum, task.weight_decay))

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    @torch.inference_mode()
    def infer(rows: int) -> None:
        model(x[:rows])
        wait()

    def train() -> None:
        step(x, y)
        wait()

    results = []
    with threads(thread_count):
        say("idle")
        before = meter.idle(idle_s)
        model.eval()
        for name, rows in (("single-stream", 1), ("offline", batch)):
            say(name)
            results.append(meter.measure(name, partial(infer, rows), batch=rows, seconds=seconds, repeats=repeats))
        say("training step")
        model.train()
        results.append(meter.measure("training step", train, batch=batch, seconds=seconds, repeats=repeats))
        after = meter.idle(idle_s)
    return results, Idle(before, after)


def _place(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EdgePruneError("bench model: torch sees no GPU; 'edgeprune doctor' says why, or use --device cpu")
    return torch.device(device)
