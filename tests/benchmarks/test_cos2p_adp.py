"""The grids of Co-S2P's and adaptive dynamic pruning's claims: known overrides, equal budgets, judging by hand."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"


@pytest.fixture
def grid(monkeypatch):
    """``grid(name)``: a module of the grids."""
    monkeypatch.syspath_prepend(str(PAPERS))
    monkeypatch.syspath_prepend(str(PAPERS.parent))
    return importlib.import_module


def test_every_cell_once_and_every_override_is_known(grid):
    from edgeprune.engine import load_experiment

    cells = [*grid("cos2p_cells").cells("har"), *grid("adp_cells").cells()]
    assert len({cell.key for cell in cells}) == len(cells) == 14 * 3 + 8 * 3
    for cell in cells:
        load_experiment(None, list(cell.sets))


def test_the_fleet_is_the_papers(grid):
    from edgeprune.engine import load_experiment
    from edgeprune.fleet import build_fleet

    cells = grid("cos2p_cells")
    fleet = build_fleet(load_experiment(None, [cells.fleet("vit")]).fleet)
    shares = [device.share for device in fleet.devices]
    assert len(shares) == 16 and sum(shares) == 52 and sorted(set(shares)) == [1, 3, 6]
    assert [device.slowdown for device in fleet.devices[::4]] == [1, 2, 3, 4]


def test_baselines_have_no_larger_budget(grid):
    made = grid("cos2p_tasks")
    graph = made.graph_of("uci-har")
    for rate in (0.75, 0.5):
        ours, theirs = made.class_plan("uci-har", rate), made.width_plan("uci-har", made.equal_width("uci-har", rate))
        assert theirs.parameters <= ours.parameters
        assert graph.macs(theirs.counts) <= graph.macs(ours.counts, ours.dropped)
        wider = made.width_plan("uci-har", made.equal_width("uci-har", rate) + 1 / 64)
        assert wider.parameters > ours.parameters or graph.macs(wider.counts) > graph.macs(ours.counts, ours.dropped)
    fits = made.har_fits()
    assert sum(p.numel() for p in fits.make_model().parameters()) <= made.class_plan("uci-har", 0.25).parameters
    assert fits.make_model().eval()(torch.zeros(2, 9, 128)).shape == (2, 6)


def test_masks_that_follow_labels_are_seen(grid):
    mantel = grid("cos2p_masks").mantel
    place = np.random.default_rng(0).random(12)
    near = np.abs(place[:, None] - place[None, :])
    assert mantel(near, near, 200) == (pytest.approx(1.0), pytest.approx(1 / 201))
    other = np.random.default_rng(1).random(12)
    spearman, p = mantel(np.abs(other[:, None] - other[None, :]), near, 200)
    assert abs(spearman) < 0.5 and p > 0.01


def outcome(seed, accuracy, utilisation=0.5, seconds=10.0, **more):
    return {
        "cell": {"seed": seed},
        "accuracy": {"1": accuracy, "2": accuracy, "3": accuracy},
        "client_accuracy": {"3": {"mean": accuracy}},
        "utilisation": utilisation,
        "virtual_s": seconds,
        "data_note": "",
        "more": more,
    }


def test_co_s2p_is_judged_by_hand(grid, monkeypatch, tmp_path):
    judge = grid("cos2p_judge")
    monkeypatch.setattr(judge, "RESULTS", tmp_path)
    rows = {
        "har-relative": [outcome(s, 0.90 + 0.01 * s, 0.8, 8.0) for s in (0, 1)],
        "har-heterofl": [outcome(s, 0.80) for s in (0, 1)],
        "har-fedrolex": [outcome(s, 0.85 - 0.1 * s, 0.6) for s in (0, 1)],
        "har-fits": [outcome(s, 0.5) for s in (0, 1)],
        "har-k16": [outcome(0, 0.902, 0.55, 10.0)],
        "har-no-transfer": [outcome(0, 0.88)],
    }
    found = judge.judge(rows)
    assert found["B2 all"]["value"] == pytest.approx([11.0, 8.0, 5.0]) and found["B2 all"]["holds"]
    assert found["B3 har relative"]["value"] == pytest.approx([0.8 / 0.6])
    assert found["B7 har relative"]["value"] == pytest.approx([0.8, -0.2]) and found["B7 har relative"]["holds"]
    assert found["B6 har no-transfer"]["value"] == pytest.approx([2.0])
    assert "B4 har" not in found and "| B3 har relative |" in judge.table(rows)


def test_two_kinds_of_task_are_held_side_by_side(grid, monkeypatch, tmp_path):
    judge = grid("cos2p_judge")
    monkeypatch.setattr(judge, "RESULTS", tmp_path)
    rows = {
        f"{task}-{row}": [outcome(0, accuracy, utilisation)]
        for task, ours, without in (("vit", 0.31, 0.30), ("text", 0.27, 0.28))
        for row, accuracy, utilisation in (
            ("relative", ours, 0.9),
            ("no-transfer", without, 0.9),
            ("heterofl", 0.29, 0.6),
            ("fedrolex", 0.25, 0.5),
            ("fits", 0.2, 0.5),
        )
    }
    found = judge.judge(rows)
    assert found["B10 relative over baselines"]["value"] == pytest.approx([2.0, -2.0])
    assert not found["B10 relative over baselines"]["holds"]
    assert found["B10 no-transfer"]["value"] == pytest.approx([1.0, -1.0]) and not found["B10 no-transfer"]["holds"]
    assert found["B10 utilisation"]["value"] == pytest.approx([1.5, 1.5]) and found["B10 utilisation"]["holds"]
    del rows["text-relative"]
    assert not [name for name in judge.judge(rows) if name.startswith("B10")]


def test_a_baseline_is_read_when_ours_ended(grid):
    gap = grid("cos2p_judge").gap_at_equal_time
    ours = outcome(0, 0.5, seconds=3.5)
    late = {str(i): 0.1 * i for i in range(1, 7)}  # per cent 10, 20, 30 by 3.5 s
    slow = {**outcome(0, 0.0), "accuracy": late, "time_s": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    of = {name: [slow] for name in ("heterofl", "fedrolex", "fits")}
    assert gap(of, ours) == pytest.approx(50 - 20)
    assert gap(of, outcome(0, 0.5, seconds=2.5)) is None
    assert gap({**of, "fits": []}, ours) is None


def test_adaptive_dynamic_pruning_is_judged_by_hand(grid, monkeypatch, tmp_path):
    judge = grid("adp_judge")
    monkeypatch.setattr(judge, "RESULTS", tmp_path)
    more = {"macs": 0.5, "own": 0.8, "shared": 0.7, "l2": 0.85, "random": 0.5, "follows_labels": 0.4, "difference": 0.2}
    rows = {"gated-0.1": [outcome(0, 0.80, **more)], "dense-0.1": [outcome(0, 0.805)]}
    found = judge.judge(rows)
    assert found["D1"]["holds"] and found["D2 FedAvg global"]["value"] == pytest.approx([-0.5])
    assert found["D2 FedAvg global"]["holds"] and "D2 FedProx global" not in found
    assert found["D3 0.1 shared"]["holds"] and not found["D3 0.1 l2"]["holds"]
    assert found["D5"]["value"][0] == pytest.approx(0.11, abs=0.005) and not math.isnan(found["D5"]["value"][0])


def test_the_squared_gradient_is_that_of_the_whole_sample(grid):
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0], [0.0]])
    # mean of (w x)^2: its gradient by w is (1, 4)
    squared = grid("cos2p_slope").squared_gradient(model, torch.nn.functional.mse_loss, x, y)
    assert squared == pytest.approx(17.0)


def test_the_slope_and_coverage_are_judged_by_hand(grid):
    judge, found = grid("cos2p_judge"), {}
    runs = [(2, -0.5, 4.0), (2, -0.5, 6.0), (4, -0.4, 4.0), (4, -0.4, 5.0)]
    judge.gradients(found, [{"coverage": {"least": n}, "slope": s, "mean_squared_gradient": m} for n, s, m in runs])
    assert found["B9 slope"]["value"][0] == pytest.approx(-0.45) and found["B9 slope"]["holds"]
    assert found["B9 coverage"]["value"] == [5.0, 4.5] and found["B9 coverage"]["holds"]
