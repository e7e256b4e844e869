"""What every benchmark needs: the machine in words, medians, and a result file.

A result file is JSON: {"benchmark", "date", "machine": {...}, "results": [...], ...}. Both sides of a comparison are
measured in one run; the file says how busy the machine was before and after.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """The processor's name as the kernel knows it, and its model numbers where the name says little."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in lines}
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or fields.get("CPU part") or platform.machine()
    numbers = "/".join(fields[key] for key in ("cpu family", "model", "stepping") if key in fields)
    return f"{name} (family/model/stepping {numbers})" if numbers else name


def commit() -> str:
    """The commit measured, with "+" when the working tree differs from it."""
    root = Path(__file__).resolve().parent
    try:
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "--", "../csrc", "../edgeprune"],
            cwd=root,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return (name.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or "unknown"


def machine() -> dict[str, Any]:
    """What the figures depend on. No host name, no user name, no path."""
    from edgeprune import ops

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    info = ops.info()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "edgeprune": info["version"],
        "commit": commit(),
        "kernels": info["chosen"],
        "compiler": info["compiler"],
        "load_before": os.getloadavg()[0],
    }


def median_ms(work: Callable[[], object], repeats: int, warm_up: int = 2) -> tuple[float, float]:
    """(median, smallest) wall-clock time of a call in milliseconds."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), min(times)


def interleaved_ms(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of each, taken in turns, so that a slow minute of the machine meets all sides alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        median_ms(work, 1, warm_up=1)
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(median_ms(work, 1, warm_up=0)[0])
    return {name: statistics.median(each) for name, each in times.items()}


def write_result(name: str, about: dict[str, Any], results: list[dict[str, Any]]) -> Path:
    """Writes results/<name>.json (written, then renamed) and returns its path; ``about`` is machine() at the start."""
    about["load_after"] = os.getloadavg()[0]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    body = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": about,
        "results": results,
    }
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path
