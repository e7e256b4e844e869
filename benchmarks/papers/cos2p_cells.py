"""The grid of benchmarks/papers/cos2p.py: which runs there are.

The fleet is the paper's: sixteen devices of four classes, two with 6/52 of the data each, thirteen with 3/52 and one
with 1/52 where shares can be dealt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from cos2p_tasks import RATES, equal_width
from paper_runs import Cell

SEEDS = (0, 1, 2)
CLIENTS, SYNCHRONOUS = 16, 60  # devices, and rounds of a run that waits for all
SHARES = (6, 6, *(3,) * 13, 1)
SETTINGS: dict[str, tuple[str, ...]] = {
    "har": ("task.name=uci-har", "data.partition=subject", "data.samples=2400"),
    "vit": ("task.name=cifar10-vit", "data.partition=dirichlet", "data.alpha=1.5", "data.samples=3000"),
    "text": ("task.name=shakespeare", "data.partition=iid", "data.samples=1600"),
}
SMALL = {"har": "har_fits", "vit": "vit_fits", "text": "text_fits"}
ROUNDS = {"har": SYNCHRONOUS, "vit": 30, "text": 24}


def fleet(task: str) -> str:
    """Sixteen devices; those of a class alike, the slowest class four times as slow as the fastest."""
    slow = [1.0, 2.0, 3.0, 4.0]
    devices = []
    for i in range(CLIENTS):
        share = f", share={SHARES[i]}.0" if task != "har" else ""
        devices.append(f'{{name="device-{i}", slowdown={slow[i // 4]}{share}}}')
    return f"fleet.device=[{', '.join(devices)}]"


def cell(task: str, row: str, seed: int, rounds: int, *sets: str) -> Cell:
    shared = (
        *SETTINGS[task],
        fleet(task),
        f"run.rounds={rounds}",
        f"run.evaluate_every={max(2, rounds // 12)}",
    )
    return Cell(f"{task}-{row}-seed{seed}", f"{task}-{row}", seed, (*shared, *sets))


def ours(task: str, row: str, seed: int, k: int, *sets: str) -> Cell:
    """Co-S2P with as many client updates as a synchronous run has."""
    rounds = round(ROUNDS[task] * CLIENTS / k)
    own = ("algorithm.name=cos2p", f"algorithm.wait_for={0 if k == CLIENTS else k}", "algorithm.calibrate=1")
    return cell(task, row, seed, rounds, *own, *sets)


def baselines(task: str, seed: int) -> Iterator[Cell]:
    """Synchronous, at equal budgets: no class holds more parameters, or does more work, than in Co-S2P."""
    full = SETTINGS[task][0].removeprefix("task.name=")
    widths = [equal_width(full, rate) for rate in RATES]
    for name in ("heterofl", "fedrolex"):
        own = (f"algorithm.name={name}", f"algorithm.rates={widths}", "algorithm.calibrate=1")
        yield cell(task, name, seed, ROUNDS[task], *own)
    small = (f"task.name=cos2p_tasks:{SMALL[task]}", "algorithm.name=fedavg", "algorithm.calibrate=1")
    yield cell(task, "fits", seed, ROUNDS[task], *small)


def ablations(task: str, seed: int) -> Iterator[Cell]:
    """One component less each (B6), beside the row that all are held against."""
    relative = 'algorithm.staleness="relative"'
    yield ours(task, "no-staleness", seed, 10, 'algorithm.staleness="none"')
    yield ours(task, "random", seed, 10, relative, 'algorithm.masks="random"')
    yield ours(task, "magnitude", seed, 10, relative, 'algorithm.masks="magnitude"')
    yield ours(task, "no-transfer", seed, 10, relative, "algorithm.transfer=0.0")
    yield ours(task, "no-importance", seed, 10, relative, "algorithm.importance=false")
    yield ours(task, "unit", seed, 10, relative, 'algorithm.merge_by="unit"')


def barriers(task: str, seed: int) -> Iterator[Cell]:
    """K of N (B7)."""
    for k in (8, 14, 16):
        yield ours(task, f"k{k}", seed, k, 'algorithm.staleness="relative"')


def crossings(task: str, seed: int) -> Iterator[Cell]:
    """Rates by each device's measured profile in place of the table; K of N with workers that this made equally fast.
    All four on the profile's clock."""
    clock = ('algorithm.staleness="relative"', 'fleet.latency="profile"')
    for k in (10, CLIENTS):
        yield ours(task, f"table-on-profile-k{k}", seed, k, *clock)
        yield ours(task, f"rates-by-profile-k{k}", seed, k, *clock, 'algorithm.rates_by="profile"')


def one_seed(task: str, seed: int, full: bool) -> Iterator[Cell]:
    """The paper's formula, ours, the baselines; then each part less."""
    yield ours(task, "cos2p", seed, 10)
    yield ours(task, "relative", seed, 10, 'algorithm.staleness="relative"')
    yield from baselines(task, seed)
    if full:
        yield from ablations(task, seed)
        yield from barriers(task, seed)


def cells(grid: str = "all") -> list[Cell]:
    """Every cell, the most telling first, and one seed after the other."""
    parts = {
        "har": [one_seed("har", seed, True) for seed in SEEDS],
        "vit": [one_seed("vit", seed, True) for seed in SEEDS],
        "text": [one_seed("text", seed, True) for seed in SEEDS],
        "crossings": [crossings("har", seed) for seed in SEEDS],
    }
    chosen = parts.values() if grid == "all" else [parts[name] for name in grid.split(",")]
    return list(itertools.chain.from_iterable(itertools.chain.from_iterable(chosen)))
