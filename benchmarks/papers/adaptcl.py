"""AdaptCL's claims, cell by cell (docs/algorithms/adaptcl.md): resumable, both sides on one clock and one set of seeds.

    python benchmarks/papers/adaptcl.py run  [--tasks digits,fashion-cnn] [--processes 2]
    python benchmarks/papers/adaptcl.py table

Every cell (task, split, sigma, seed, method) is a real run of the engine; its outcome is kept as one JSON file under
benchmarks/results/adaptcl/ and is not run again. `table` turns them into benchmarks/results/adaptcl.json and prints
the table of the README.

FedAvg's weights do not depend on how slow a device is (everybody trains everything, the server waits for all). So it
is trained once for each (task, split, seed), and its clock is run again for each sigma by charging the same bytes and
steps to that fleet; `tests/benchmarks/test_adaptcl.py` holds this against a real run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CELLS = ROOT / "results" / "adaptcl"
RESULT = ROOT / "results" / "adaptcl.json"

ROUNDS, INTERVAL, DEVICES = 150, 10, 10
LOW, HIGH = (1.7, 2.0, 3.0), (10.0, 20.0)
SPLITS = {"iid": ["data.partition=iid"], "sorted80": ["data.partition=sorted", "data.share=0.8"]}
SAMPLES = {"digits": 0, "fashion-cnn": 3000}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One run. ``extra`` are further overrides, ``label`` names them."""

    task: str
    split: str
    sigma: float
    seed: int
    method: str
    label: str = ""
    extra: tuple[str, ...] = ()
    noise: float = 0.05

    @property
    def key(self) -> str:
        tail = f"-{self.label}" if self.label else ""
        return f"{self.task}-{self.split}-sigma{self.sigma:g}-noise{self.noise:g}-{self.method}{tail}-seed{self.seed}"

    def overrides(self) -> list[str]:
        return [
            f"task.name={self.task}",
            *SPLITS[self.split],
            f"data.samples={SAMPLES.get(self.task, 0)}",
            f"fleet.devices={DEVICES}",
            f"fleet.heterogeneity={self.sigma}",
            f"fleet.noise={self.noise}",
            f"run.rounds={ROUNDS}",
            f"run.seed={self.seed}",
            "run.evaluate_every=5",
            "run.checkpoint_every=50",
            "run.threads=1",
            f"algorithm.name={self.method}",
            "algorithm.epochs=2",
            *([f"algorithm.interval={INTERVAL}"] if self.method == "adaptcl" else []),
            *self.extra,
        ]


