"""What users, full disks and weights that diverge do to a run: one sentence, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import SETS, Killed, command, same, weights

from edgeprune import engine
from edgeprune.algorithms.protocol import State
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir
from edgeprune.engine.checkpoint import Checkpoint
from edgeprune.engine.config import load_experiment
from edgeprune.engine.federation import run_here
from edgeprune.engine.serve import Service
from edgeprune.errors import EdgePruneError


def start(path, *sets):
    return engine.start(engine.prepare(load_experiment(None, [*SETS, *sets])), path)


# --- runs that diverge ------------------------------------------------------------------------------------------------


def test_updates_that_are_not_finite_are_refused_and_the_old_model_stays(tmp_path):
    summary = start(tmp_path / "run", "algorithm.name=fedavg", "algorithm.lr=1e30", "algorithm.epochs=5")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert all(sorted(record["rejected"]) == ["device-0", "device-1"] for record in records)
    assert summary["rejected"] == 4
    initial = engine.prepare(load_experiment(None, SETS)).model.state_dict()
    assert same(weights(tmp_path / "run"), initial)


def test_a_run_without_one_merged_update_fails_and_says_why(tmp_path):
    sets = [*SETS, "algorithm.name=fedavg", "algorithm.lr=1e30", "algorithm.epochs=5"]
    result = command("run", "--quiet", "--out", tmp_path / "run", *(part for item in sets for part in ("--set", item)))
    assert result.exit_code == 1 and isinstance(result.exception, EdgePruneError)
    assert "untrained: every update of 2 rounds was refused" in " ".join(result.output.split())
    assert "a smaller" in str(result.exception) and "lr is the usual cure" in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_loss_that_is_not_finite_is_null_in_the_record_and_the_run_resumes(tmp_path):
    start(tmp_path / "run", "algorithm.name=fedavg", "algorithm.server_lr=1e18", "run.evaluate_every=1")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert [record["round"] for record in records] == [1, 2]
    assert records[-1]["loss"] is None and 0 <= records[-1]["accuracy"] <= 1
    engine.resume(tmp_path / "run", None, rounds=3)
    assert len(engine.RunDir(tmp_path / "run").metrics()) == 3


def test_a_merge_that_is_not_finite_ends_the_run_in_a_sentence(tmp_path):
    for attempt in (lambda: start(tmp_path / "run", "algorithm.name=fedavg", "algorithm.server_lr=1e300"),) + (
        lambda: engine.resume(tmp_path / "run", None),
    ):
        with pytest.raises(EdgePruneError, match="round 1: the run diverged"):
            attempt()


def test_any_number_of_a_record_has_a_json_form():
    line = rundir.line_of({"round": 1, "loss": float("nan"), "facts": {"a": [float("inf"), 2.5]}, "n": (1, None)})
    assert json.loads(line) == {"round": 1, "loss": None, "facts": {"a": [None, 2.5]}, "n": [1, None]}


# --- what is refused before anything is written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["algorithm.lr=inf"], "algorithm.lr is inf"),
        (["run.deadline_s=inf"], "run.deadline_s is inf"),
        (["fleet.noise=inf"], "fleet.noise is inf"),
        (["fleet.latency_ms=inf"], "fleet.latency_ms is inf"),
        (["fleet.device=[{name='a', noise=-inf}]"], "fleet.device.noise is -inf"),
        (["run.seed=99999999999999999999"], "run.seed is a whole number of more than 64 bits"),
        (
            ["run.seed=" + "9" * 5000],
            "run.seed is a whole number of more than 64 bits",
        ),  # Python reads no more than 4300
        (["run.patience=" + "9" * 400], "run.patience is a whole number of more than 64 bits"),
        (["run.threads=100000"], "run.threads is 100000; give 256 or less"),
        (["fleet.noise=1e6"], "noise is 1000000.0; give 0 to 10"),
        (["algorithm.lr=-1"], "algorithm.lr is -1"),
        (["algorithm.batch_size=-1"], "algorithm.batch_size is -1"),
        (["algorithm.epochs=-1"], "algorithm.epochs is -1"),
        (["algorithm.alpha=-1"], "algorithm.alpha is -1"),
        (["algorithm.band=-1"], "algorithm.band is -1"),
        (["algorithm.bn_l1=-1"], "algorithm.bn_l1 is -1"),
        (["algorithm.calibrate=-1"], "algorithm.calibrate is -1"),
        (["algorithm.importance=x"], "algorithm.importance is 'x'; known are bn, l1, l2"),
        (["algorithm.importance=taylor"], "algorithm.importance is 'taylor'"),
        (["algorithm.min_channels=0"], "algorithm.min_channels is 0"),
        (["algorithm.name=fedavg", "algorithm.epochs=-1"], "algorithm.epochs is -1"),
        (["algorithm.name=fedavg", "algorithm.calibrate=-1"], "algorithm.calibrate is -1"),
        (["algorithm.name=fedavg", "algorithm.sample=3"], "algorithm.sample is 3, the fleet has 2 devices"),
        (["algorithm.name=adp"], "no gated convolution"),
        (["algorithm.name=scheduled"], "needs a profile of every client"),
        (
            ["algorithm.name=scheduled", "algorithm.objective=deadline", "algorithm.deadline_s=0"],
            "algorithm.deadline_s is 0.0; the objective 'deadline' needs a round's length",
        ),
        (["fleet.event=[{device='device-0', round=-1, slowdown=2.0}]"], "rounds are counted from 1"),
        (["fleet.device=[{name='a', profile='no.json'}, {name='b'}]"], "no.json: cannot be read"),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else "",
)
def test_a_meaningless_experiment_leaves_no_folder(tmp_path, sets, sentence):
    with pytest.raises(EdgePruneError) as caught:
        start(tmp_path / "run", *sets)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/run"], ids=["long", "nul", "below a file"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(EdgePruneError, match="choose another --out"):
        start(tmp_path / name)
    with pytest.raises(EdgePruneError, match="not a run directory"):
        engine.resume(tmp_path / name, None)
    with pytest.raises(EdgePruneError, match="not a run directory"):
        engine.RunDir(tmp_path / name)


# --- disks and other processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [checkpoints.FILE, rundir.METRICS, rundir.SUMMARY])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_left_alone(ran, name, kind):
    (ran / name).unlink()
    os.mkfifo(ran / name) if kind == "pipe" else (ran / name).mkdir()
    with pytest.raises(EdgePruneError, match="not a file; move it out of the way"):
        engine.resume(ran, None)
    assert (ran / name).exists() and not (ran / name).is_file()


def test_a_pipe_in_the_place_of_the_temporary_file_does_not_hold_anybody_up(tmp_path):
    os.mkfifo(tmp_path / ".a.tmp")
    checkpoints.write_atomically(tmp_path / "a", b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"abc"


FULL = """
import resource, signal, sys
from pathlib import Path
from edgeprune import engine
from edgeprune.engine.federation import run_here
from edgeprune.errors import EdgePruneError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    engine.start(engine.prepare(engine.load_experiment(None, sys.argv[3:])), Path(sys.argv[1]))
except EdgePruneError as error:
    print(error)
    sys.exit(1)
