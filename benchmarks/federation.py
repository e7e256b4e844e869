"""Devices as processes of this machine, on the real clock: unequal ones, many, and faults for a long time.

    python benchmarks/federation.py unequal | many | soak [SECONDS]      (unequal: as root, with the cpu control group)

Writes benchmarks/results/federation-WHAT.json. ``unequal``: eight workers with quotas of CPU time from 40 % to 8 % of a
core train with AdaptCL; the spread of their update times before and after. ``many``: 200 clients in four processes;
what a round costs the server per client. ``soak``: workers killed and stopped at random and the server killed and
resumed, until the time is up; whether every round was made, and what it cost.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

from edgeprune import engine
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.children import wait_for
from edgeprune.engine.config import Experiment
from edgeprune.engine.sockets import SocketCarrier

QUOTAS = [0.4 / (1 + 4 * i / 7) for i in range(8)]  # of one core: update times from 1 to 5
GROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 20_000
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


def soak(seconds: float) -> list[dict[str, Any]]:
    """A run without an end in sight; when the time is up, it is resumed once more to its next round and ended."""
    draw = random.Random(1)
    described = experiment(
        "run.rounds=100000",
        "fleet.devices=4",
        "run.evaluate_every=100000",
        "algorithm.name=fedavg",
        "algorithm.upload=int8",
        "algorithm.feedback=true",
        "run.deadline_s=10",
        "data.samples=400",
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
            "accuracy_after": summary["accuracy"],
        }
    ]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    about = harness.machine()
    if what == "unequal":
        results = unequal()
    elif what == "many":
        results = many()
    elif what == "soak":
        results = soak(float(sys.argv[2]) if len(sys.argv) > 2 else 1800.0)
    else:
        sys.exit(__doc__)
    print(results)
    print(harness.write_result(f"federation-{what}", about, results))


if __name__ == "__main__":
    main()
