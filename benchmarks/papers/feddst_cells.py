"""The grid of benchmarks/papers/feddst.py: which runs there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from paper_runs import GIB, Cell

CAPS = (1, 2, 4, 8)  # GiB of uploads
SEEDS = (0, 1, 2)
CLIENTS, SAMPLE, EPOCHS = 400, 20, 10
SETTING = (
    "data.partition=classes",
    "data.per_client=2",
    "data.per_class=20",
    f"fleet.devices={CLIENTS}",
    f"algorithm.sample={SAMPLE}",
    f"algorithm.epochs={EPOCHS}",
    "run.evaluate_every=5",
)
WEIGHTS = {"cifar10-feddst": (781_770, 236), "fashion-feddst": (504_990, 236), "mnist-feddst": (504_990, 236)}
ALPHA = {
    "cifar10-feddst": 0.01,
    "fashion-feddst": 0.01,
    "mnist-feddst": 0.05,
}  # of CIFAR-10 and MNIST the public code's


def feddst(task: str) -> tuple[str, ...]:
    """The algorithm at the settings of ``task``."""
    return ("algorithm.name=feddst", f"algorithm.alpha={ALPHA[task]:g}", "algorithm.interval=15")


def rounds_for(task: str, gib: float, share: float = 1.0) -> int:
    """Rounds of which the values, ``share`` of dense float32 ones, fill ``gib``; headers and masks push it under."""
    weights, biases = WEIGHTS[task]
    return math.floor(gib * GIB / (SAMPLE * 4 * (weights * share + biases)))


def every(share: float) -> str:
    """An evaluation for each 60 MB or so of uploads, whatever a round sends: the mean of the last three reaches as far
    back for all methods."""
    return f"run.evaluate_every={max(1, round(1 / share))}"


def cell(task: str, row: str, seed: int, rounds: int, *sets: str) -> Cell:
    return Cell(
        f"{task}-{row}-seed{seed}",
        f"{task} {row}",
        seed,
        (f"task.name={task}", *SETTING, f"run.rounds={rounds}", *sets),
    )


def dst(task: str, row: str, seed: int, gib: float, *sets: str, sparsity: float = 0.8) -> Cell:
    rounds = rounds_for(task, gib, 1 - sparsity)
    return cell(task, row, seed, rounds, *feddst(task), f"algorithm.sparsity={sparsity}", every(1 - sparsity), *sets)


def dense(task: str, row: str, seed: int, gib: float, *sets: str, share: float = 1.0) -> Cell:
    return cell(task, row, seed, rounds_for(task, gib, share), "algorithm.name=fedavg", every(share), *sets)


def headline(task: str, seed: int, gib: float, tag: str = "") -> Iterator[Cell]:
    """F1 and F2 at the paper's settings: FedAvgM with twice the cap."""
    yield dst(task, f"feddst{tag}", seed, gib)
    yield dense(task, f"fedavgm{tag}", seed, 2 * gib, "algorithm.momentum=0.9")


def fixed(task: str, seed: int, gib: float, tag: str = "") -> Iterator[Cell]:
    """F3 at the same settings: the two masks that never move."""
    yield dst(task, f"random-mask{tag}", seed, gib, "algorithm.start=random", "algorithm.moves=never")
    yield dst(task, f"magnitude-mask{tag}", seed, gib, "algorithm.moves=never")


def public_loss(task: str, seed: int, gib: float) -> Iterator[Cell]:
    """F1 with the public code's softmax in front of the cross-entropy, and all of that code's ways together."""
    yield dst(task, "feddst-softmax", seed, gib, "algorithm.softmax=true")
    yield dense(task, "fedavgm-softmax", seed, 2 * gib, "algorithm.momentum=0.9", "algorithm.softmax=true")
    ways = (
        "softmax=true",
        f"after={EPOCHS}",
        "grow_any=true",
        "growth_data=batch",
        "distribution=public",
        "anneal=squared",
        "replacement=true",
    )
    # Who is drawn twice takes part once, so 3 % more rounds send as much.
    yield dst(task, "feddst-public", seed, min(gib, 2) * 1.03, *(f"algorithm.{way}" for way in ways))


