"""Every CUDA kernel on this machine's GPU: built for it, checked against the references, timed against its rivals.

    python benchmarks/cuda.py [--no-build] [--no-check] [--only masked,blocks,packing,channels]

Writes benchmarks/results/cuda-<GPU>.json: the machine, the outcome of the checks (tests/ops, and compute-sanitizer's
memcheck and racecheck where the toolkit has it), the copy bandwidth, and one row a measurement. Both sides of a ratio
are measured in this run. Needs a GPU, nvcc, and the dev requirements; says so and stops where there is none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("masked", "blocks", "packing", "channels")  # modules cuda_*.py, each with rows(copy)
_SELF_TEST = "import edgeprune; r = edgeprune.ops.self_test(); print(r); assert set(r.values()) == {'ok'}"


def build() -> None:
    """The extension in place, with machine code for this GPU alone."""
    environment = {**os.environ, "EDGEPRUNE_CUDA": "1"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def checks() -> dict[str, str]:
    """Name of a check -> its last line."""
    outcomes = {}
    files = [str(path) for path in sorted((ROOT / "tests" / "ops").glob("test_cuda_*.py"))]
    outcomes["tests"] = _last_line([sys.executable, "-m", "pytest", "-q", "-n", "0", *files])
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        if Path(sanitizer).exists():
            outcomes[tool] = _last_line([sanitizer, "--tool", tool, sys.executable, "-c", _SELF_TEST])
        else:
            outcomes[tool] = "not run: the toolkit here has no compute-sanitizer"
    return outcomes


def _last_line(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    print(*lines[-15:], sep="\n", flush=True)
    return f"{'ok' if done.returncode == 0 else 'FAILED'}: {lines[-1]}"


def measure(parts: Sequence[str], copy: float) -> list[dict[str, Any]]:
    """The rows of the chosen modules, printed as they come; ``copy``: GB/s of a copy on the device."""
    rows = []
    for part in parts:
        for row in importlib.import_module(f"cuda_{part}").rows(copy):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("cuda.py: torch sees no GPU here; run it on the machine that has one")
    if not arguments.no_build:
        build()
    outcome = {} if arguments.no_check else checks()
    sys.path[:0] = [str(ROOT), str(HERE)]
    import cuda_timing
    import harness

    properties = torch.cuda.get_device_properties(0)
    copy = cuda_timing.copy_gb_per_s()
    body = {
        "machine": harness.machine(),
        "gpu": {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "torch_cuda": torch.version.cuda,
        },
        "checks": outcome,
        "copy_gb_s": round(copy, 1),
        "rows": measure(arguments.only.split(","), copy),
    }
    name = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    target = HERE / "results" / f"cuda-{name}.json"
    target.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
    if any(line.startswith("FAILED") for line in outcome.values()):
        sys.exit("cuda.py: a check failed; the figures stand beside it in the file and mean nothing until it passes")


if __name__ == "__main__":
    main()
