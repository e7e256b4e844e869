"""The command line as a user meets it: real processes, exit statuses, one sentence for every mistake."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from rich.console import Console

from edgeprune.cli.progress import _devices
from edgeprune.fleet import LatencyTable

TABLE = LatencyTable(
    "digits", 32, (10_000, 100_000, 1_000_000, 10_000_000), (0.9, 1.0, 2.0, 9.0), (0.3, 0.4, 0.7, 3.0), 1.0
)
QUICK = ["--set", "run.threads=1", "--set", "data.samples=200", "--set", "fleet.devices=3"]


def edgeprune(*arguments, cwd, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "edgeprune", *map(str, arguments)],
        cwd=cwd,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs},
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE.to_json()))
    return ["--set", f"fleet.latency={json.dumps(str(path))}"]


WITHOUT = """
import importlib.machinery, sys
missing = sys.argv.pop(1)
find = importlib.machinery.PathFinder.find_spec
def without(name, path=None, target=None):
    return None if name == missing else find(name, path, target)
importlib.machinery.PathFinder.find_spec = without
from edgeprune.cli import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("torch", ["run"]), ("scipy", ["plan", "fleet.toml"]), ("rich", ["doctor"])],
)
def test_a_package_that_is_not_installed_is_one_sentence(missing, arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"has no '{missing}'; install edgeprune" in done.stderr


NO_TEMPORARY = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/nonexistent"]  # as in a service that may write its own folder only
from edgeprune.cli import main
main()
"""


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_no_place_for_temporary_files_is_one_sentence(engine, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_TEMPORARY, "run", "--quiet", "--set", f"run.engine={engine}", *QUICK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "No usable temporary directory" in done.stderr and "TMPDIR" in done.stderr
    assert "control flow" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["run", "--set", "run.ronds=3"], "did you mean 'rounds'"),
        (["run", "--set", "algorithm.name=adaptlc"], "did you mean 'adaptcl'"),
        (["run", "--set", "task.name=digitz"], "digits"),
        (["run", "--set", "task.name=nowhere:task"], "nowhere"),
        (["run", "--set", "data.partition=dirichle"], "dirichlet"),
        (["run", "--set", "fleet.event=[{device='device-99', round=2, slowdown=2.0}]"], "unknown device 'device-99'"),
        (["run", "--set", "task.name=fashion-cnn", "--data", "empty"], "fashion-mnist"),
        (["run", "--resume"], "--out"),
        (["run", "--resume", "--out", "nothing"], "cannot be read"),
        (["run", "--nonsense"], "nonsense"),
        (["nonsense"], "nonsense"),
        (["export", "nothing", "-o", "model.onnx"], "not a run directory"),
        (["report", "nothing", "-o", "page.html"], "not a run directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "EDGEPRUNE_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "XDG_CACHE_HOME": str(tmp_path / "empty"), "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sentence in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"] and not list((tmp_path / "empty").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", [("data", "list"), ("--help",)])
def test_an_output_that_does_not_fit_is_one_sentence(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        done = edgeprune(*arguments, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("edgeprune: the output cannot be written (No space left on device)")


def test_a_models_shape_that_cannot_be_followed_is_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom dataclasses import replace\nfrom edgeprune import tasks\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1)[:, : int(x.sum() * 0) + 10] if x.sum() > 0 else x.flatten(1)[:, :10]\n"
        "def task():\n    return replace(tasks.get('digits'), make_model=Odd)\n"
    )
    done = edgeprune("run", "--set", "task.name=mine:task", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_run_report_export_end_to_end(tmp_path, table):
    done = edgeprune("run", *QUICK, *table, "--set", "run.rounds=4", "--set", "algorithm.interval=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    run = tmp_path / "runs" / "digits-adaptcl-1"
    assert (run / "summary.json").is_file()
    done = edgeprune("report", run, "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "http://" not in (tmp_path / "page.html").read_text().replace("http://www.w3.org", "")
    done = edgeprune("export", run, "--client", "device-2", "-o", "small.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.onnx").stat().st_size > 0


@pytest.mark.parametrize("kill_at", [1, 3])
def test_sigkill_then_resume_gives_the_same_weights(tmp_path, table, kill_at):
    arguments = [*QUICK, *table, "--set", "run.rounds=6", "--set", "algorithm.interval=2"]
    assert edgeprune("run", *arguments, "--out", "whole", cwd=tmp_path).returncode == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune", "run", *arguments, "--out", "cut"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"

    done = edgeprune("run", "--resume", "--out", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, cut = (safetensors.torch.load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_output_cannot_show_are_spelt_out(tmp_path, monkeypatch, encoding):
    (tmp_path / "fleet.toml").write_text('[[fleet.device]]\nname = "küche"\n[[fleet.device]]\nname = "デバイス"\n')
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = edgeprune("plan", "fleet.toml", cwd=tmp_path, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert ("küche" if encoding == "latin-1" else "k\\xfcche") in done.stdout and "\\u30c7" in done.stdout


def test_what_a_pipe_gets_of_a_run_is_whole_lines(tmp_path, table):
    out = tmp_path / "a folder with a long name" / ("runs of [all] devices " * 4)
    done = edgeprune("run", *QUICK, *table, "--set", "run.rounds=1", "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, result, place = done.stdout.splitlines()
    assert result.startswith("accuracy ") and result.endswith(" on this machine)") and place == f"written to {out}"


def test_a_devices_name_is_not_markup():
    record = {"retention": {"nano [old]": 0.5}, "update_time_s": {"nano [old]": 1.0}, "rejected": {}}
    console = Console(file=io.StringIO(), width=100)
    console.print(_devices(record, "#"))
    assert "nano [old]" in console.file.getvalue()


def test_a_terminal_shows_rounds_in_which_not_all_answer(tmp_path, table):
    settings = [*QUICK, *table, "--set", "run.rounds=3", "--set", "algorithm.name=fedasync"]
    screen, inside = pty.openpty()
    run = [sys.executable, "-m", "edgeprune", "run", *settings, "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TERM": "xterm"}
    with subprocess.Popen(run, cwd=tmp_path, stdout=inside, stderr=inside, env=environment) as process:
        os.close(inside)
        shown = b""
        with contextlib.suppress(OSError):  # of a terminal that nobody holds any more
            while piece := os.read(screen, 65536):
                shown += piece
    os.close(screen)
    assert process.returncode == 0, shown.decode()
    assert b"update time" in shown and b"written to run" in shown


def test_a_tasks_name_is_not_markup(tmp_path):
    done = edgeprune("run", "--set", "task.name=[/bold]x", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("edgeprune: task.name: unknown task '[/bold]x'")
    assert done.stdout.startswith("[/bold]x with adaptcl")


def test_help_does_not_need_torch(tmp_path):
    blocked = tmp_path / "torch.py"
    blocked.write_text("raise ImportError('torch was imported')\n")
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0 and "run" in done.stdout
