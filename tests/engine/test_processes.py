"""Devices as processes of this machine: killed, stopped, started again; a server that is killed and resumes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from slow_link import SlowLink

from edgeprune import engine
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import federation, frames
from edgeprune.engine.children import Child, Children, wait_for
from edgeprune.engine.frames import Frame
from edgeprune.engine.sockets import SocketCarrier
from edgeprune.errors import EdgePruneError
from edgeprune.report import write_report

NAMES = ["device-0", "device-1"]
ROUNDS = 24
LEAD = """
import sys
from pathlib import Path
from edgeprune.engine import federation, load_experiment
from edgeprune.engine.sockets import SocketCarrier
file, out, *sockets = map(Path, sys.argv[1:])
paths = {f"device-{i}": path for i, path in enumerate(sockets)}
federation.lead(load_experiment(file), SocketCarrier(paths), out, None, wait_s=60)
"""


def weights(path):
    every = safetensors.torch.load_file(path / checkpoints.FILE)
    return {name: tensor for name, tensor in every.items() if ":" not in name}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def experiment(small):
    from edgeprune.engine import load_experiment

    algorithm = load_experiment(None, ["algorithm.name=fedavg", "algorithm.upload=int8", "algorithm.feedback=true"])
    base = small("fleet.devices=2", f"run.rounds={ROUNDS}", "run.engine=processes", "run.deadline_s=20")
    return replace(base, algorithm=algorithm.algorithm)


@pytest.fixture
def local(experiment, tmp_path):
    """The same experiment in one process."""
    engine.start(engine.prepare(replace(experiment, run=replace(experiment.run, engine="local"))), tmp_path / "local")
    return weights(tmp_path / "local")


@pytest.fixture
def workers(experiment, tmp_path_factory):
    with federation.Workers(experiment, NAMES, tmp_path_factory.mktemp("w"), None) as found:
        yield found


def test_a_killed_server_resumes_and_a_killed_device_comes_back_to_the_same_model(experiment, local, workers, tmp_path):
    """The server dies after round 2 while its devices live on; a device dies between two rounds after that, and knows
    from its disk what it must."""
    workers.carrier()
    out = tmp_path / "run"
    command = [sys.executable, "-c", LEAD, str(workers.folder / "experiment.toml"), str(out)]
    server = subprocess.Popen([*command, *map(str, workers.paths.values())])
    rounds = lambda: (out / "metrics.jsonl").exists() and len(engine.RunDir(out).metrics()) >= 2  # noqa: E731
    try:
        assert wait_for(rounds, 90)
    finally:
        server.kill()
        server.wait()
    assert not (out / "summary.json").exists()
    before = [child.pid for child in workers.hosts]

    def strike(at, record):
        if record["round"] == begun + 2:
            write_report([out], tmp_path / "page.html")  # while it runs
            child = workers.hosts[1]
            os.kill(child.pid, signal.SIGKILL)
            workers.paths["device-1"].unlink()
            wait_for(lambda: child.status() is not None, 10)
            assert wait_for(lambda: child.tend() and workers.paths["device-1"].is_socket(), 60)

    begun = len(engine.RunDir(out).metrics())
    assert begun < ROUNDS - 3
    federation.lead_on(out, SocketCarrier(workers.paths), None, wait_s=60, watch=strike)
    page = (tmp_path / "page.html").read_text()
    assert "is training digits" in page and "was clocked by the server" in page
    assert workers.hosts[0].pid == before[0] and workers.hosts[1].starts == 2
    records = engine.RunDir(out).metrics()
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    assert [record["rejected"] for record in records] == [{}] * ROUNDS
    assert same(weights(out), local)
    assert all(wait_for(lambda c=child: c.status() == 0, 20) for child in workers.hosts), "they end with the run"


def test_a_device_that_hangs_is_left_out_until_it_wakes_and_one_that_is_gone_for_good(experiment, workers, tmp_path):
    def strike(at, record):
        child = workers.hosts[1]
        if record["round"] in (1, 3):
            os.kill(child.pid, signal.SIGSTOP if record["round"] == 1 else signal.SIGCONT)
            time.sleep(1.0)
        if record["round"] == 5:
            child.stop()
            workers.paths["device-1"].unlink(missing_ok=True)

    federation.lead(experiment, workers.carrier(), tmp_path / "run", None, wait_s=60, watch=strike)
    records = engine.RunDir(tmp_path / "run").metrics()
    assert [list(record["rejected"]) for record in records[:3]] == [[], ["device-1"], ["device-1"]]
    assert [record["transport"].get("missing", 0) for record in records[:3]] == [0, 1, 1]
    assert records[4]["participants"] == NAMES
    assert "cannot be reached" in records[5]["rejected"]["device-1"]
    assert records[5]["transport"]["unreachable"] == 1


def test_a_worker_that_is_killed_comes_back(experiment, tmp_path):
    """kill -9 of one of a run's own processes: it misses rounds and takes part again."""
    ours = replace(experiment, run=replace(experiment.run, engine="processes", rounds=60))
    came: list[bool] = []

    def strike(at, record):
        came.append("device-1" in record["participants"])
        if record["round"] == 3:
            (pid,) = [pid for pid in children_of(os.getpid()) if "--client=device-1" in command_of(pid)]
            os.kill(pid, signal.SIGKILL)
        if record["round"] > 3:
            time.sleep(0.0 if came[-1] else 0.5)

    federation.run_here(ours, tmp_path / "run", None, watch=strike)
    assert came[:3] == [True] * 3 and not all(came) and came[-1]
    assert not [pid for pid in children_of(os.getpid()) if "--client=" in command_of(pid)]


