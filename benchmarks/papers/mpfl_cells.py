"""The grid of benchmarks/papers/mpfl.py: which runs there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from paper_runs import Cell

SEEDS = (0, 1, 2)
NODES, TRAINING, NOISY = 10, 40, "device-3"
LONG = 3 * TRAINING
PRUNED = (0.1, 0.3, 0.5, 0.7, 0.9)
SPLITS = {"iid": ("data.partition=iid",), "dirichlet": ("data.partition=dirichlet", "data.alpha=0.5")}
TASKS = {"fashion-cnn": 6000, "cifar10-vgg": 5000, "cifar10-resnet": 5000}


def cell(task: str, split: str, row: str, seed: int, *sets: str, nodes: int = NODES, change: str = "") -> Cell:
    name = f"{task}-{split}-{row}"
    shared = (
        f"task.name={task}",
        *SPLITS[split],
        f"data.samples={TASKS[task]}",
        f"fleet.devices={nodes}",
        "algorithm.calibrate=0",
        "run.evaluate_every=2",
    )
    return Cell(f"{name}-seed{seed}", name, seed, (*shared, *sets), change)


def mpfl(
    task: str,
    split: str,
    row: str,
    seed: int,
    pruned: float,
    *sets: str,
    step: float = 0.1,
    training: int = TRAINING,
    **more: Any,
) -> Cell:
    iterations = round(pruned / step)
    rounds = iterations + training
    own = (
        "algorithm.name=mpfl",
        f"algorithm.iterations={iterations}",
        f"algorithm.step={step}",
        f"run.rounds={rounds}",
    )
    name = f"{row}-{round(100 * pruned)}" + ("-long" if training == LONG else "")
    return cell(task, split, name, seed, *own, *sets, **more)


def one_seed(task: str, split: str, seed: int, pruned: tuple[float, ...] = PRUNED) -> Iterator[Cell]:
    """Dense averaging; then at every sparsity the consensus, and what it is held against."""
    yield cell(task, split, "fedavg", seed, "algorithm.name=fedavg", f"run.rounds={TRAINING}")
    for share in sorted(pruned, key=lambda p: p != 0.7):  # 70 % first: M5 is said of it
        yield mpfl(task, split, "exact", seed, share)
        yield mpfl(task, split, "oneshot", seed, share, step=share)
        yield mpfl(task, split, "random", seed, share, "algorithm.consensus=random")
        yield mpfl(task, split, "central", seed, share, nodes=1)  # one node with all data: mask and training
        if share == 0.7:
            yield mpfl(task, split, "single", seed, share, "algorithm.consensus=single")
            yield mpfl(task, split, "majority", seed, share, "algorithm.consensus=majority")
            yield mpfl(task, split, "public", seed, share, "algorithm.consensus=public")
            yield mpfl(task, split, "shuffled", seed, share, change="shuffled")


def cells(grid: str = "all") -> list[Cell]:
    """Every cell, the most telling first, and one seed after the other."""
    parts = {
        "fashion": [one_seed("fashion-cnn", "iid", seed) for seed in SEEDS],
        "dirichlet": [one_seed("fashion-cnn", "dirichlet", seed, (0.7,)) for seed in SEEDS],
        "vgg": [one_seed("cifar10-vgg", "iid", seed, (0.5, 0.7)) for seed in SEEDS],
        "long": [(mpfl("cifar10-resnet", "iid", "exact", seed, 0.7, training=LONG),) for seed in SEEDS],
        "resnet": [one_seed("cifar10-resnet", "iid", seed, (0.7,)) for seed in SEEDS],
    }
    chosen = parts.values() if grid == "all" else [parts[name] for name in grid.split(",")]
    return list(itertools.chain.from_iterable(itertools.chain.from_iterable(chosen)))


def shuffled(prepared: Any, seed: int) -> Any:
    """One of the nodes has labels that say nothing of its images (M4)."""
    part = prepared.local[NOISY]
    order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(seed))
    return replace(prepared, local={**prepared.local, NOISY: replace(part, y=part.y[order])})


CHANGES = {"shuffled": shuffled}
