"""What faults cost: half an hour of random ones on real processes, and random absences on the local engine.

    python benchmarks/faults.py soak [SECONDS] | absences

Writes benchmarks/results/faults-WHAT.json. ``soak``: workers killed and stopped at random and the server killed and
resumed, until the time is up; whether every round was made, and how good the model is. ``absences``: the same training
with each device absent from a round at random, judged every twenty rounds, as merged and calibrated, three seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harness

from edgeprune import engine
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.children import wait_for
from edgeprune.engine.sockets import SocketCarrier
from edgeprune.tasks import evaluate

DEVICES, ABSENT, ROUNDS = 4, 0.55, 300
SETS = (
    f"fleet.devices={DEVICES}",
    "data.samples=400",
    "algorithm.name=fedavg",
    "algorithm.upload=int8",
    "algorithm.feedback=true",
)
LEAD = """
import sys
from pathlib import Path
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.sockets import SocketCarrier
file, out, sockets = Path(sys.argv[1]), Path(sys.argv[2]), [Path(one) for one in sys.argv[3:]]
carrier = SocketCarrier({f"device-{i}": path for i, path in enumerate(sockets)})
if (out / "config.toml").exists():
    federation.lead_on(out, carrier, None, wait_s=60)
else:
    federation.lead(load_experiment(file), carrier, out, None, wait_s=60)
"""


def accuracy(run: engine.RunDir) -> float:
    """Of the global model as it was merged."""
    model, _ = run.model()
    return evaluate(model, run.task().load_data(None), run.task())[0]


def soak(seconds: float) -> list[dict[str, Any]]:
    """A run without an end in sight; when the time is up, it is resumed once more to its next round and ended."""
    draw = random.Random(1)
    described = load_experiment(
        None,
        [
            *SETS,
            "algorithm.calibrate=1",
            "run.engine=processes",
            "run.deadline_s=10",
            "run.rounds=100000",
            "run.evaluate_every=100000",
        ],
    )
    names = [f"device-{i}" for i in range(4)]
    struck: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "run"
        with federation.Workers(described, names, folder / "w", None) as workers:
            workers.carrier(600)
            command = [sys.executable, "-c", LEAD, str(workers.folder / "experiment.toml"), str(out)]
            command += [str(path) for path in workers.paths.values()]
            server = subprocess.Popen(command)
            asleep: list[tuple[float, int]] = []
            wait_for(lambda: (out / "metrics.jsonl").exists(), 120)
            end = time.monotonic() + seconds
            try:
                while time.monotonic() < end:
                    pause = time.monotonic() + draw.uniform(4.0, 16.0)
                    while time.monotonic() < pause:
                        time.sleep(0.5)
                        for child in workers.hosts:
                            child.tend()
                    for at, pid in list(asleep):
                        if at <= time.monotonic():
                            _signal(pid, signal.SIGCONT)
                            asleep.remove((at, pid))
                    if server.poll() is not None:
                        struck["server ended by itself"] += 1
                        server = subprocess.Popen(command)
                        continue
                    what = draw.choices(["kill a worker", "stop a worker", "kill the server"], [3, 3, 1])[0]
                    child = draw.choice(workers.hosts)
                    struck[what] += 1
                    if what == "kill a worker":
                        _signal(child.pid, signal.SIGKILL)
                    elif what == "stop a worker":
                        _signal(child.pid, signal.SIGSTOP)
                        asleep.append((time.monotonic() + draw.uniform(1.0, 15.0), child.pid))
                    else:
                        server.kill()
                        server.wait()
                        server = subprocess.Popen(command)
            finally:
                for _, pid in asleep:
                    _signal(pid, signal.SIGCONT)
                server.kill()
                server.wait()
            for _ in range(30):  # whoever was killed last comes back
                time.sleep(1.0)
                for child in workers.hosts:
                    child.tend()
            made = len(engine.RunDir(out).metrics())
            as_merged = accuracy(engine.RunDir(out))
            carrier = SocketCarrier(workers.paths)
            summary = federation.lead_on(out, carrier, None, wait_s=60, rounds=made + 2)
        records = engine.RunDir(out).metrics()
    missing = sorted(set(range(1, records[-1]["round"] + 1)) - {record["round"] for record in records})
    reasons = Counter(reason for record in records for reason in record["rejected"].values())
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({k: v for k, v in record["transport"].items() if isinstance(v, int) and not k.endswith("bytes")})
    return [
        {
            "seconds": seconds,
            "struck": dict(struck),
            "rounds": len(records),
            "rounds_lost": missing,
            "rounds_with_everybody": sum(len(record["participants"]) == 4 for record in records),
            "rounds_with_nobody": sum(not record["participants"] for record in records),
            "left_out": dict(reasons.most_common(10)),
            "counted": dict(counts),
            "accuracy_as_merged": as_merged,
            "accuracy_calibrated": summary["accuracy"],
        }
    ]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def absences() -> list[dict[str, Any]]:
    """Absent devices alone, nothing killed: what they cost, as merged and with calibrated statistics."""
    results = []
    for seed in range(3):
        draw = random.Random(seed)
        faults = [
            f'{{device="device-{device}", first={r}, last={r}, kind="drop"}}'
            for device in range(DEVICES)
            for r in range(1, ROUNDS + 1)
            if draw.random() < ABSENT
        ]
        for passes in (0, 1):
            more = [f"run.seed={seed}", f"run.rounds={ROUNDS}", "run.evaluate_every=20"]
            more += [f"algorithm.calibrate={passes}", f"fleet.fault=[{', '.join(faults)}]"]
            described = load_experiment(None, [*SETS, *more])
            with tempfile.TemporaryDirectory() as folder:
                engine.start(engine.prepare(described), Path(folder) / "run")
                judged = [r for r in engine.RunDir(Path(folder) / "run").metrics() if r["accuracy"] is not None]
            found = [record["accuracy"] for record in judged]
            worst = min(judged, key=lambda record: record["accuracy"])
            results.append(
                {
                    "seed": seed,
                    "calibration_passes": passes,
                    "evaluations": len(found),
                    "median_accuracy": statistics.median(found),
                    "worst_accuracy": worst["accuracy"],
                    "participants_of_the_worst": len(worst["participants"]),
                    "last_accuracy": found[-1],
                }
            )
            print(results[-1], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("soak", "absences"))
    parser.add_argument("seconds", type=float, nargs="?", default=1800.0, help="how long a soak lasts")
    arguments = parser.parse_args()
    about = harness.machine()
    results = soak(arguments.seconds) if arguments.what == "soak" else absences()
    print(results)
    print(harness.write_result(f"faults-{arguments.what}", about, results))


if __name__ == "__main__":
    main()