def controls(task: str, seed: int, gib: float) -> Iterator[Cell]:
    """The controls beside F1: narrow dense uploads, server momentum, other learning rates, FedAvg."""
    yield dense(task, "fedavgm-server", seed, gib, "algorithm.momentum=0", "algorithm.server_momentum=0.9")
    yield dense(task, "fedavg", seed, gib, "algorithm.momentum=0")
    for lr in (0.003, 0.03, 0.1):
        yield dense(task, f"fedavgm-lr{lr:g}", seed, gib, "algorithm.momentum=0.9", f"algorithm.lr={lr}")
    yield dense(task, "fedavgm-fp16", seed, gib, "algorithm.upload=fp16", share=0.5)
    yield dense(task, "fedavgm-int8", seed, gib, "algorithm.upload=int8", share=0.254)
    yield dst(task, "prunefl-like", seed, gib, "algorithm.moves=server")
    yield dst(task, "feddst-prox", seed, gib, "algorithm.prox=0.1")
    yield dense(task, "fedprox", seed, gib, "algorithm.prox=0.1")
    # Beyond the paper: a quarter of FedDST's bytes; as many rounds as FedDST has, so a quarter of its cap.
    yield dst(task, "feddst-int8", seed, gib, "algorithm.upload=int8", "algorithm.feedback=true")


def small_dense(seed: int, gib: float) -> Iterator[Cell]:
    """A dense network of a fifth of the weights, CIFAR-10 only: its layers narrower (feddst_tasks.py)."""
    rounds = math.floor(gib * GIB / (SAMPLE * 4 * 157_201))
    sets = ("algorithm.name=fedavg", "algorithm.momentum=0.9", "task.name=feddst_tasks:small")
    yield cell("cifar10-feddst", "small-dense", seed, rounds, *sets)


def topk(task: str, seed: int, gib: float) -> Iterator[Cell]:
    """The largest tenth of every change; many rounds at a dense network's pace, so last."""
    # A largest tenth with positions takes about a tenth of the values and half a bit a weight.
    yield dense(task, "topk", seed, gib, "algorithm.density=0.1", "algorithm.feedback=true", share=0.116)


def where_dynamics_matter(task: str, seed: int, gib: float) -> Iterator[Cell]:
    """F3: sparsities, layer densities and alphas."""
    for alpha in (0.05, 0.2):
        yield dst(task, f"feddst-alpha{alpha:g}", seed, gib, f"algorithm.alpha={alpha}")
    for distribution in ("uniform", "public"):
        layers = f"algorithm.distribution={distribution}"
        yield dst(task, f"feddst-layers-{distribution}", seed, gib, layers)
        yield dst(task, f"magnitude-mask-layers-{distribution}", seed, gib, layers, "algorithm.moves=never")
    for sparsity in (0.9, 0.95):
        tag = f"S{sparsity:g}"
        yield dst(task, f"feddst-{tag}", seed, gib, sparsity=sparsity)
        yield dst(task, f"magnitude-mask-{tag}", seed, gib, "algorithm.moves=never", sparsity=sparsity)
        still = ("algorithm.start=random", "algorithm.moves=never")
        yield dst(task, f"random-mask-{tag}", seed, gib, *still, sparsity=sparsity)


def cells(grid: str = "all") -> list[Cell]:
    """Every cell, the most telling first, and one seed after the other: a grid that stops half-way says something."""
    cifar, fashion, mnist = WEIGHTS
    parts = {
        # A run of 1 GiB is no beginning of one of 8: alpha_r ends at half of the rounds.
        "short": [itertools.chain(headline(cifar, seed, 1, "-1gib"), fixed(cifar, seed, 1, "-1gib")) for seed in SEEDS],
        "headline": [headline(cifar, seed, 8) for seed in SEEDS],
        "fixed": [fixed(cifar, seed, 8) for seed in SEEDS],
        "softmax": [public_loss(cifar, seed, 8) for seed in SEEDS],
        "controls": [
            itertools.chain(controls(cifar, seed, 1), small_dense(seed, 1), topk(cifar, seed, 1)) for seed in SEEDS
        ],
        "fashion": [itertools.chain(headline(fashion, seed, 1), fixed(fashion, seed, 1)) for seed in SEEDS],
        "mnist": [itertools.chain(headline(mnist, seed, 1), fixed(mnist, seed, 1)) for seed in SEEDS],
        "where": [where_dynamics_matter(cifar, seed, 1) for seed in SEEDS],
    }
    chosen = (
        [part for name, part in parts.items() if name != "short"]
        if grid == "all"
        else [parts[name] for name in grid.split(",")]
    )
    return list(itertools.chain.from_iterable(itertools.chain.from_iterable(chosen)))
