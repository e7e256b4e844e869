"""The same experiment on every engine: is the model the same, what does an engine add to a round, what does it send.

    python benchmarks/engines.py [ENGINE ...]     (as root, on Linux; scripts/engines makes Flower's and FLARE's Python)

Writes benchmarks/results/engines.json. Everything runs in a network namespace of its own, and each device of Flower and
FLARE in another, joined by a pair of interfaces whose counters say what really travelled, headers and TLS included. An
engine's share of a round is its length less the longest time that a device worked. At the end: memory and processor
time of a device that has joined and waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import safetensors.torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "engine"))
import engines

from edgeprune import engine
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.children import wait_for
from edgeprune.engine.config import Experiment

DEVICES, ROUNDS = 2, 10
ADDRESS = "10.77.0.1:9092"
TICK = os.sysconf("SC_CLK_TCK")


def experiment(name: str) -> Experiment:
    sets = [f"run.rounds={ROUNDS}", f"fleet.devices={DEVICES}", "algorithm.name=fedavg", "data.samples=400"]
    found = load_experiment(None, [*sets, f"run.evaluate_every={ROUNDS}", "run.deadline_s=120"])
    return replace(found, run=replace(found.run, engine=name))


def digest(out: Path) -> str:
    """16 hex digits over the global model's bits."""
    every = safetensors.torch.load_file(out / checkpoints.FILE)
    told = hashlib.sha256()
    for name in sorted(name for name in every if ":" not in name):
        told.update(name.encode() + every[name].contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


class Net:
    """A namespace for each device, whose interface "eth0" leads to this one's "deviceN"."""

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        _ip("link", "set", "lo", "up")
        for number in range(DEVICES):
            holder = subprocess.Popen(["unshare", "-n", "sleep", "1200"])
            self._holders.append(holder)
            assert wait_for(lambda pid=holder.pid: _space(pid) != _space(os.getpid()), 10)
            _ip(
                "link",
                "add",
                "name",
                f"device{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                str(holder.pid),
            )
            _ip("addr", "add", f"10.77.{number}.1/24", "dev", f"device{number}")
            _ip("link", "set", f"device{number}", "up")
            for words in (
                ["link", "set", "lo", "up"],
                ["addr", "add", f"10.77.{number}.2/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["route", "add", "default", "via", f"10.77.{number}.1"],
            ):
                subprocess.run([*self.inside(number), "ip", *words], check=True)

    def inside(self, number: int) -> list[str]:
        """What a command is begun with to run on device ``number``."""
        return ["nsenter", "-t", str(self._holders[number].pid), "-n"]

    def counted(self) -> int:
        """Bytes on the devices' interfaces, both ways."""
        lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
        return sum(int(words[1]) + int(words[9]) for words in lines if words[0].startswith("device"))

    def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()


def _space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def joined(name: str, net: Net, folder: Path, wait_s: int = 180) -> Iterator[tuple[Path, list[Any]]]:
    """A server and its devices; the run's folder and the processes, the server first."""
    out, log = folder / name, folder / f"{name}.log"
    file = folder / f"{name}.toml"
    file.write_text(experiment(name).to_toml())
    common = ["--engine", name, "--address", ADDRESS, "--out", str(out), "--wait", str(wait_s)]
    started = [engines.start(name, log, "serve", str(file), *common)]
    try:
        kits = [folder / f"{name}.federation/kits/device-{i}" for i in range(DEVICES)]
        assert wait_for(lambda: all((kit / "kit.toml").is_file() for kit in kits), 120), log.read_text()
        for number, kit in enumerate(kits):
            prefix = net.inside(number)
            python = engines.python_with(name)
            env = {**os.environ, "PYTHONPATH": str(engines.ROOT), "OMP_NUM_THREADS": "1"}
            with open(log, "ab") as said:
                command = [*prefix, str(python), "-m", "edgeprune", "join", str(kit), "--idle", "300"]
                started.append(subprocess.Popen(command, stdout=said, stderr=said, env=env))
        yield out, started
    finally:
        engines.stop(started)


def distributed(name: str, net: Net, folder: Path) -> dict[str, Any]:
    with joined(name, net, folder) as (out, started):
        marks: dict[int, int] = {}
        end = time.monotonic() + 300
        while len(marks) < ROUNDS and time.monotonic() < end:
            lines = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
            if lines and lines not in marks:
                marks[lines] = net.counted()
            time.sleep(0.02)
        if started[0].wait(200) != 0:
            raise SystemExit((folder / f"{name}.log").read_text()[-2000:])
        for process in started[1:]:
            process.wait(90)
    records = engine.RunDir(out).metrics()
    first, last = min(marks), max(marks)
    wire = sum(record["upload_bytes"] + record["download_bytes"] for record in records[first:last])
    return {**figures(name, out), "interface_over_wire": round((marks[last] - marks[first]) / wire, 4)}


def figures(name: str, out: Path) -> dict[str, Any]:
    records = engine.RunDir(out).metrics()
    found: dict[str, Any] = {"engine": name, "model": digest(out), "rounds": len(records)}
    if name != "local":
        spans = [max(record["update_time_s"].values()) for record in records[1:]]
        worked = [max(record["transport"]["device_s"].values()) for record in records[1:]]
        found["round_s"] = round(statistics.median(spans), 3)
        found["device_s"] = round(statistics.median(worked), 3)
        found["engine_s"] = round(statistics.median(a - b for a, b in zip(spans, worked, strict=True)), 3)
        found["wire_bytes_per_round"] = records[-1]["upload_bytes"] + records[-1]["download_bytes"]
        told = records[-1]["transport"]
        found["envelope_bytes_per_round"] = told["sent_bytes"] + told["received_bytes"] - found["wire_bytes_per_round"]
    return found


def idle(name: str, net: Net, folder: Path, seconds: float = 30.0) -> dict[str, Any]:
    """A device that has joined a server which waits for another one that does not come."""
    folder = folder / "idle"
    folder.mkdir()
    with joined(name, net, folder, wait_s=600) as (_, started):
        engines.stop(started[2:])
        time.sleep(45)
        pids = _family(started[1].pid)
        before, began = {pid: _cpu_s(pid) for pid in pids}, time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        rows = [
            {"process": _name(pid), "mib": round(_pss_mib(pid), 1), "cpu": round((_cpu_s(pid) - before[pid]) / took, 4)}
            for pid in _family(started[1].pid)
            if pid in before
        ]
    total = {"mib": round(sum(row["mib"] for row in rows), 1), "cpu": round(sum(row["cpu"] for row in rows), 4)}
    return {"engine": name, "idle_device": total, "processes": rows}


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found, children = [pid], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(path.parent.name))
    for one in found:
        found += children.get(one, [])
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _pss_mib(pid: int) -> float:
    """Memory, what is shared with others divided among them."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    known = {
        "edgeprune.engine.resident": "worker",
        "join": "join",
        "nvflare.private.fed.app.client.client_train": "FLARE",
    }
    return next((known[word] for word in words if word in known), Path(words[1] if len(words) > 1 else words[0]).name)


def inside(wanted: list[str]) -> None:
    about = harness.machine()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = Net()
        try:
            for one in wanted:
                if one == "local":
                    engine.start(engine.prepare(experiment(one)), folder / one)
                    results.append(figures(one, folder / one))
                elif one == "processes":
                    federation.run_here(experiment(one), folder / one, None)
                    results.append(figures(one, folder / one))
                elif engines.python_with(one) is None:
                    results.append({"engine": one, "skipped": engines.why_not(one)})
                else:
                    results.append(distributed(one, net, folder))
                    results[-1].update(idle(one, net, folder / one))
                print(results[-1], flush=True)
        finally:
            net.close()
    models = {row["model"] for row in results if "model" in row}
    results.append(
        {"same_model_bit_for_bit": len(models) == 1, "engines": [row["engine"] for row in results if "model" in row]}
    )
    print(results[-1])
    print(harness.write_result("engines", about, results))


if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if not word.startswith("-")] or ["local", "processes", "flower", "flare"]
    if "--inside" in sys.argv:
        inside(chosen)
    else:
        command = ["unshare", "-n", sys.executable, __file__, "--inside", *chosen]
        sys.exit(subprocess.run(command, check=False).returncode)
