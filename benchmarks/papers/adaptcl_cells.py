"""The grid of benchmarks/papers/adaptcl.py: which runs there are, and running them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

CELLS = Path(__file__).resolve().parents[1] / "results" / "adaptcl"

ROUNDS, INTERVAL, DEVICES = 150, 10, 10
SPLITS = {"iid": ["data.partition=iid"], "sorted80": ["data.partition=sorted", "data.share=0.8"]}
# By unit is the default. On label-sorted data it fails (a unit that one device holds learns that device's labels only),
# and by worker is what holds; the rows labelled unit, worker and delta show the other choices.
MERGE = {"iid": ("algorithm.merge_by=unit",), "sorted80": ("algorithm.merge_by=worker",)}
SAMPLES = {"digits": 0, "fashion-cnn": 2000}
EVALUATE_EVERY = {"fashion-cnn": 25}  # 10,000 test images take as long as a round
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
            f"run.evaluate_every={EVALUATE_EVERY.get(self.task, 10)}",
            "run.checkpoint_every=50",
            "run.threads=1",
            f"algorithm.name={self.method}",
            "algorithm.epochs=1",
            *([f"algorithm.interval={INTERVAL}"] if self.method == "adaptcl" else []),
            *self.extra,
        ]


def cells(tasks: list[str]) -> Iterator[Cell]:
    """Every cell, the most telling first, and one seed after the other: a grid that stops half-way says something."""
    first, *others = tasks
    yield from itertools.chain.from_iterable((*plain(first, seed), *changes(first, seed)) for seed in SEEDS)
    yield from itertools.chain.from_iterable(plain(task, SEEDS[0]) for task in others)
    yield from itertools.chain.from_iterable(knob_cells(first, seed) for seed in SEEDS)
    yield from itertools.chain.from_iterable(plain(task, seed) for seed in SEEDS[1:] for task in others)
    yield from itertools.chain.from_iterable(ablations(first, seed) for seed in SEEDS)


def plain(task: str, seed: int) -> Iterator[Cell]:
    """FedAvg, and AdaptCL at every sigma."""
    for split in SPLITS:
        yield Cell(task, split, 1.0, seed, "fedavg")
        for sigma in (2.0, 10.0, 20.0, 1.7, 3.0):
            yield Cell(task, split, sigma, seed, "adaptcl", "", MERGE[split])


def changes(task: str, seed: int) -> Iterator[Cell]:
    """A device that slows down in the middle of the run (A2), and twice the timing noise (A7)."""
    slow = 'fleet.event=[{device="device-4", round=76, slowdown=2.0}]'
    yield Cell(task, "iid", 5.0, seed, "adaptcl", "slowdown", (slow,))
    yield Cell(task, "iid", 3.0, seed, "adaptcl", "", noise=0.1)
    yield Cell(task, "iid", 10.0, seed, "adaptcl", "", noise=0.1)


def knob_cells(task: str, seed: int) -> Iterator[Cell]:
    """Floors of retention (A12)."""
    for floor in (0.35, 0.5, 0.65, 0.8):
        extra = (*MERGE["sorted80"], f"algorithm.gamma_min={floor}")
        yield Cell(task, "sorted80", 20.0, seed, "adaptcl", f"floor{floor:g}", extra)


def ablations(task: str, seed: int) -> Iterator[Cell]:
    """The rate learner over channels, as the paper has it; the other merges on sorted data, the other one on mixed."""
    for sigma in (3.0, 10.0):
        extra = ("algorithm.size_by=channels", "algorithm.alpha=0.5")
        yield Cell(task, "iid", sigma, seed, "adaptcl", "channels", extra)
    for sigma in (2.0, 20.0):
        yield Cell(task, "sorted80", sigma, seed, "adaptcl", "unit", ("algorithm.merge_by=unit",))
        yield Cell(task, "sorted80", sigma, seed, "adaptcl", "delta", ("algorithm.merge_by=delta",))
        yield Cell(task, "iid", sigma, seed, "adaptcl", "worker", ("algorithm.merge_by=worker",))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run ``cell`` and keep what the claims need of it."""
    from edgeprune import engine

    experiment = engine.load_experiment(None, cell.overrides())
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prepared = engine.prepare(experiment)
        summary = engine.start(prepared, Path(folder) / "run")
        records = engine.RunDir(Path(folder) / "run").metrics()
        stage_s = time_of_a_stage(prepared, Path(folder) / "run") if cell.method == "adaptcl" else 0.0
    names = prepared.fleet.names
    return {
        "cell": {**asdict(cell), "extra": list(cell.extra)},
        "time_s": [*(record["time_s"] for record in records[:-1]), summary["time_s"]],  # the last holds the calibration
        "accuracy": {record["round"]: record["accuracy"] for record in records if record["accuracy"] is not None},
        "update_time_s": [[record["update_time_s"][name] for name in names] for record in records],
        "parts_s": {
            part: sum(max(p[part] for p in record["parts_s"].values()) for record in records)
            for part in ("download", "compute", "rebuild", "upload")
        },
        "retention": [[record["retention"][name] for name in names] for record in records[::INTERVAL]]
        + [[records[-1]["retention"][name] for name in names]],
        "upload_bytes": summary["upload_bytes"],
        "download_bytes": summary["download_bytes"],
        "overhead_bytes": summary["overhead_bytes"],
        "first_round_bytes": [records[0]["download_bytes"], records[0]["upload_bytes"]],
        "later_round_bytes": [records[-1]["download_bytes"], records[-1]["upload_bytes"]],
        "samples": dict(prepared.setting.samples),
        "recipe": asdict(prepared.setting.recipe),
        "stage_s": stage_s,
        "wall_s": perf_counter() - began,
        "machine": summary["machine"],
        "latency_source": summary["latency_source"],
    }


def time_of_a_stage(prepared: Any, folder: Path) -> float:
    """Seconds that the server spends on one stage of pruned-rate learning: times, ranking and everybody's plan."""
    from edgeprune.algorithms import adaptcl
    from edgeprune.engine import checkpoint as checkpoints

    algorithm, graph = prepared.experiment.algorithm, prepared.graph
    state = checkpoints.load(folder / checkpoints.FILE, graph).state
    workers, target, _ = adaptcl._from_memory(state.memory)
    times = []
    for _ in range(5):
        began = perf_counter()
        frozen = algorithm.rank(graph, state.model)
        learnt, _ = algorithm.learn(workers, target, adaptcl.scale(graph, frozen, algorithm.size_by))
        algorithm._plans(prepared.setting, state.plans, learnt, frozen)
        times.append(perf_counter() - began)
    return statistics.median(times)


def rounded(value: Any) -> Any:
    """``value`` with every number to six digits: the files are for reading and for git."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def _run_and_keep(cell: Cell) -> str:
    import torch

    torch.set_num_threads(1)
    path = CELLS / f"{cell.key}.json"
    if not path.exists():
        outcome = run_cell(cell)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(rounded(outcome)))
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
