"""Top-1 % + int8 gradients on Fashion-MNIST, with and without error feedback, against dense gradients.

    python benchmarks/papers/error_feedback.py [--epochs 8] [--samples 20000] [--seeds 0,1,2] [--processes 2]

Four workers, each with its own quarter of the training images (`--samples` drawn at random). In every step each
computes the gradient of a batch of 16 and sends `edgeprune.pack(gradient, density=0.01, dtype="int8", residual=...)`;
the server unpacks the four, averages them, and takes an SGD step (no momentum: it would count what waited many times).
"feedback" keeps per worker what was not sent and adds it to the next gradient; "none" forgets it; "dense" sends
everything in float32. Same network (fashion-cnn at half width), batches, learning rates and seeds; tested on all
10,000 test images. The result file
(benchmarks/results/error_feedback.json) holds test accuracy after every epoch and the bytes sent.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness

import edgeprune
from edgeprune.data import DataSet
from edgeprune.tasks import Task, evaluate
from edgeprune.tasks import get as get_task
from edgeprune.tasks.models import fashion_cnn

WIDTHS = (16, 32, 96)
WORKERS, BATCH, DENSITY = 4, 16, 0.01
WEIGHT_DECAY = 5e-4
METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "feedback": {"density": DENSITY, "dtype": "int8"},
    "none": {"density": DENSITY, "dtype": "int8"},
}


def train(
    task: Task, data: DataSet, method: str, seed: int, epochs: int, samples: int, lr: float, momentum: float
) -> dict[str, Any]:
    """One run: accuracy after each epoch, and mean bytes of one worker's gradient."""
    torch.manual_seed(seed)
    model = task.make_model()
    parameters = dict(model.named_parameters())
    server = torch.optim.SGD(parameters.values(), lr=lr, momentum=momentum, weight_decay=WEIGHT_DECAY)
    draw = torch.Generator().manual_seed(seed)
    shares = torch.randperm(len(data.train.y), generator=draw)[:samples].chunk(WORKERS)
    residuals: list[dict[str, Tensor]] = [{} for _ in range(WORKERS)]
    steps = min(map(len, shares)) // BATCH
    sent, curve, started = 0, [], time.perf_counter()
    for epoch in range(epochs):
        model.train()
        orders = [share[torch.randperm(len(share), generator=draw)] for share in shares]
        for step in range(steps):
            for group in server.param_groups:
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * (epoch + step / steps) / epochs))
            total = {name: torch.zeros_like(p) for name, p in parameters.items()}
            for order, residual in zip(orders, residuals, strict=True):
                batch = order[step * BATCH : (step + 1) * BATCH]
                gradient = gradient_of(model, parameters, task, data, batch)
                options = dict(METHODS[method])
                if method == "feedback":
                    options["residual"] = residual
                blob = edgeprune.pack(gradient, **options)
                sent += len(blob)
                for name, value in edgeprune.unpack(blob).items():
                    total[name] += value / WORKERS
            for name, p in parameters.items():
                p.grad = total[name]
            server.step()
        accuracy = evaluate(model, data, task)[0]
        curve.append(accuracy)
        print(f"{method} seed {seed} epoch {epoch + 1}: {accuracy:.4f}", flush=True)
    return {
        "method": method,
        "seed": seed,
        "accuracy": curve[-1],
        "curve": curve,
        "bytes_per_gradient": sent / (epochs * steps * WORKERS),
        "seconds": time.perf_counter() - started,
    }


def gradient_of(
    model: nn.Module, parameters: dict[str, nn.Parameter], task: Task, data: DataSet, batch: Tensor
) -> dict[str, Tensor]:
    """The gradient of one worker's batch, by name."""
    loss = task.loss(model(data.normalise(data.train.x[batch])), data.train.y[batch])
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def one(method: str, seed: int, *numbers: Any) -> dict[str, Any]:
    """:func:`train` in a process of its own."""
    torch.set_num_threads(1)
    task = replace(get_task("fashion-cnn"), make_model=lambda: fashion_cnn(WIDTHS))
    return train(task, task.load_data(), method, seed, *numbers)


def main() -> None:
    """Every method and seed; prints the table and writes the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    about = harness.machine()
    cells = [(method, int(seed)) for seed in arguments.seeds.split(",") for method in arguments.methods.split(",")]
    numbers = (arguments.epochs, arguments.samples, arguments.lr, arguments.momentum)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        runs = pool.starmap(one, [(*cell, *numbers) for cell in cells], chunksize=1)
    dense = statistics.mean([run["accuracy"] for run in runs if run["method"] == "dense"] or [math.nan])
    summary = []
    for method in arguments.methods.split(","):
        mine = [run for run in runs if run["method"] == method]
        mean = statistics.mean(run["accuracy"] for run in mine)
        size = statistics.mean(run["bytes_per_gradient"] for run in mine)
        summary.append({"method": method, "accuracy": mean, "points_below_dense": 100 * (dense - mean), "bytes": size})
        print(f"{method:9} {mean:.4f}  {100 * (dense - mean):+.2f} points below dense  {size:,.0f} bytes a gradient")
    if not arguments.no_write:
        setup = {key: getattr(arguments, key) for key in ("epochs", "samples", "lr", "momentum")}
        setup |= {"widths": WIDTHS, "workers": WORKERS, "batch": BATCH, "density": DENSITY}
        harness.write_result("error_feedback", about | {"setup": setup}, [{"summary": summary}, *runs])


if __name__ == "__main__":
    main()
