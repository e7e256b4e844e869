"""Memory of a server as its cohort grows: updates summed as they come, against updates kept until the merge.

    python benchmarks/cohort.py [--clients 5 20 80]

A round of FedAvg on the local engine, each run in a process of its own, of a model of 17 MB (64-2048-2048-10) with
eight digits for each device. "more_mib" is the peak of the process's resident memory beyond what it was before the
round, when data, model and graph were there; "merge_ms_per_update" the server's own seconds (assign, encode, sum,
merge) for one update. Writes benchmarks/results/cohort.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
from torch import nn

from edgeprune import engine
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.tasks import Task
from edgeprune.tasks import get as get_task

ROUNDS = 2


def wide_digits() -> Task:
    """Digits with a model that is mostly one large matrix."""

    def make() -> nn.Module:
        layers = [nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
        return nn.Sequential(nn.Flatten(), *layers)

    return replace(get_task("digits"), make_model=make)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(way: str, clients: int) -> dict[str, Any]:
    """The figures of one run, for a process of its own."""
    if way == "kept":
        FedAvg.summing = lambda self, setting, state: None  # type: ignore[method-assign]
    sets = ["task.name=cohort:wide_digits", "algorithm.name=fedavg", "algorithm.epochs=1", "run.threads=1"]
    sets += [f"data.samples={8 * clients}", f"fleet.devices={clients}", f"run.rounds={ROUNDS}"]
    sets += [f"run.evaluate_every={ROUNDS}"]
    prepared = engine.prepare(engine.load_experiment(None, sets))
    size = sum(t.numel() * t.element_size() for t in prepared.model.state_dict().values())
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        summary = engine.start(prepared, Path(folder) / "run")
    return {
        "updates": way,
        "clients": clients,
        "model_mib": round(size / 2**20, 2),
        "before_mib": round(before),
        "more_mib": round(peak_mib() - before),
        "merge_ms_per_update": round(1e3 * summary["control_wall_s"] / ROUNDS / clients, 2),
        "accuracy": summary["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "CLIENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]))))
        return
    about, results = harness.machine(), []
    for clients in arguments.clients:
        for way in ("summed", "kept"):
            command = [sys.executable, __file__, "--one", way, str(clients)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
    print(harness.write_result("cohort", about, results))


if __name__ == "__main__":
    main()