def cells(tasks: list[str]) -> Iterator[Cell]:
    """Every cell, the most telling first."""
    for seed, task, split in itertools.product(SEEDS, tasks, SPLITS):
        yield Cell(task, split, 1.0, seed, "fedavg")
        for sigma in (2.0, 10.0, 20.0, 1.7, 3.0):
            yield Cell(task, split, sigma, seed, "adaptcl")
    for seed, task in itertools.product(SEEDS, tasks):
        yield Cell(task, "iid", 5.0, seed, "adaptcl")
        slow = 'fleet.event=[{device="device-4", round=76, slowdown=2.0}]'
        yield Cell(task, "iid", 5.0, seed, "adaptcl", "slowdown", (slow,))  # A2
        yield Cell(task, "iid", 3.0, seed, "adaptcl", "", noise=0.1)  # A7
        yield Cell(task, "iid", 10.0, seed, "adaptcl", "", noise=0.1)
    for seed, task in itertools.product(SEEDS, tasks):  # A12: the knob
        for floor in (0.1, 0.2, 0.35, 0.5, 0.7):
            yield Cell(task, "sorted80", 20.0, seed, "adaptcl", f"floor{floor:g}", (f"algorithm.gamma_min={floor}",))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run ``cell`` and keep what the claims need of it."""
    from edgeprune import engine

    experiment = engine.load_experiment(None, cell.overrides())
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prepared = engine.prepare(experiment)
        summary = engine.start(prepared, Path(folder) / "run")
        records = engine.RunDir(Path(folder) / "run").metrics()
    names = prepared.fleet.names
    return {
        "cell": {**asdict(cell), "extra": list(cell.extra)},
        "time_s": [record["time_s"] for record in records],
        "accuracy": {record["round"]: record["accuracy"] for record in records if record["accuracy"] is not None},
        "update_time_s": [[record["update_time_s"][name] for name in names] for record in records],
        "parts_s": {
            part: sum(max(p[part] for p in record["parts_s"].values()) for record in records)
            for part in ("download", "compute", "rebuild", "upload")
        },
        "retention": [[record["retention"][name] for name in names] for record in records[:: INTERVAL]]
        + [[records[-1]["retention"][name] for name in names]],
        "upload_bytes": summary["upload_bytes"],
        "download_bytes": summary["download_bytes"],
        "overhead_bytes": summary["overhead_bytes"],
        "first_round_bytes": [records[0]["download_bytes"], records[0]["upload_bytes"]],
        "later_round_bytes": [records[-1]["download_bytes"], records[-1]["upload_bytes"]],
        "samples": dict(prepared.setting.samples),
        "recipe": asdict(prepared.setting.recipe),
        "control_wall_s": summary["control_wall_s"],
        "wall_s": perf_counter() - began,
        "machine": summary["machine"],
        "latency_source": summary["latency_source"],
    }


def recharged(fedavg: dict[str, Any], sigma: float, noise: float, events: tuple[str, ...] = ()) -> list[float]:
    """FedAvg's virtual time after each round on a fleet of ``sigma``: the same bytes and steps on another clock."""
    from edgeprune import engine
    from edgeprune.engine.emulation import latency_table
    from edgeprune.fleet import Work, build_fleet, charge

    cell = Cell(**{**fedavg["cell"], "sigma": sigma, "noise": noise, "extra": events})
    experiment = engine.load_experiment(None, cell.overrides())
    prepared_table, macs = _table_and_macs(cell.task)
    table = latency_table("builtin", *prepared_table)
    fleet = build_fleet(experiment.fleet)
    recipe, total, times = fedavg["recipe"], 0.0, []
    for round_ in range(1, ROUNDS + 1):
        down, up = fedavg["first_round_bytes"] if round_ == 1 else fedavg["later_round_bytes"]
        slowest = 0.0
        for device in fleet.devices:
            batches = math.ceil(fedavg["samples"][device.name] / recipe["batch_size"])
            if fedavg["samples"][device.name] % recipe["batch_size"] == 1:
                batches -= 1  # a last batch of one sample is dropped
            work = Work(
                down // DEVICES, up // DEVICES, recipe["epochs"] * batches, macs, rebuilds=int(round_ == 1)
            )
            slowest = max(slowest, charge(device, work, table, round_=round_, seed=cell.seed).total)
        total += slowest
        times.append(total)
    return times


_KNOWN: dict[str, Any] = {}


def _table_and_macs(task_name: str) -> tuple[Any, int]:
    """What `latency_table` wants for the task, and the whole model's multiply-adds."""
    if task_name not in _KNOWN:
        from edgeprune import engine
        from edgeprune.pruning import SubmodelPlan
        from edgeprune.pruning.cost import plan_macs

        sets = [f"task.name={task_name}", "run.threads=1", f"data.samples={SAMPLES.get(task_name, 0)}"]
        prepared = engine.prepare(engine.load_experiment(None, sets))
        local = next(iter(prepared.local.values()))
        macs = plan_macs(prepared.graph, SubmodelPlan.full(prepared.graph))
        _KNOWN[task_name] = ((prepared.task, prepared.graph, local, prepared.setting.recipe), macs)
    return _KNOWN[task_name]


# --- running ----------------------------------------------------------------------------------------------------


def _run_and_keep(cell: Cell) -> str:
    import torch

    torch.set_num_threads(1)
    path = CELLS / f"{cell.key}.json"
    if not path.exists():
        outcome = run_cell(cell)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(outcome))
        beside.replace(path)
    return cell.key


def run(tasks: list[str], processes: int) -> None:
    """Run every cell that has no result yet."""
    CELLS.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells(tasks) if not (CELLS / f"{cell.key}.json").exists()]
    print(f"{len(todo)} cells to run", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=8) as pool:
        for i, key in enumerate(pool.imap_unordered(_run_and_keep, todo), start=1):
            print(f"{i}/{len(todo)} {key}", flush=True)
