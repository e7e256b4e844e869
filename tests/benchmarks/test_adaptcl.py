"""The benchmark's shortcut: FedAvg trained once, its clock run again for other fleets."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path

import pytest

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPERS))
    module = importlib.import_module("adaptcl_cells")
    monkeypatch.setattr(module, "ROUNDS", 3)
    monkeypatch.setitem(module.SAMPLES, "digits", 300)
    return module


@pytest.fixture
def judge(grid):
    return importlib.import_module("adaptcl_judge")


def test_recharging_equals_running_on_that_fleet(grid, judge):
    trained = grid.run_cell(grid.Cell("digits", "iid", 1.0, 0, "fedavg"))
    real = grid.run_cell(grid.Cell("digits", "iid", 5.0, 0, "fedavg"))
    assert trained["accuracy"] == real["accuracy"]
    # The shortcut spreads the bytes evenly over the devices; their headers differ by a few.
    assert judge.recharged(trained, 5.0, 0.05) == pytest.approx(real["time_s"], rel=1e-4)


def test_true_times_are_free_of_noise(grid, judge):
    noisy = grid.run_cell(grid.Cell("digits", "iid", 4.0, 0, "fedavg", noise=0.3))
    for row in judge.true_times(noisy)[1:]:  # the first round also builds the models
        assert max(row) / min(row) == pytest.approx(4.0, rel=1e-3)


def test_the_clock_alone_gives_the_times_of_a_real_run(grid, judge, monkeypatch):
    clock = importlib.import_module("adaptcl_clock")
    monkeypatch.setattr(grid, "ROUNDS", 8)
    monkeypatch.setattr(grid, "INTERVAL", 2)
    cell = grid.Cell("digits", "iid", 4.0, 0, "adaptcl", extra=("algorithm.rho_max=0.3",))
    real = grid.run_cell(cell)
    alone = clock.run_times(cell, clock.Clock(cell, clock.ranking_after_first_interval(cell)))
    assert alone["retention"][::2] == real["retention"][:-1]
    assert real["retention"][-1][-1] < 0.8  # there were stages
    for ours, theirs in zip(alone["true"], judge.true_times(real), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert alone["time_s"] == pytest.approx(real["time_s"][-1], rel=5e-3)


def test_student_interval_by_hand(judge):
    mean, half = judge.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    for count, t95 in ((7, 2.447), (10, 2.262), (100, 1.984)):  # of count - 1 degrees of freedom, from a table
        values = [0.0, 1.0] * (count // 2) + [0.5] * (count % 2)
        assert judge.interval(values)[1] == pytest.approx(t95 * statistics.stdev(values) / count**0.5, rel=1e-3)


def test_sigmas_on_the_same_data_are_one_sample(judge):
    def row(seed, sigma, change):
        return {"task": "digits", "split": "iid", "seed": seed, "sigma": sigma, "change": change}

    rows = [row(seed, sigma, seed + sigma) for seed in (0, 1, 2) for sigma in (1.7, 2.0, 3.0)]
    assert judge.over_sigmas(rows, "change") == pytest.approx([6.7 / 3, 6.7 / 3 + 1, 6.7 / 3 + 2])
    assert judge.interval(judge.over_sigmas(rows, "change"))[1] == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_every_cell_once_and_the_first_task_first(grid):
    found = list(grid.cells(["digits", "fashion-cnn"]))
    assert len({cell.key for cell in found}) == len(found)
    assert all(cell.task == "digits" for cell in found[:39])
    assert {cell.seed for cell in found[:13]} == {0}
