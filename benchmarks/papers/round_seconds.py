"""Wall-clock seconds of a round of every method of feddst.py and mpfl.py, to plan their grids with.

    python benchmarks/papers/round_seconds.py [--rounds 3] [--methods feddst,fedavg,...]

The cells' own settings, one thread, no evaluation but in the last round, which is left out as is the first; the median
is kept. Writes benchmarks/results/round_seconds.json, where methods measured before stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
from feddst_cells import SETTING, feddst

CIFAR = ("task.name=cifar10-feddst", *SETTING)
DST = feddst("cifar10-feddst")
NODES = ("task.name=fashion-cnn", "data.partition=iid", "data.samples=6000", "fleet.devices=10", "algorithm.name=mpfl")
METHODS: dict[str, tuple[str, ...]] = {
    "feddst": (*CIFAR, *DST),
    "feddst-readjusting": (*CIFAR, *DST, "algorithm.interval=1", "algorithm.end=1000"),
    "prunefl-like": (*CIFAR, *DST, "algorithm.moves=server", "algorithm.interval=1", "algorithm.end=1000"),
    "feddst-int8-feedback": (*CIFAR, *DST, "algorithm.upload=int8", "algorithm.feedback=true"),
    "feddst-S0.95": (*CIFAR, *DST, "algorithm.sparsity=0.95"),
    "fedavgm": (*CIFAR, "algorithm.name=fedavg"),
    "fedprox": (*CIFAR, "algorithm.name=fedavg", "algorithm.prox=0.1"),
    "fedavgm-int8": (*CIFAR, "algorithm.name=fedavg", "algorithm.upload=int8"),
    "topk": (*CIFAR, "algorithm.name=fedavg", "algorithm.density=0.1", "algorithm.feedback=true"),
    "feddst-100-clients": (*CIFAR, *DST, "algorithm.sample=100"),
    "feddst-1000-clients": (*CIFAR, *DST, "fleet.devices=1000", "algorithm.sample=1000"),
    "feddst-fifth-of-the-weights": (*CIFAR, *DST, "task.name=feddst_tasks:small"),
    "feddst-four-times-the-weights": (*CIFAR, *DST, "task.name=feddst_tasks:large"),
    "mpfl-search": (*NODES, "algorithm.iterations=3"),  # the rounds that are timed, of four
    "mpfl-training": (*NODES, "algorithm.iterations=1", "algorithm.step=0.7"),
}


def seconds(sets: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """The median of the rounds between the first and the last, and their bytes."""
    from edgeprune import engine

    sets = (*sets, f"run.rounds={rounds}", f"run.evaluate_every={rounds}", "run.threads=1", "run.checkpoint_every=10")
    prepared = engine.prepare(engine.load_experiment(None, list(sets)))
    marks = [time.perf_counter()]
    sent = []

    def watch(at: Any, record: Any) -> None:
        marks.append(time.perf_counter())
        sent.append(record["upload_bytes"])

    with tempfile.TemporaryDirectory() as folder:
        engine.start(prepared, Path(folder) / "run", watch)
    times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    return {"seconds": statistics.median(times[1:-1]), "upload_bytes": sent[-2], "all": times}


def main() -> None:
    """Every method in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    about, path = harness.machine(), harness.RESULTS / "round_seconds.json"
    before = json.loads(path.read_text())["results"] if path.exists() else []
    rows = {row["method"]: row for row in before}
    for method in arguments.methods.split(","):
        row = {"method": method, "commit": about["commit"], **seconds(METHODS[method], arguments.rounds)}
        rows[method] = row
        print(f"{method:22} {row['seconds']:.2f} s, {row['upload_bytes']:,} B up", flush=True)
        if not arguments.no_write:
            harness.write_result("round_seconds", dict(about), list(rows.values()))


if __name__ == "__main__":
    main()
