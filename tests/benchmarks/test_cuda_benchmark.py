"""benchmarks/cuda.py where there is no GPU: every part's rows are made on the CPU, on small sizes, timed by nothing.

Says nothing of the kernels or their speed, only that the one command runs through when it meets a GPU at last, and that
a step that fails there costs no other's figures.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from edgeprune import ops

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAKERS = ("randn", "rand", "zeros", "empty", "randint", "ones", "full", "arange", "randperm", "tensor")
PARTS = ("masked", "blocks", "packing", "channels")
SMALL = {
    "cuda_masked": {"LINEAR": ((1, 64, 64), (20, 64, 64)), "CONV": ((2, 8, 8, 8, 1), (2, 8, 16, 8, 2))},
    "cuda_blocks": {"LINEAR": ((4, 128, 128),), "CONV": ((1, 64, 6),)},
    "cuda_packing": {"N": 1 << 14},
}


def one_call(work: Sequence[Callable[[], object]], *_: object, **__: object) -> float:
    work[0]()
    return 1.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, whose tensors stay on the CPU and whose clocks stand still."""

    def here(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **how: make(*args, **{k: v for k, v in how.items() if (k, v) != ("device", "cuda")})

    for name in MAKERS:
        monkeypatch.setattr(torch, name, here(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(ops, "cuda_check", lambda: None)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for module in ("cuda_timing", *(f"cuda_{part}" for part in PARTS)):
        for name in ("graph_ms", "eager_ms"):
            monkeypatch.setattr(importlib.import_module(module), name, one_call, raising=False)
    for module, sizes in SMALL.items():
        for name, value in sizes.items():
            monkeypatch.setattr(importlib.import_module(module), name, value)
    masked = importlib.import_module("cuda_masked")
    monkeypatch.setattr(masked, "training_rows", partial(masked.training_rows, 2))
    return importlib.import_module("cuda")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_through(part: str, cuda: ModuleType) -> None:
    assert cuda.PARTS == PARTS
    rows = cuda.measure([part], 1000.0)
    assert len(rows) >= 10
    assert all(row["name"] and any(key.endswith("ms") for key in row) for row in rows)


# ---- the steps, each a process --------------------------------------------------------------------------------------


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_step_that_fails_costs_no_others_figures(cuda: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "new" / "cuda-gpu.json"
    checks = {
        "good": python("print('3 passed in 1s'); import sys; print('a warning', file=sys.stderr)"),
        "bad": python("print('1 failed, 2 passed in 1s'); raise SystemExit(1)"),
        "skipping": python("print('3 skipped in 1s')"),
        "sanitizer": python("print('=== ERROR SUMMARY: 2 errors'); raise SystemExit(1)"),
        "refused": python("print('Error: Device not supported'); raise SystemExit(1)"),
        "lacking": None,
    }
    row = json.dumps({"name": "a", "ms": 1.0})
    parts = {
        "masked": python(f"print({row!r}); raise RuntimeError('an illegal memory access')"),
        "blocks": python(f"print('hello'); print('{{\"copy_gb_s\": 7.5}}'); print({row!r}); print({row!r})"),
    }
    assert not cuda.go({"machine": {}}, checks, parts, target)
    body = json.loads(target.read_text())
    assert body["checks"] == {
        "good": "ok: 3 passed in 1s",
        "bad": "FAILED: 1 failed, 2 passed in 1s",
        "skipping": "FAILED: 3 skipped in 1s",
        "sanitizer": "FAILED: === ERROR SUMMARY: 2 errors",
        "refused": "not run: compute-sanitizer does not support this machine",
        "lacking": "not run: the toolkit here has no compute-sanitizer",
    }
    assert body["parts"] == {"masked": "FAILED: RuntimeError: an illegal memory access", "blocks": "ok"}
    assert len(body["rows"]) == 3 and body["copy_gb_s"] == 7.5
    assert "Traceback" in target.with_name("cuda-gpu-masked.log").read_text()
    assert cuda.go({}, {"good": checks["good"]}, {"blocks": parts["blocks"]}, target)


def test_a_step_that_never_ends_is_stopped(cuda: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "LIMIT_S", 5.0)
    child = "import time; print('begun', flush=True); time.sleep(600)"
    both = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")  # as a sanitizer does
    rows = python("import time; print('{\"name\": 1}\\n{\"name', end='', flush=True); time.sleep(600)")
    target = tmp_path / "cuda-gpu.json"
    assert not cuda.go({}, {"memcheck": both}, {"masked": rows}, target)
    body = json.loads(target.read_text())
    assert body["checks"]["memcheck"] == body["parts"]["masked"] == "FAILED: not done after 5 s"
    assert body["rows"] == [{"name": 1}]
