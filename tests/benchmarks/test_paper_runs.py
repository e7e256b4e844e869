"""The grids of FedDST's and MPFL's claims: every cell once, a real small cell, and reading off caps by hand."""

from __future__ import annotations

import importlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"
TINY = (
    "task.name=digits",
    "data.samples=150",
    "fleet.devices=3",
    "run.rounds=3",
    "run.evaluate_every=1",
)


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(PAPERS))
    module = importlib.import_module("paper_runs")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.mark.parametrize("name", ["feddst", "mpfl"])
def test_every_cell_once_and_every_override_is_known(runs, name):
    from edgeprune.engine import load_experiment

    cells = importlib.import_module(f"{name}_cells").cells()
    assert len({cell.key for cell in cells}) == len(cells) > 30
    for cell in cells:
        load_experiment(None, list(cell.sets))


def test_rounds_fill_the_cap_and_no_more(runs):
    grid = importlib.import_module("feddst_cells")
    dense, sparse = grid.rounds_for("cifar10-feddst", 1), grid.rounds_for("cifar10-feddst", 1, 0.2)
    assert dense == 2**30 // (20 * 3_128_024) == 17
    assert sparse == 2**30 // (20 * 626_360) == 85


def outcome(sent, accuracy, seed=0):
    return {"upload_bytes": sent, "accuracy": {str(i): a for i, a in accuracy.items()}, "cell": {"seed": seed}}


def test_accuracy_at_a_cap_by_hand(runs):
    one = outcome([10] * 10, {2: 0.1, 4: 0.2, 6: 0.3, 8: 0.4, 10: 0.5})
    assert runs.accuracy_at(one, 70) == pytest.approx(20)  # rounds 2, 4, 6
    assert runs.accuracy_at(one, 100) == pytest.approx(40)
    assert runs.accuracy_at(one, 200) is None  # the run ended before
    other = outcome([20] * 10, {2: 0.1, 4: 0.1, 6: 0.1, 8: 0.1, 10: 0.2}, seed=0)
    assert runs.paired([one], [other], 100, 200) == [pytest.approx(40 - 100 * 0.4 / 3)]
    assert runs.paired([one], [outcome([20] * 10, {1: 0.1}, seed=1)], 100, 200) == []


def test_cells_run_once_go_on_where_they_stopped_and_are_judged(runs, tmp_path):
    cells = [
        runs.Cell(
            f"cifar10-feddst-{row}-seed0",
            f"cifar10-feddst {row}",
            0,
            (*TINY, f"algorithm.name={name}", "algorithm.epochs=1"),
        )
        for row, name in (("feddst-1gib", "feddst"), ("fedavgm-1gib", "fedavg"))
    ]
    runs.run_all(cells, "feddst", 1, tmp_path / "work")
    path = tmp_path / "results" / "feddst" / f"{cells[0].key}.json"
    first = path.read_bytes()
    runs.run_all(cells, "feddst", 1, tmp_path / "work")
    assert path.read_bytes() == first
    found = json.loads(first)
    assert len(found["upload_bytes"]) == 3 and list(found["accuracy"]) == ["1", "2", "3"]
    judge = importlib.import_module("feddst_judge")
    rows = runs.load("feddst")
    claims = judge.judge(rows)
    assert claims["F5 cifar10-feddst"]["holds"] is True
    assert "| cifar10-feddst feddst-1gib | 1 |" in judge.table(rows)


def test_at_the_deadline_a_run_stands_at_a_checkpoint_and_goes_on_to_the_same_end(runs, tmp_path):
    sets = (*TINY, "algorithm.name=feddst", "algorithm.epochs=1", "algorithm.upload=int8", "algorithm.feedback=true")
    cell = runs.Cell("tiny-seed0", "tiny", 0, sets)
    whole = runs.run_cell(cell, tmp_path / "whole", how=runs.How("batched"))
    for _ in range(2):
        with pytest.raises(runs.OutOfTime):
            runs.run_cell(cell, tmp_path / "cut", how=runs.How("batched", deadline=0.0))
    ended = runs.run_cell(cell, tmp_path / "cut", how=runs.How("batched"))
    for key in ("upload_bytes", "accuracy", "facts", "executor", "device"):
        assert ended[key] == whole[key]
    assert (ended["executor"], ended["device"]) == ("batched", "cpu")
    runs.run_all([cell], "none", 1, tmp_path / "work", how=runs.How(deadline=0.0), out=tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())  # too late to begin


