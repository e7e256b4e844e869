"""benchmarks/cuda.py where there is no GPU: every part's rows are made on the CPU, on small sizes, timed by nothing.

Says nothing of the kernels or their speed, only that the one command runs through when it meets a GPU at last.
"""

from __future__ import annotations

import importlib
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
