"""The benchmark's shortcut: FedAvg trained once, its clock run again for other fleets."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "papers" / "adaptcl.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_adaptcl", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_adaptcl", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROUNDS", 3)
    monkeypatch.setitem(module.SAMPLES, "digits", 300)
    return module


def test_recharging_equals_running_on_that_fleet(bench):
    trained = bench.run_cell(bench.Cell("digits", "iid", 1.0, 0, "fedavg"))
    real = bench.run_cell(bench.Cell("digits", "iid", 5.0, 0, "fedavg"))
    assert trained["accuracy"] == real["accuracy"]
    # The shortcut spreads the bytes evenly over the devices; their headers differ by a few.
    assert bench.recharged(trained, 5.0, 0.05) == pytest.approx(real["time_s"], rel=1e-4)


def test_true_times_are_free_of_noise(bench):
    noisy = bench.run_cell(bench.Cell("digits", "iid", 4.0, 0, "fedavg", noise=0.3))
    for row in bench.true_times(noisy)[1:]:  # the first round also builds the models
        assert max(row) / min(row) == pytest.approx(4.0, rel=1e-3)


def test_student_interval_by_hand(bench):
    mean, half = bench.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
