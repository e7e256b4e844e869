"""Every CUDA kernel on this machine's GPU: built for it, checked against the references, timed against its rivals.

    python benchmarks/cuda.py [--no-build] [--no-check] [--only masked,blocks,packing,channels] [--results DIR]

Writes cuda-<GPU>.json into DIR (benchmarks/results): the machine, the outcome of the checks (tests/ops, and
compute-sanitizer's memcheck and racecheck where the toolkit has it), the copy bandwidth, and one row a measurement.
Both sides of a ratio are measured in this run. Needs a GPU, nvcc, and the dev requirements; says so and stops where
there is none.

Each check and each part runs in a process of its own, for ten minutes at most, and leaves all it says in
cuda-<GPU>-<step>.log; the result is written anew after each. So a step that fails costs no other's figures, nor does an
end in the middle.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("masked", "blocks", "packing", "channels")  # modules cuda_*.py, each with rows(copy)
LIMIT_S = 600.0
_SELF_TEST = """
import edgeprune
found = edgeprune.ops.self_test()
print(found)
assert any("cuda" in name for name in found) and set(found.values()) == {"ok"}
"""
# torch's kernels are not looked at: they are not ours, and take the sanitizer many minutes.
_SANITIZER = ("--kernel-name", "kns=edgeprune", "--report-api-errors", "no", "--error-exitcode", "1")


def build() -> None:
    """The extension in place, with machine code for this GPU alone."""
    environment = {**os.environ, "EDGEPRUNE_CUDA": "1"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def steps_of_checks() -> dict[str, list[str] | None]:
    """Name of a check -> its command; None where the toolkit lacks it."""
    files = [str(path) for path in sorted((ROOT / "tests" / "ops").glob("test_cuda_*.py"))]
    steps: dict[str, list[str] | None] = {"tests": [sys.executable, "-m", "pytest", "-q", "-n", "0", *files]}
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, *_SANITIZER, sys.executable, "-c", _SELF_TEST]
        steps[tool] = command if Path(sanitizer).exists() else None
    return steps


def check(command: Sequence[str] | None, log: Path) -> str:
    """How a check went, in one line."""
    if command is None:
        return "not run: the toolkit here has no compute-sanitizer"
    code = run(command, log)
    said = log.read_text(encoding="utf-8", errors="replace")
    lines = said.strip().splitlines() or [""]
    print(*lines[-15:], sep="\n", flush=True)
    if code is None:
        return f"FAILED: not done after {LIMIT_S:.0f} s"
    if code and "Device not supported" in said:
        return "not run: compute-sanitizer does not support this machine"
    summed = [line for line in lines if re.search(r"SUMMARY:|\d+ (passed|failed|error)", line)]
    last = (summed or lines)[-1].strip()
    return f"{'FAILED' if code or ' skipped' in last else 'ok'}: {last}"  # here nothing is to be skipped


def run(command: Sequence[str], log: Path) -> int | None:
    """Runs a command, what it says to ``log``; its status, or None where it had to be stopped."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return child.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # a sanitizer's child too
            child.wait()


def measure(parts: Sequence[str], copy: float) -> list[dict[str, Any]]:
    """The rows of the chosen modules, printed as they come; ``copy``: GB/s of a copy on the device."""
    rows = []
    for part in parts:
        for row in importlib.import_module(f"cuda_{part}").rows(copy):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def measure_here(part: str) -> None:
    """What the process of one part does: prints the copy's bandwidth and its rows, a line each."""
    sys.path[:0] = [str(ROOT), str(HERE)]
    import cuda_timing

    copy = cuda_timing.copy_gb_per_s()
    print(json.dumps({"copy_gb_s": round(copy, 1)}), flush=True)
    measure([part], copy)


def measure_apart(part: str, log: Path, command: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines of a part's process, and how it went, in one line."""
    code = run(command, log)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    print(*lines, sep="\n", flush=True)
    found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    if code is None:
        return found, f"FAILED: not done after {LIMIT_S:.0f} s"
    return found, f"FAILED: {lines[-1].strip()}" if code else "ok"


def gpu() -> dict[str, Any]:
    """What the figures depend on besides the machine."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch_cuda": torch.version.cuda,
    }


def go(
    body: dict[str, Any], checks: Mapping[str, Sequence[str] | None], parts: Mapping[str, Sequence[str]], target: Path
) -> bool:
    """Runs all steps and writes ``target`` after each; whether all went well."""

    def write() -> None:
        part = target.with_suffix(".json.part")
        part.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        part.replace(target)

    target.parent.mkdir(parents=True, exist_ok=True)
    body |= {"checks": {}, "parts": {}, "copy_gb_s": None, "rows": []}
    write()
    for name, step in checks.items():
        body["checks"][name] = check(step, target.with_name(f"{target.stem}-{name}.log"))
        print(f"{name}: {body['checks'][name]}", flush=True)
        write()
    for part, command in parts.items():
        found, body["parts"][part] = measure_apart(part, target.with_name(f"{target.stem}-{part}.log"), command)
        for line in found:
            if "copy_gb_s" in line:
                body["copy_gb_s"] = line["copy_gb_s"]
            else:
                body["rows"].append(line)
        write()
    return not any(line.startswith("FAILED") for line in (*body["checks"].values(), *body["parts"].values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)  # the process of one part
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only {arguments.only}: the parts are {', '.join(PARTS)}")
    import torch

    if not torch.cuda.is_available():
        sys.exit("cuda.py: torch sees no GPU here; run it on the machine that has one")
    if arguments.here:
        return measure_here(arguments.here)
    if not arguments.no_build:
        build()
    sys.path[:0] = [str(ROOT), str(HERE)]
    import harness

    from edgeprune import _core

    if not _core.cuda_built():
        sys.exit(f"cuda.py: the core here has no CUDA kernels ({_core.cuda_text()}); run without --no-build")
    body = {"machine": harness.machine(), "gpu": gpu()}
    name = re.sub(r"[^a-z0-9]+", "-", body["gpu"]["name"].lower()).strip("-")
    target = arguments.results.resolve() / f"cuda-{name}.json"
    commands = {part: [sys.executable, str(Path(__file__).resolve()), "--here", part] for part in parts}
    well = go(body, {} if arguments.no_check else steps_of_checks(), commands, target)
    print(f"wrote {target}")
    if not well:
        sys.exit("cuda.py: a step failed: see its log; figures mean nothing until the checks pass")


if __name__ == "__main__":
    main()
