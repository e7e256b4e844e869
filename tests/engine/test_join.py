"""``edgeprune join`` where the worker cannot begin, fails in the middle, or has no place for what it must keep."""

from __future__ import annotations

import sys
import threading

import pytest
import tomli_w

from edgeprune import tasks, wire
from edgeprune._version import __version__
from edgeprune.algorithms.protocol import Recipe
from edgeprune.engine import frames, join, load_experiment
from edgeprune.engine.children import Child, wait_for
from edgeprune.engine.frames import Frame
from edgeprune.engine.kits import read_kit
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.tasks.task import initial_model

NAME = "device-0"
OWN = """
import os
from dataclasses import replace
from pathlib import Path
from edgeprune import tasks

def lost():
    raise FileNotFoundError(2, "No such file", "own.npz")

def loses_its_data():
    return replace(tasks.get("digits"), dataset=lost)

def gives_up():
    raise SystemExit("no luck\\nnone at all")

def dies(output, target):
    in_training = output.requires_grad and len(target) > 2  # a task is tried on two samples before
    if in_training and not Path("died").exists():
        Path("died").touch()
        os._exit(1)
    return tasks.get("digits").loss(output, target)

def dies_once():
    return replace(tasks.get("digits"), loss=dies)

def dies_for_good():
    if Path("died").exists():
        raise SystemExit("the curse")
    return dies_once()
"""


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """``kit(function)``: a kit whose task is that function of a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joined_task.py").write_text(OWN)

    def make(function):
        folder = tmp_path / "kit"
        folder.mkdir()
        sets = [f"task.name=joined_task:{function}", "data.samples=100", "fleet.devices=2"]
        (folder / "experiment.toml").write_text(load_experiment(None, sets).to_toml())
        told = {"name": NAME, "engine": "flower", "address": "127.0.0.1:9", "edgeprune": __version__}
        (folder / "kit.toml").write_text(tomli_w.dumps(told))
        return folder

    return make


@pytest.fixture
def no_engine(tmp_path, monkeypatch):
    """A node that forwards nothing: no engine need be installed."""

    def node(kit, folder, state, socket):
        return Child("the node", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "node.log")

    monkeypatch.setattr(join, "_node", node)


def joined(folder, state=None, say=lambda _: None):
    join.join(folder, None, state or folder / "state", own=False, idle_s=100, say=say, power="none")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("loses_its_data", "task 'digits': its data cannot be loaded (FileNotFoundError: [Errno 2] No such file: 'own"),
        ("gives_up", "ended at once (status 1): none at all"),
    ],
)
def test_a_worker_that_cannot_begin_is_passed_on_whole(kit, function, sentence):
    folder = kit(function)
    (folder / "state").mkdir()
    (folder / "state" / "worker.log").write_text("edgeprune worker: what an earlier one said\n")
    with pytest.raises(EdgePruneError) as caught:
        joined(folder)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert "an earlier one" not in str(caught.value)


def assignment():
    """The frame of one; its task is digits' in all but name."""
    task = tasks.get("digits")
    model = initial_model(task, 0)
    plan = SubmodelPlan.full(ChannelGraph.trace(model, task.example_inputs()))
    header = {"recipe": vars(Recipe(1, 32, 0.05, 0.9, 0.0)), "seed": 1}
    message = wire.Message("assignment", 1, NAME, plan.id, model.state_dict(), header, kept=plan.kept_bytes())
    return Frame("work", NAME, "token", {"round": 1}, wire.encode(message)).to_bytes()


class Server(threading.Thread):
    """Asks the worker on ``socket`` one frame after the other; a worker that is not there is waited for."""

    def __init__(self, socket, *asked):
        super().__init__(daemon=True)
        self.socket, self.asked, self.verbs = str(socket), asked, []

    def run(self):
        for data in self.asked:
            wait_for(self.listens, 100)
            try:
                self.verbs.append(Frame.from_bytes(frames.ask(self.socket, data, 60), frames.ANSWERS).verb)
            except EdgePruneError as error:
                self.verbs.append(str(error))

    def listens(self):
        try:
            frames.ask(self.socket, Frame("hello", NAME, "t").to_bytes(), 60)
        except EdgePruneError:
            return False
        return True


def test_a_worker_that_fails_in_the_middle_is_started_again(kit, no_engine):
    folder, asked = kit("dies_once"), assignment()
    server = Server(folder / "state" / "worker.sock", asked, asked, Frame("bye", NAME, "t").to_bytes())
    joined(folder, say=lambda text: server.start() if "looking for" in text else None)
    server.join(10)
    assert "the connection ended" in server.verbs[0] and server.verbs[1:] == ["done", "hello"]


def test_a_worker_that_ends_again_and_again_is_given_up(kit, no_engine, monkeypatch):
    monkeypatch.setattr(join, "TRIES", 2)
    folder = kit("dies_for_good")
    server = Server(folder / "state" / "worker.sock", assignment())
    with pytest.raises(EdgePruneError, match=r"worker.log\) ends again and again: the curse"):
        joined(folder, say=lambda text: server.start() if "looking for" in text else None)


@pytest.mark.parametrize(
    ("place", "reason"), [("file/state", "Not a directory"), ("file", "File exists"), ("/proc/nope", "No such file")]
)
def test_a_state_that_cannot_be_written_is_a_sentence(kit, tmp_path, place, reason):
    folder = kit("dies_once")
    (tmp_path / "file").touch()
    with pytest.raises(EdgePruneError, match=rf"cannot be written \({reason}.*\); choose another --state"):
        joined(folder, tmp_path / place)


def test_a_kit_nested_beyond_reading_is_a_sentence(tmp_path):
    (tmp_path / "kit.toml").write_text(f"name = {'[' * 3000}{']' * 3000}\n")
    with pytest.raises(EdgePruneError, match="cannot be read .*; copy the kit again"):
        read_kit(tmp_path)


def test_a_state_is_one_joins_alone_and_keeps_no_socket(kit, no_engine, tmp_path, monkeypatch):
    """The place of the socket where the state's path is too long for one: everybody's temporary folder."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder, state = kit("dies_once"), tmp_path / ("long" * 30)
    refused = []

    def again(text):
        if "looking for" not in text:
            return
        with pytest.raises(EdgePruneError, match="another 'edgeprune join' works there; .* give a --state of its own"):
            joined(folder, state)
        (socket,) = tmp_path.glob("edgeprune-*/*.sock")
        refused.append(socket)
        Server(socket, Frame("bye", NAME, "t").to_bytes()).start()

    joined(folder, state, say=again)
    assert len(refused) == 1 and not refused[0].exists()
