"""AdaptCL's clock without its training: what the claims on time need, for every cell of the grid, in seconds.

    python benchmarks/papers/adaptcl_clock.py [--tasks digits,fashion-cnn]

Update times depend on the plans, and the plans on update times and on one ranking, which is frozen after the first
interval. So that interval is trained for each (task, split, seed); from there on stages, plans, bytes, step times and
noise are the engine's own, and only the gradient steps are left out. Accuracy needs the grid
(benchmarks/papers/adaptcl.py); `tests/benchmarks/test_adaptcl.py` holds the clock against a real run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import adaptcl_cells as grid
import adaptcl_judge as judge
import harness
from adaptcl_cells import Cell

RANKINGS = harness.RESULTS / "adaptcl_rankings.json"


def ranking_after_first_interval(cell: Cell) -> str:
    """The ranking that ``cell`` freezes. It depends on neither sigma nor noise: until then all train everything."""
    from edgeprune import engine
    from edgeprune.engine import checkpoint

    sets = [
        *cell.overrides(),
        f"run.rounds={grid.INTERVAL}",
        f"run.evaluate_every={grid.INTERVAL}",
        "algorithm.calibrate=0",
    ]
    prepared = engine.prepare(engine.load_experiment(None, sets))
    with tempfile.TemporaryDirectory() as folder:
        engine.start(prepared, Path(folder) / "run")
        return checkpoint.load(Path(folder) / "run" / checkpoint.FILE, prepared.graph).state.memory["ranking"]


class Clock:
    """The engine's charges for one task and one ranking. ``rounds`` is as :func:`run_times` gives them."""

    def __init__(self, cell: Cell, ranking: str) -> None:
        from edgeprune import engine
        from edgeprune.engine.emulation import latency_table
        from edgeprune.pruning.plan import Ranking

        self.prepared = engine.prepare(engine.load_experiment(None, cell.overrides()))
        self.setting, self.graph = self.prepared.setting, self.prepared.graph
        local = next(iter(self.prepared.local.values()))
        self.table = latency_table("builtin", self.prepared.task, self.graph, local, self.setting.recipe)
        self.ranking = Ranking.from_json(ranking, self.graph)
        self.weights = self.prepared.task.make_model().state_dict()
        self.known: dict[float, tuple[int, int, int]] = {}

    def size(self, gamma: float) -> tuple[int, int, int]:
        """Bytes down, bytes up and multiply-adds at retention ``gamma``."""
        from edgeprune import wire
        from edgeprune.pruning import SubmodelPlan
        from edgeprune.pruning.cost import plan_macs
        from edgeprune.pruning.surgery import extract_state

        if gamma not in self.known:
            plan = SubmodelPlan.full(self.graph) if gamma == 1 else self.ranking.plan(gamma)
            state = extract_state(self.weights, plan)
            asked = {"recipe": asdict(self.setting.recipe), "seed": 10**14}
            down = wire.encode(wire.Message("assignment", 50, "device-0", plan.id, state, asked))
            told = {"loss": 0.1234567890123456, "steps": 10}
            up = wire.encode(wire.Message("update", 50, "device-0", plan.id, state, told, samples=100))
            self.known[gamma] = (len(down), len(up), plan_macs(self.graph, plan))
        return self.known[gamma]

    def batches(self, name: str) -> int:
        size, samples = self.setting.recipe.batch_size, self.setting.samples[name]
        return math.ceil(samples / size) - (samples % size == 1)  # a last batch of one sample is dropped