def test_an_archive_in_pieces_holds_results_and_runs_that_can_go_on(runs, tmp_path, monkeypatch):
    cell = runs.Cell("tiny-seed0", "tiny", 0, (*TINY, "algorithm.name=fedavg"))
    with pytest.raises(runs.OutOfTime):
        runs.run_cell(cell, tmp_path / "work", how=runs.How(deadline=0.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "done.json").write_text("{}")
    monkeypatch.setattr(runs, "PIECE", 2**19)  # the digits network takes 1.5 MB
    small = runs.archive(tmp_path / "small.tar.gz", tmp_path / "out", tmp_path / "work")
    assert len(small) == 1  # a checkpoint beyond a piece stays
    monkeypatch.setattr(runs, "PIECE", 10**7)
    (whole,) = runs.archive(tmp_path / "whole.tar.gz", tmp_path / "out", tmp_path / "work")
    blob = whole.read_bytes()
    assert len(blob) > 2**19
    (tmp_path / "again.tar.gz").write_bytes(blob)
    with tarfile.open(tmp_path / "again.tar.gz") as tar:
        tar.extractall(tmp_path / "back", filter="data")
    assert (tmp_path / "back" / "results" / "done.json").read_text() == "{}"
    assert len(runs.run_cell(cell, tmp_path / "back" / "work")["upload_bytes"]) == 3


def test_pieces_put_together_are_the_archive(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "out" / "noise.json").write_bytes(random.Random(0).randbytes(2 * runs.PIECE))
    pieces = runs.archive(tmp_path / "a.tar.gz", tmp_path / "out", tmp_path / "work")
    assert [piece.name for piece in pieces] == ["a.tar.gz.00", "a.tar.gz.01", "a.tar.gz.02"]
    assert all(piece.stat().st_size <= runs.PIECE for piece in pieces) and not (tmp_path / "a.tar.gz").exists()
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
        assert tar.getnames() == ["results/noise.json"]


def test_a_table_takes_the_place_between_its_marks(runs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- feddst: begin -->\nold\n<!-- feddst: end -->\nrest\n")
    for text in ("| new |", "| newer |"):
        runs.fill(page, "feddst", text)
        assert page.read_text() == f"# A\n<!-- feddst: begin -->\n{text}\n<!-- feddst: end -->\nrest\n"
    with pytest.raises(SystemExit, match="no lines"):
        runs.fill(page, "mpfl", "x")


def test_verdicts_by_hand(runs):
    judge, gib = importlib.import_module("feddst_judge"), runs.GIB

    def seeds(*ends, sent=gib // 10, facts=None, sets=()):
        outcomes = [
            outcome([sent] * 20, {r: end * r / 20 for r in range(1, 21)}, seed) for seed, end in enumerate(ends)
        ]
        return [{**o, "facts": facts or {}, "cell": {**o["cell"], "sets": list(sets)}} for o in outcomes]

    moving = {"1": {"density": 0.1, "moved": 0.0, "grown": 0.0}, "2": {"density": 0.1004, "moved": 0.2, "grown": 0.5}}
    moving["2"]["survived"] = 0.25
    rows = {
        "cifar10-feddst feddst": seeds(0.60, 0.62, 0.64, facts=moving, sets=("algorithm.sparsity=0.9",)),
        "cifar10-feddst fedavgm": seeds(0.20, 0.20, 0.20),
        "cifar10-feddst random-mask": seeds(0.58, 0.50, 0.66),
        "fashion-feddst feddst": seeds(0.60),
        "fashion-feddst fedavgm": seeds(0.50),
    }
    found = judge.judge(rows)
    mean, half = found["F1 1 GiB"]["value"]  # rounds 8, 9 and 10 of 20: 0.45 of the ends' difference of 40, 42 and 44
    assert mean == pytest.approx(0.45 * 42) and half == pytest.approx(4.303 * 0.9 / 3**0.5)
    assert found["F1 1 GiB"]["holds"] is True
    # With twice the cap: 0.45 of 60, 62, 64 against 0.95 of 20.
    assert found["F2 1 GiB"]["value"][0] == pytest.approx(0.45 * 62 - 0.95 * 20) and found["F2 1 GiB"]["holds"] is True
    assert found["F3 against random-mask 1 GiB"]["holds"] is False  # 2, 12 and -2: its interval holds 0
    assert found["F5 cifar10-feddst"]["value"] == pytest.approx(4e-4) and found["F5 cifar10-feddst"]["holds"] is True
    assert found["F3 cifar10-feddst drift feddst"]["value"] == [pytest.approx(0.2), 0.5, 0.25]
    assert found["F7 cifar10-feddst"]["value"][0] == pytest.approx(0.95 * 42)
    assert found["F6 fashion-feddst 1 GiB"]["holds"] is True and found["F6 fashion-feddst 1 GiB"]["bar"] == "> 0"


def test_a_shuffled_node_is_a_change_of_one_node(runs, tmp_path):
    grid, judge = importlib.import_module("mpfl_cells"), importlib.import_module("mpfl_judge")
    sets = (*TINY, "fleet.devices=4", "algorithm.name=mpfl", "algorithm.iterations=1", "algorithm.step=0.5")
    cells = [
        runs.Cell(f"fashion-cnn-iid-{row}-50-seed0", f"fashion-cnn-iid-{row}-50", 0, sets, change)
        for row, change in (("exact", ""), ("shuffled", "shuffled"))
    ]
    runs.run_all(cells, "mpfl", 1, tmp_path / "work", grid.CHANGES)
    rows = runs.load("mpfl")
    assert all(o["rejected"] == 0 for found in rows.values() for o in found)
    claims = judge.judge(rows)
    assert claims["M1 resnet-18"]["holds"] is True
    assert claims["M4 fashion-cnn-iid 50 %"]["what"].startswith("shuffled-50 - exact-50")
    assert "exact-50" in judge.table(rows)


def test_bytes_to_an_accuracy_are_read_off_by_hand(runs):
    judge = importlib.import_module("mpfl_judge")

    def outcome(sent, accuracies):
        cell = {"seed": 0, "sets": []}
        rounds = {str(2 * n): a for n, a in enumerate(accuracies, 1)}
        return {"accuracy": rounds, "upload_bytes": [sent] * 2 * len(accuracies), "cell": cell, "facts": {}}

    dense = outcome(100, [0.5, 0.6, 0.61, 0.61, 0.61])  # to be reached: 0.60
    ours = outcome(10, [0.3, 0.6, 0.5, 0.6, 0.605, 0.61, 0.3])
    assert judge.bytes_saved(ours, dense) == pytest.approx(1 - 10 * 4 / (100 * 4))
    assert judge.bytes_saved(ours, dense, 3) == pytest.approx(1 - 10 * 12 / (100 * 8))
    assert judge.bytes_saved(outcome(10, [0.59] * 5), dense) is None
    rows = {"fashion-cnn-iid-exact-70-long": [ours], "fashion-cnn-iid-fedavg": [dense]}
    found = judge.judge(rows)
    assert found["M5 fashion-cnn-iid 70 %, three times as many rounds"]["holds"] is True
    rows["fashion-cnn-iid-exact-70-long"].append({**outcome(10, [0.59] * 5), "cell": {"seed": 1, "sets": []}})
    rows["fashion-cnn-iid-fedavg"].append({**dense, "cell": {"seed": 1, "sets": []}})
    missed = judge.judge(rows)["M5 fashion-cnn-iid 70 %, three times as many rounds"]
    assert missed["holds"] is False and missed["what"].endswith("reached in 1 of 2 seeds")