"""


def test_a_full_disk_is_one_sentence_and_the_run_resumes(finished, tmp_path):
    """No file may grow beyond a limit: at first the checkpoint does not fit, then not even the latency table."""
    lines = (finished / rundir.METRICS).read_bytes().splitlines(keepends=True)
    size = (finished / checkpoints.FILE).stat().st_size
    for limit, name in ((size // 2, checkpoints.FILE), (len(lines[0]) // 2, rundir.LATENCY)):
        out = tmp_path / str(limit)
        arguments = [sys.executable, "-c", FULL, str(out), str(limit), *SETS]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
        assert f"{name}: cannot be written (File too large)" in done.stdout and done.stdout.count("\n") == 1
        assert not list(out.glob(".*"))
    out = tmp_path / str(size // 2)
    engine.resume(out, None)
    assert same(weights(out), weights(finished))


def test_a_run_that_could_not_begin_leaves_its_place_free(tmp_path):
    """The latency table fits, the configuration with the names of all devices does not."""
    fleet = ", ".join(f'{{name = "a-device-with-a-long-name-{i:02}"}}' for i in range(40))
    arguments = [sys.executable, "-c", FULL, str(tmp_path / "run"), "1500", *SETS, f"fleet.device=[{fleet}]"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and f"{rundir.CONFIG}: cannot be written" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_record_that_does_not_fit_is_one_sentence(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgePruneError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        rundir.append_metrics(tmp_path / "metrics.jsonl", {"round": 1})
    with pytest.raises(EdgePruneError, match="No space left"):
        checkpoints.save(tmp_path / "c", Checkpoint(State(0, {}, {}), {}, 0.0, {}))
    assert not (tmp_path / "c").exists() and not (tmp_path / ".c.tmp").exists()


HOLD = """
import sys, time
from pathlib import Path
from edgeprune.engine import rundir
with rundir.occupied(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(600)
"""


def test_two_processes_do_not_lead_one_run(ran, tmp_path):
    arguments = [sys.executable, "-c", HOLD, str(ran)]
    other = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        before = sorted(path.name for path in ran.iterdir())
        with pytest.raises(EdgePruneError, match="another process leads this run"):
            engine.resume(ran, None, rounds=3)
        assert engine.RunDir(ran).metrics() and engine.RunDir(ran).model()  # reading goes on
        assert sorted(path.name for path in ran.iterdir()) == before
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    engine.resume(ran, None, rounds=3)  # the kernel gave it free


def test_a_run_that_begins_is_its_processes_own(tmp_path):
    def watch(at, record):
        with pytest.raises(EdgePruneError, match="another process leads this run"):
            engine.resume(tmp_path / "run", None)
        with pytest.raises(EdgePruneError, match="another process leads this run"):
            start(tmp_path / "run")
        raise Killed

    with pytest.raises(Killed):
        engine.start(engine.prepare(load_experiment(None, SETS)), tmp_path / "run", watch)
    engine.resume(tmp_path / "run", None)


def test_quiet_prints_the_result_and_nothing_else(tmp_path):
    result = command("run", "--quiet", "--out", tmp_path / "run", *(part for item in SETS for part in ("--set", item)))
    assert result.exit_code == 0, result.output
    first, *rest = " ".join(result.output.split()).split("accuracy ")
    assert first == "" and len(rest) == 1 and "after 2 rounds" in rest[0] and "written to" in rest[0]


def test_a_mistake_with_processes_leaves_nothing_either(tmp_path):
    for name in ("run", "x" * 300):
        experiment = load_experiment(None, [*SETS, "algorithm.name=fedavg", "algorithm.sample=3"])
        with pytest.raises(EdgePruneError, match="the fleet has 2 devices|choose another --out"):
            run_here(experiment, tmp_path / name, None)
        assert not list(tmp_path.iterdir())


def test_processes_take_nothing_of_others_from_the_folder_beside_the_run(tmp_path):
    mine, left = tmp_path / "run.devices" / "notes.txt", tmp_path / "run.devices" / "device-device-1"
    mine.parent.mkdir()
    mine.write_text("mine")
    left.write_text("of an earlier run")
    with pytest.raises(EdgePruneError, match="the fleet has 2 devices"):
        run_here(load_experiment(None, [*SETS, "algorithm.name=fedavg", "algorithm.sample=3"]), tmp_path / "run", None)
    assert mine.read_text() == "mine" and list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (".", "already there"),
        ("..", "already there"),
        ("/", "already there"),
        ("x" * 252, r"x\.devices: cannot be made a folder \(File name too long\); choose another --out"),
    ],
)
def test_processes_have_a_folder_beside_the_runs(tmp_path, monkeypatch, name, sentence):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(EdgePruneError, match=sentence):
        run_here(load_experiment(None, SETS), Path(name), None)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_the_folder_beside_a_run_needs_its_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert rundir.beside(Path(), "devices") == tmp_path / "here.devices"
    assert rundir.beside(Path(".."), "devices") == tmp_path.with_name(f"{tmp_path.name}.devices")
    assert Service(Path(), "flower", "127.0.0.1:1", None, 1.0, False).federation.folder == tmp_path / "here.federation"
    with pytest.raises(EdgePruneError, match="a run needs a folder of its own"):
        rundir.beside(Path("/"), "devices")


def test_the_usual_place_for_temporary_files_may_be_far_down(tmp_path, monkeypatch):
    """Too far for the path of a socket."""
    far = tmp_path / ("f" * 100)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))
    summary = run_here(load_experiment(None, [*SETS, "run.engine=processes"]), tmp_path / "run", None)
    assert summary["rounds"] == 2 and not list(far.iterdir())