def children_of(parent):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def command_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def test_a_slow_and_lossy_link_costs_time_and_a_cut_one_its_round(experiment, workers, tmp_path):
    short = replace(experiment, run=replace(experiment.run, rounds=5))
    workers.carrier()
    near, far = workers.paths["device-0"], workers.folder / "far"
    with SlowLink(far, workers.paths["device-1"], bytes_per_s=3e6, cut={3}) as link:
        carrier = SocketCarrier({"device-0": near, "device-1": far})
        federation.lead(short, carrier, tmp_path / "run", None, wait_s=60)
    records = engine.RunDir(tmp_path / "run").metrics()
    assert [list(record["rejected"]) for record in records] == [[], [], ["device-1"], [], []]
    assert "the connection ended after" in records[2]["rejected"]["device-1"]
    whole = [record for record in records if not record["rejected"]]
    for record in whole:
        sent = (record["upload_bytes"] + record["download_bytes"]) / 2  # the other device's half is another link's
        assert record["update_time_s"]["device-1"] > sent / 3e6
    counted = sum(record["upload_bytes"] + record["download_bytes"] for record in records) / 2
    assert link.carried == pytest.approx(counted, rel=0.05)


def test_a_listener_says_what_is_wrong_and_stays(experiment, tmp_path_factory):
    with federation.Workers(experiment, NAMES, tmp_path_factory.mktemp("w"), None, hosts=1) as workers:
        workers.carrier()
        assert len(workers.hosts) == 1
        check_listener(workers)


def check_listener(workers):
    path = str(workers.paths["device-0"])
    for sent, words in [
        (b"nonsense", "not a frame"),
        (Frame("work", "device-9", "t").to_bytes(), "this worker is not 'device-9'"),
        (Frame("work", "device-0", "t", {}, b"EPRU").to_bytes(), "wire"),
    ]:
        answer = Frame.from_bytes(frames.ask(path, sent, 20), frames.ANSWERS)
        assert answer.verb == "refused" and words in answer.about["reason"]
    hello = Frame.from_bytes(frames.ask(path, Frame("hello", "device-0", "t").to_bytes(), 20), frames.ANSWERS)
    assert hello.verb == "hello" and hello.about["samples"] == 100
    assert workers.paths["device-0"].stat().st_mode & 0o077 == 0, "nobody else may open it"


def test_what_was_started_ends_with_the_one_who_started_it(tmp_path):
    """Even by kill -9: the kernel tells the child."""
    code = (
        "import sys, time; from pathlib import Path; from edgeprune.engine.children import Child\n"
        "child = Child('c', [sys.executable, '-c', 'import time; time.sleep(60)'], Path(sys.argv[1])).start()\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()

    def gone():
        try:
            return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True

    assert wait_for(gone, 10)


def test_a_child_that_cannot_begin_is_a_sentence(tmp_path):
    with pytest.raises(EdgePruneError, match="cannot be started"):
        Child("x", [str(tmp_path / "none")], tmp_path / "log").start()
    with Children() as children:
        child = children.start(
            Child("the thing", [sys.executable, "-c", "print('no luck'); exit(3)"], tmp_path / "log")
        )
        with pytest.raises(EdgePruneError, match=r"the thing ended at once \(status 3\): no luck"):
            wait_for(lambda: False, 20, child)
