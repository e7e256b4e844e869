"""Which of the distributed engines are installed here, and how to run our command line with them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"flower": "flwr", "flare": "nvflare"}


def python_with(engine: str) -> str | None:
    """A Python that has ``engine``: this one, or the one that scripts/engines made."""
    if importlib.util.find_spec(PACKAGES[engine]) is not None:
        return sys.executable
    made = ROOT / ".venv-engines" / engine / "bin/python"
    return str(made) if made.is_file() else None


def why_not(engine: str) -> str:
    return f"{PACKAGES[engine]} is not installed; scripts/engines {engine} does it"


def start(engine: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """``edgeprune ARGUMENTS`` with that engine's Python; what it says goes to ``log``."""
    python = python_with(engine)
    assert python is not None
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as out:
        return subprocess.Popen(
            [python, "-m", "edgeprune", *arguments], stdout=out, stderr=out, env=env, cwd=log.parent
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what is still there."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
