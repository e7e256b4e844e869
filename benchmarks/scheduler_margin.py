"""What the scheduler's margin trades: equal first rounds against time saved (beside benchmarks/scheduler.py).

    python benchmarks/scheduler_margin.py [--tasks fashion-cnn,cifar10-resnet] [--seeds 3] [--rounds 60]

A pruned client is planned ``margin`` standard deviations of its own noise ahead of the fastest client's time,
``first_margin`` of them in the first assignment. Same fleets, clock and errors as in scheduler.py; means over the
seeds. Writes benchmarks/results/scheduler_margin.json.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import harness
import scheduler

from edgeprune.algorithms.scheduled import Scheduled

MARGINS = ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0))  # first, later
FLEETS = ((10, 2.0), (10, 10.0), (16, 2.0), (16, 10.0))
COMMON: dict[str, Any] = {"interval": 10, "epochs": 1, "calibrate": 0}


def rows_of(task: str, devices: int, sigma: float, seeds: int, rounds: int) -> list[dict[str, Any]]:
    """One fleet, every margin."""
    found: dict[tuple[float, float], list[tuple[float, float, float]]] = {margins: [] for margins in MARGINS}
    for seed in range(seeds):
        cell = scheduler.Cell(task, devices, sigma, seed)
        whole = scheduler.run(cell, "fedavg", scheduler.Whole(**COMMON), rounds)["time_s"]
        for (first, margin), some in found.items():
            method = Scheduled(**COMMON, first_margin=first, margin=margin)
            got = scheduler.run(cell, "scheduled", method, rounds)
            share = (1 - got["time_s"] / whole) / (1 - 1 / sigma)
            some.append((got["first_spread"], got["first_spread_without_noise"], share))
    names = ("first_spread", "first_spread_without_noise", "share_of_ceiling")
    about = {"task": task, "devices": devices, "sigma": sigma, "seeds": seeds}
    return [
        {
            **about,
            "first_margin": first,
            "margin": margin,
            **dict(zip(names, map(statistics.fmean, zip(*some, strict=True)), strict=True)),
        }
        for (first, margin), some in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="fashion-cnn,cifar10-resnet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    scheduler.train_nothing()
    about, rows = harness.machine(), []
    for task in arguments.tasks.split(","):
        for devices, sigma in FLEETS:
            rows += rows_of(task, devices, sigma, arguments.seeds, arguments.rounds)
            for row in rows[-len(MARGINS) :]:
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    for first, margin in MARGINS:
        some = [row for row in rows if (row["first_margin"], row["margin"]) == (first, margin)]
        names = ("first_spread", "share_of_ceiling")
        worst = [max(row["first_spread"] for row in some), min(row["share_of_ceiling"] for row in some)]
        print(
            f"margin {first}, then {margin}: mean",
            [round(statistics.fmean(r[n] for r in some), 3) for n in names],
            "worst",
            worst,
        )
    harness.write_result("scheduler_margin", about, rows)


if __name__ == "__main__":
    main()