def run_times(cell: Cell, clock: Clock) -> dict[str, Any]:
    """Update times of ``cell``: true (without noise) by round and device, retentions, and the fleet's total time."""
    from edgeprune import engine
    from edgeprune.algorithms.adaptcl import Worker, scale
    from edgeprune.fleet import Work, build_fleet, charge
    from edgeprune.fleet.clock import luck

    experiment = engine.load_experiment(None, cell.overrides())
    algorithm, devices = experiment.algorithm, build_fleet(experiment.fleet).devices
    learns = cell.method == "adaptcl"
    sizes = scale(clock.graph, clock.ranking, algorithm.size_by) if learns else None
    workers, target = {device.name: Worker() for device in devices}, math.nan
    held: dict[str, float] = {}
    total, true, retention = 0.0, [], []
    for round_ in range(1, grid.ROUNDS + 1):
        row = {}
        for device in devices:
            gamma = workers[device.name].gamma
            down, up, macs = clock.size(gamma)
            work = Work(
                down,
                up,
                clock.setting.recipe.epochs * clock.batches(device.name),
                macs,
                int(held.get(device.name) != gamma),
            )
            row[device.name] = charge(device, work, clock.table, round_=round_, seed=cell.seed).total
            held[device.name] = gamma
        total += max(row.values())
        true.append([row[device.name] / luck(device, round_, cell.seed) for device in devices])
        retention.append([workers[device.name].gamma for device in devices])
        if learns:
            workers = {name: replace(worker, times=(*worker.times, row[name])) for name, worker in workers.items()}
            if round_ % grid.INTERVAL == 0:
                workers, target = algorithm.learn(workers, target, sizes)
    if learns:
        total += _calibration(clock, devices, cell.seed, algorithm.calibrate)
    return {"true": true, "retention": retention, "time_s": total}


def _calibration(clock: Clock, devices: Any, seed: int, passes: int) -> float:
    """The passes over everybody's data that the model in use needs; statistics alone travel after the first."""
    from edgeprune.fleet import Work, charge

    down, _, macs = clock.size(1.0)
    few = (
        sum(t.numel() * 4 for name, t in clock.weights.items() if name.endswith(("running_mean", "running_var"))) + 1000
    )
    time = 0.0
    for number in range(passes):
        works = {d.name: Work(down if number == 0 else few, few, 0, macs, 0, clock.batches(d.name)) for d in devices}
        time += max(charge(d, works[d.name], clock.table, round_=grid.ROUNDS, seed=seed).total for d in devices)
    return time


def cells(tasks: list[str]) -> Iterator[Cell]:
    """Every cell of the grid whose claim is on time, sigma 5 as well, and the paper's scale beside each."""
    for task in tasks:
        for seed in grid.SEEDS:
            wanted = [*grid.plain(task, seed), *grid.changes(task, seed)]
            wanted += [Cell(task, split, 5.0, seed, "adaptcl", "", grid.MERGE[split]) for split in grid.SPLITS]
            for cell in wanted:
                if cell.method == "adaptcl":
                    yield cell
                    paper = ("algorithm.size_by=channels", "algorithm.alpha=0.5")
                    yield replace(cell, label=f"{cell.label}-channels".strip("-"), extra=(*cell.extra, *paper))


