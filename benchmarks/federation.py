"""Devices as processes of this machine, on the real clock: unequal ones, many, and faults for a long time.

    python benchmarks/federation.py unequal | many      (unequal: as root, with the cpu control group)

Writes benchmarks/results/federation-WHAT.json. ``unequal``: eight workers with quotas of CPU time from 40 % to 8 % of a
core train with AdaptCL; the spread of their update times before and after. ``many``: 200 clients in four processes;
what a round costs the server per client.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

from edgeprune import engine
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.config import Experiment

QUOTAS = [0.4 / (1 + 4 * i / 7) for i in range(8)]  # of one core: update times from 1 to 5
GROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 20_000


def experiment(*sets: str) -> Experiment:
    return load_experiment(None, ["run.engine=processes", "run.deadline_s=60", *sets])


@contextmanager
def quotas(pids: list[int]) -> Iterator[None]:
    """Each process in a control group with its share of a core."""
    folders = []
    try:
        for pid, share in zip(pids, QUOTAS, strict=True):
            folder = GROUPS / f"edgeprune-{os.getpid()}-{pid}"
            folder.mkdir()
            folders.append(folder)
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_US)))
            (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for folder in folders:
            for task in (folder / "cgroup.procs").read_text().split():
                (GROUPS / "cgroup.procs").write_text(task)
            folder.rmdir()


def spread(record: dict[str, Any]) -> float:
    times = [record["update_time_s"][name] for name in record["participants"]]
    return max(times) / min(times)


def unequal() -> list[dict[str, Any]]:
    rounds, interval = 24, 4
    described = experiment(
        f"run.rounds={rounds}",
        "fleet.devices=8",
        "algorithm.name=adaptcl",
        f"algorithm.interval={interval}",
        "run.evaluate_every=24",
        "data.samples=1280",
    )
    names = [f"device-{i}" for i in range(8)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with federation.Workers(described, names, folder / "w", None) as workers:
            carrier = workers.carrier(600)
            with quotas([child.pid for child in workers.hosts]):
                summary = federation.lead(described, carrier, folder / "run", None, wait_s=60, watch=_tell)
        records = engine.RunDir(folder / "run").metrics()
    before = [spread(record) for record in records[1:interval]]  # the first round loads what torch loads late
    after = [spread(record) for record in records[-interval:]]
    first, last = records[interval - 1], records[-1]
    return [
        {
            "devices": 8,
            "quota_of_a_core": [round(q, 4) for q in QUOTAS],
            "rounds": rounds,
            "interval": interval,
            "spread_before": round(statistics.median(before), 3),
            "spread_after": round(statistics.median(after), 3),
            "spread_each_round": [round(spread(record), 3) for record in records],
            "round_s_before": round(max(first["update_time_s"].values()), 3),
            "round_s_after": round(max(last["update_time_s"].values()), 3),
            "retention_after": {n: round(v, 3) for n, v in last["retention"].items()},
            "update_time_s_before": {n: round(v, 3) for n, v in first["update_time_s"].items()},
            "update_time_s_after": {n: round(v, 3) for n, v in last["update_time_s"].items()},
            "accuracy": summary["accuracy"],
        }
    ]


def _tell(at: object, record: dict[str, Any]) -> None:
    print(record["round"], round(spread(record), 2), round(record["time_s"], 1), flush=True)


def many() -> list[dict[str, Any]]:
    clients, hosts, rounds = 200, 4, 6
    described = experiment(
        f"run.rounds={rounds}", f"fleet.devices={clients}", "algorithm.name=fedavg", "run.evaluate_every=100"
    )
    names = [f"device-{i}" for i in range(clients)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with federation.Workers(described, names, folder / "w", None, hosts=hosts) as workers:
            carrier = workers.carrier(600)
            own = Path("/proc/self/status").read_text()
            before = int(own.split("VmRSS:")[1].split()[0]) / 1024
            began, cpu = time.monotonic(), []
            watch = lambda at, record: cpu.append(time.process_time())  # noqa: E731
            summary = federation.lead(described, carrier, folder / "run", None, wait_s=60, watch=watch)
            took = time.monotonic() - began
            memory = [_rss_mib(child.pid) for child in workers.hosts]
        records = engine.RunDir(folder / "run").metrics()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rounds_s = statistics.median(b["time_s"] - a["time_s"] for a, b in zip(records, records[1:], strict=False))
    compute = statistics.median(sum(record["transport"]["device_s"].values()) for record in records[1:])
    envelope = records[-1]["transport"]
    wire = records[-1]["upload_bytes"] + records[-1]["download_bytes"]
    return [
        {
            "clients": clients,
            "processes": hosts,
            "rounds": rounds,
            "whole_s": round(took, 2),
            "round_s": round(rounds_s, 3),
            "device_compute_s_per_round": round(compute, 3),
            "bytes_per_update": records[-1]["upload_bytes"] // clients,
            "envelope_bytes_beside_wire": envelope["sent_bytes"] + envelope["received_bytes"] - wire,
            "server_cpu_ms_per_update": round(1e3 * (cpu[-2] - cpu[0]) / (rounds - 2) / clients, 3),
            "of_that_assign_encode_merge": round(1e3 * summary["control_wall_s"] / rounds / clients, 3),
            "server_mib_before": round(before),
            "server_mib_peak": round(peak),
            "host_mib": memory,
            "participants_each_round": [len(record["participants"]) for record in records],
        }
    ]


def _rss_mib(pid: int) -> int:
    try:
        return round(int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024)
    except (OSError, IndexError):
        return 0


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    about = harness.machine()
    if what == "unequal":
        results = unequal()
    elif what == "many":
        results = many()
    else:
        sys.exit(__doc__)
    print(results)
    print(harness.write_result(f"federation-{what}", about, results))


if __name__ == "__main__":
    main()
