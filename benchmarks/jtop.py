"""What sampling through jtop costs and how well it measures, against the real service on an emulated Orin.

    EDGEPRUNE_JTOP=ENVIRONMENTS python benchmarks/jtop.py       (as root, on Linux; scripts/jtop makes the environments)

Writes benchmarks/results/jtop.json: for each version of jetson-stats the CPU time of the sampling child and of the
sampling thread at 0.5 s as a share of one core, the energy of a 5 W to 15 W step at 0.5 s and 0.1 s, and how long each
fault took to be told. No figure is a Jetson's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "jetson"))
import jtop_service

from edgeprune.device.jtop import JtopSampler
from edgeprune.device.samples import now

TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def sampler(version: str, interval: float) -> JtopSampler:
    return JtopSampler(interval, python=str(jtop_service.environments()[version] / "bin/python"))


def cost(version: str, seconds: float = 10.0) -> dict[str, float]:
    environment = jtop_service.environments()[version]
    with (
        tempfile.TemporaryDirectory() as folder,
        jtop_service.running(environment, Path(folder)),
        sampler(version, 0.5) as taken,
    ):
        time.sleep(3)  # jtop looks for libraries in its first seconds
        pid = taken.pid
        assert pid is not None
        mine, theirs, began = time.process_time(), cpu_s(pid), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return {"child": (cpu_s(pid) - theirs) / took, "this_process": (time.process_time() - mine) / took}


def step(version: str, interval: float, half_s: float) -> dict[str, Any]:
    environment = jtop_service.environments()[version]
    with tempfile.TemporaryDirectory() as folder, jtop_service.running(environment, Path(folder)) as service:
        service.board.set_power("VDD_IN", 5.0)
        with sampler(version, interval) as taken:
            time.sleep(1)
            start = now()
            time.sleep(half_s)
            service.board.set_power("VDD_IN", 15.0)
            middle = now()
            time.sleep(half_s)
            end = now()
            time.sleep(2 * interval)
            energy = taken.stop().energy(start, end, 10, 1)
    true = 5 * (middle - start) + 15 * (end - middle)
    assert energy.joules is not None, energy.reason
    return {"interval_s": interval, "seconds": end - start, "true_j": true, "measured_j": energy.joules,
            "error": energy.joules / true - 1, "samples": energy.samples}  # fmt: skip


def told(taken: JtopSampler, since: float) -> dict[str, Any]:
    """The sentence, and how long it took."""
    while taken.recording().fault is None and now() < since + 30:
        time.sleep(0.01)
    return {"seconds": now() - since, "sentence": taken.recording().fault}


def faults(version: str) -> dict[str, Any]:
    """What goes wrong in the field, done to the service: how soon a sampler at 0.5 s says so."""
    environments = jtop_service.environments()
    found: dict[str, Any] = {}
    for name, happens in (("killed", jtop_service.Service.kill), ("hung", jtop_service.Service.hang)):
        with (
            tempfile.TemporaryDirectory() as folder,
            jtop_service.running(environments[version], Path(folder)) as service,
            sampler(version, 0.5) as taken,
        ):
            time.sleep(1)
            began = now()
            happens(service)
            found[name] = told(taken, began)
    with tempfile.TemporaryDirectory() as folder, jtop_service.running(environments[version], Path(folder)) as service:
        service.hang()
        began = now()
        with JtopSampler(0.5, 5.0, python=str(environments[version] / "bin/python")) as taken:
            found["hung from the start, deadline 5 s"] = told(taken, began)
    began = now()
    with sampler(version, 0.5) as taken:
        found["no service"] = told(taken, began)
    for other in sorted(environments.keys() - {version}):
        with tempfile.TemporaryDirectory() as folder, jtop_service.running(environments[other], Path(folder)):
            began = now()
            with sampler(version, 0.5) as taken:
                found[f"service {other}"] = told(taken, began)
    return found


def main() -> None:
    why = jtop_service.why_not()
    if why:
        sys.exit(f"jtop benchmark: {why}")
    about = harness.machine()
    results = []
    for version in sorted(jtop_service.environments()):
        row = {"jetson_stats": version, "share_of_a_core_at_0.5_s": cost(version)}
        row["step"] = [step(version, 0.5, 10.0), step(version, 0.1, 4.0)]
        row["faults"] = faults(version)
        print(row, flush=True)
        results.append(row)
    print("wrote", harness.write_result("jtop", about, results).name)


if __name__ == "__main__":
    main()
