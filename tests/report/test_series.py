"""Reading runs: totals by hand, labels, and every kind of damage as one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import EdgePruneError
from edgeprune.report import compare, read_runs, words
from edgeprune.report.series import Run

MakeRun = Callable[..., Path]  # the fixture of conftest.py


def test_totals_by_hand(make_run: MakeRun) -> None:
    (run,) = read_runs([make_run("a", rounds=4, devices=["x", "y", "z"], evaluate_every=2)])
    assert (run.rounds, run.time_s) == (4, 20.0)  # the slowest device needs 5 s a round
    assert (run.upload_bytes, run.download_bytes) == (4 * 300_000, 4 * 300_000)
    assert [(e.round, e.time_s, e.sent_bytes) for e in run.evaluations] == [(2, 10.0, 1_200_000), (4, 20.0, 2_400_000)]
    assert run.times["y"] == [(1, 3.0), (2, 3.0), (3, 3.0), (4, 3.0)]
    assert not run.prunes and run.final == run.evaluations[-1] == run.best
    assert run.time_at(3) == 15.0 and run.time_at(9) is None
    assert run.first_at(0.40).round == 2 and run.first_at(0.999) is None  # type: ignore[union-attr]


def test_the_calibration_of_the_model_in_use_is_counted_once(make_run: MakeRun) -> None:
    cost = {"time_s": 1.5, "upload_bytes": 10, "download_bytes": 1000, "rejected": {}}
    calibrated, plain = read_runs(
        [
            make_run("a", rounds=4, devices=["x"], evaluate_every=2, algorithm="heterofl", calibration=cost),
            make_run("b", rounds=4, devices=["x"], evaluate_every=2),
        ]
    )
    assert (calibrated.time_s, plain.time_s) == (5.5, 4.0)
    assert (calibrated.upload_bytes, calibrated.download_bytes) == (400_010, 401_000)
    # Each judged model had one calibration, whatever others were judged before.
    assert [(e.time_s, e.sent_bytes) for e in calibrated.evaluations] == [(3.5, 401_010), (5.5, 801_010)]
    assert compare.speed_up(calibrated, plain) == (4.0 / 5.5, 4)


def test_speed_up_by_hand(make_run: MakeRun) -> None:
    """Five full rounds of 5 s, then five in which the slowest keeps 40 %: 2 s, but the middle one takes 3 x 0.7 s."""
    slow, fast = read_runs(
        [
            make_run("slow", rounds=20, devices=["x", "y", "z"]),
            make_run("fast", rounds=10, devices=["x", "y", "z"], algorithm="adaptcl", pruning=0.6),
        ]
    )
    gain = compare.speed_up(fast, slow)
    assert gain is not None and gain[1] == 10
    assert gain[0] == pytest.approx(50.0 / (25.0 + 5 * 2.1))
    assert compare.speed_up(slow, slow) == (1.0, 20)


def test_baseline_is_the_first_fedavg(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a", algorithm="adaptcl"), make_run("b")])
    assert compare.baseline(runs) is runs[1]
    assert compare.baseline(runs[:1]) is runs[0]


def test_common_accuracy_is_reached_by_all(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a", rounds=20), make_run("b", rounds=5)])
    # 0.98 - 0.88 * 0.8^5 = 0.6916...
    assert compare.common_accuracy(runs) == 0.69
    assert compare.common_accuracy(read_runs([make_run("c", rounds=3, evaluate_every=9)])) is None


def test_runs_of_different_tasks_are_not_compared(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a"), make_run("b", task="shakespeare", algorithm="adaptcl")])
    assert compare.speed_up(runs[1], runs[0]) is None and compare.common_accuracy(runs) is None
    assert words.lead(runs).startswith("adaptcl trained shakespeare to 97.0% accuracy on 10 devices")
    assert "fedavg" not in words.lead(runs)


def test_labels(make_run: MakeRun) -> None:
    a, b, c = make_run("a"), make_run("b"), make_run("deep/a", algorithm="adaptcl")
    assert [run.label for run in read_runs([a, c])] == ["fedavg", "adaptcl"]
    assert [run.label for run in read_runs([a, b])] == ["a", "b"]
    assert [run.label for run in read_runs([a, make_run("other/a")])] == ["a (1)", "a (2)"]


def test_settings_that_differ(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a", rounds=3), make_run("b", rounds=4, algorithm="adaptcl")])
    found = dict(compare.differences(runs))
    assert found["algorithm.name"] == ["fedavg", "adaptcl"] and found["run.rounds"] == ["3", "4"]
    assert "algorithm.interval" not in found  # only one of them has it
    assert "task.name" not in found


def test_no_folder_of_this_machine_is_kept(make_run: MakeRun) -> None:
    path = make_run("a")
    (run,) = read_runs([path])
    assert str(path.parent) not in json.dumps(run.config)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("time_s", "soon", "line 2: time_s is not a finite number"),
        ("time_s", float("nan"), "line 2: time_s is not a finite number"),
        ("time_s", 0.5, "round 2 comes after round 1"),
        ("round", 1, "round 1 comes after round 1"),
        ("round", True, "line 2"),
        ("upload_bytes", -1, "line 2: upload_bytes is not"),
        ("upload_bytes", None, "line 2: upload_bytes is not"),
        ("upload_bytes", 10**400, "line 2: upload_bytes is not a finite number"),
        ("accuracy", [1], "line 2: accuracy is not"),
        ("update_time_s", [1, 2], "update_time_s is not a table"),
        ("update_time_s", {"a": float("inf")}, "update_time_s of a device is not"),
        ("retention", "all", "retention is not a table"),
        ("rejected", 3, "rejected is not a table"),
    ],
)
def test_damage_is_one_sentence(key: str, value: object, words: str, make_run: MakeRun) -> None:
    path = make_run("a", rounds=3)
    lines = lines_of(path)
    lines[1][key] = value
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EdgePruneError, match=words) as caught:
        read_runs([path])
    assert "\n" not in str(caught.value)


def test_missing_keys(make_run: MakeRun) -> None:
    path = make_run("a", rounds=3)
    lines = lines_of(path)
    del lines[2]["download_bytes"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EdgePruneError, match="line 3: download_bytes is missing"):
        read_runs([path])


def test_a_run_that_was_cut_off_is_read_up_to_there(make_run: MakeRun) -> None:
    path = make_run("a", rounds=5)
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[:-30])
    (path / "summary.json").unlink()
    (run,) = read_runs([path])
    assert isinstance(run, Run) and run.rounds == 4