def settled(spread: list[float]) -> int | None:
    """After how many prunings slowest/fastest stays within 1.10; None if it does not."""
    late = [round_ for round_, value in enumerate(spread) if value > 1.10]
    after = (late[-1] // grid.INTERVAL + 1) if late else 0
    return after if after * grid.INTERVAL < len(spread) else None


def row_of(cell: Cell, clock: Clock) -> dict[str, Any]:
    """What the claims need of ``cell``, FedAvg on the same clock beside it."""
    found = run_times(cell, clock)
    events = tuple(item for item in cell.extra if item.startswith("fleet."))
    fedavg = run_times(replace(cell, method="fedavg", extra=events), clock)
    spread = [max(times) / min(times) for times in found["true"]]
    lag = [max(times) / times[0] for times in found["true"]]
    return {
        **{key: getattr(cell, key) for key in ("task", "split", "sigma", "noise", "seed", "label")},
        "time_s": found["time_s"],
        "fedavg_time_s": fedavg["time_s"],
        "time_saved": 1 - found["time_s"] / fedavg["time_s"],
        "speed_up": fedavg["time_s"] / found["time_s"],
        "spread_after_4_prunings": max(spread[40:50]),
        "lag_after_4_prunings": max(lag[40:50]),
        "prunings_until_within_1.10": settled(spread),
        "spread_at_end": max(spread[-10:]),
        "spread_after_slowdown": max(spread[90:100]) if "slowdown" in cell.label else None,
        "least_retention_of_the_fastest": min(row[0] for row in found["retention"]),
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A1, A2, A3, A5 and A7 for each task, by work (the default) and by channels (the paper's scale)."""
    result: dict[str, Any] = {}

    def claim(name: str, value: Any, bar: str, holds: bool) -> None:
        result[name] = {"value": value, "bar": bar, "holds": holds}

    for task in dict.fromkeys(row["task"] for row in rows):
        for tail, by in (("", ""), ("channels", ", by channels")):
            some = [r for r in rows if r["task"] == task and r["label"].removeprefix("slowdown").strip("-") == tail]
            plain = [r for r in some if r["noise"] == 0.05 and "slowdown" not in r["label"]]
            for sigma in sorted({r["sigma"] for r in plain}):
                at = [r for r in plain if r["sigma"] == sigma]
                worst = [
                    max(r[key] for r in at)
                    for key in ("spread_after_4_prunings", "lag_after_4_prunings", "spread_at_end")
                ]
                settled_after = [r["prunings_until_within_1.10"] for r in at]
                over = sum(r["spread_after_4_prunings"] > 1.10 for r in at)
                fastest = min(r["least_retention_of_the_fastest"] for r in at)
                claim(f"A1 {task} sigma {sigma:g}{by}", [*worst, f"{over} of {len(at)} over", settled_after, fastest],
                      "first <= 1.10; last >= 0.97", over == 0 and fastest >= 0.97)  # fmt: skip
            slowed = [r["spread_after_slowdown"] for r in some if r["spread_after_slowdown"] is not None]
            claim(f"A2 {task}{by}", max(slowed), "<= 1.15", max(slowed) <= 1.15)
            saved = judge.interval(judge.over_sigmas([r for r in plain if r["sigma"] in judge.LOW], "time_saved"))
            claim(f"A3 {task}{by}", saved, ">= 0.41", saved[0] >= 0.41)
            for sigma in judge.HIGH:
                speed = judge.interval([r["speed_up"] for r in plain if r["sigma"] == sigma])
                claim(f"A5 {task} sigma {sigma:g}{by}", speed, ">= 6.2", speed[0] >= 6.2)
            noisy = [r for r in some if r["noise"] == 0.1]
            within, least = (
                all(r["speed_up"] <= r["sigma"] for r in noisy),
                min(r["least_retention_of_the_fastest"] for r in noisy),
            )
            claim(f"A7 {task}{by}", [within, least, statistics.fmean(r["spread_at_end"] for r in noisy)],
                  "speed-up <= sigma; >= 0.95", within and least >= 0.95)  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,fashion-cnn")
    wanted = list(cells(parser.parse_args().tasks.split(",")))
    rankings = json.loads(RANKINGS.read_text()) if RANKINGS.exists() else {}
    clocks: dict[str, Clock] = {}
    rows = []
    about = harness.machine()
    for cell in wanted:
        key = f"{cell.task}-{cell.split}-{cell.seed}"
        if key not in rankings:
            rankings[key] = ranking_after_first_interval(replace(cell, noise=0.05, extra=grid.MERGE[cell.split]))
            RANKINGS.write_text(json.dumps(rankings, indent=1))
        if key not in clocks:
            clocks[key] = Clock(cell, rankings[key])
        rows.append(grid.rounded(row_of(cell, clocks[key])))
    judged = grid.rounded(claims(rows))
    harness.write_result("adaptcl_clock", about, [{"claims": judged}, *rows])
    for name, claim in judged.items():
        print(f"{name}: {judge.VERDICT[claim['holds']]} {claim['value']} ({claim['bar']})")


if __name__ == "__main__":
    main()
