"""A resident worker that is sent what it cannot do, or whose work fails: it refuses with a sentence and lives on."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from short_runs import maker

from edgeprune import tasks, wire
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.engine import resident as residents_of
from edgeprune.engine.frames import Frame
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.tasks.task import initial_model

NAME = "device-0"
RECIPE = asdict(Recipe(1, 32, 0.05, 0.9, 5e-4))
OWING = asdict(Job(dtype="int8", change=True, feedback=True))


@pytest.fixture(scope="module")
def model():
    """The model that the server sends, and its whole plan."""
    task = tasks.get("digits")
    made = initial_model(task, 0)
    return made, SubmodelPlan.full(ChannelGraph.trace(made, task.example_inputs()))


@pytest.fixture
def device(latency, tmp_path, monkeypatch):
    """``device()``: one with 100 samples; its loss raises what is put into ``device.wrong``."""
    wrong = []

    def loss(output, target):
        if wrong:
            raise wrong.pop()
        return torch.nn.functional.cross_entropy(output, target)

    task = replace(tasks.get("digits"), loss=loss)
    monkeypatch.setattr(residents_of, "get_task", lambda name: task)
    experiment = maker(latency, "fleet.devices=2", "data.samples=200")()

    def make(folder="state"):
        return residents_of.residents(experiment, [NAME], None, tmp_path / folder)[NAME]

    make.wrong = wrong
    return make


@pytest.fixture
def asked(model):
    """``asked(kind, header)``: the frame of an assignment, or of a question for statistics."""
    made, plan = model

    def frame(kind, header, round_=1):
        kept = plan.kept_bytes() if kind == "assignment" else b""
        message = wire.Message(kind, round_, NAME, plan.id, made.state_dict(), header, kept=kept)
        return Frame("work", NAME, "token", {"round": round_}, wire.encode(message))

    return frame


@pytest.mark.parametrize(
    ("kind", "header", "sentence"),
    [
        ("calibrate", {"first": True}, "calibrate: its batch_size is None; refused"),
        ("calibrate", {"first": True, "batch_size": 0}, "calibrate: its batch_size is 0; refused"),
        ("calibrate", {"first": True, "batch_size": "9"}, "calibrate: its batch_size is '9'; refused"),
        ("assignment", {"recipe": RECIPE}, "assignment: its seed is None; refused"),
        ("assignment", {"recipe": RECIPE, "seed": 2**63}, "assignment: its seed is 9223372036854775808; refused"),
        ("assignment", {"recipe": RECIPE, "seed": True}, "assignment: its seed is True; refused"),
        ("assignment", {"recipe": {**RECIPE, "batch_size": 0}, "seed": 1}, "its recipe's batch_size is 0; refused"),
        ("assignment", {"recipe": {**RECIPE, "epochs": -1}, "seed": 1}, "its recipe's epochs is -1; refused"),
        ("assignment", {"recipe": {**RECIPE, "lr": "x"}, "seed": 1}, "its recipe's lr is 'x'; refused"),
        ("assignment", {"recipe": {**RECIPE, "steps": 1.5}, "seed": 1}, "its recipe's steps is 1.5; refused"),
        ("assignment", {"recipe": {**RECIPE, "softmax": 1}, "seed": 1}, "its recipe's softmax is 1; refused"),
        ("assignment", {"recipe": RECIPE, "job": {"density": []}, "seed": 1}, "its job's density is a list; refused"),
        ("assignment", {"recipe": RECIPE, "job": {"reduction": "x"}, "seed": 1}, "its job's reduction is 'x'; refused"),
        ("assignment", {"recipe": RECIPE, "job": {"dtype": "fp64"}, "seed": 1}, "fp64"),
    ],
    ids=str,
)
def test_a_header_that_asks_for_nothing_sensible_is_refused(device, asked, kind, header, sentence):
    there = device()
    answer = there.work(asked(kind, header))
    assert answer.verb == "refused" and sentence in answer.about["reason"] and "\n" not in answer.about["reason"]
    assert there.work(asked("assignment", {"recipe": RECIPE, "seed": 1})).verb == "done"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ValueError("Expected more\nthan one"),
            "its work failed (ValueError: Expected more); the device's log has more",
        ),
        (KeyError("y"), "its work failed (KeyError: 'y')"),
        (ZeroDivisionError(), "its work failed (ZeroDivisionError)"),
    ],
    ids=["of two lines", "of one", "of none"],
)
def test_what_the_users_code_raises_costs_one_answer(device, asked, error, words, capsys):
    there, good = device(), asked("assignment", {"recipe": RECIPE, "seed": 1})
    device.wrong.append(error)
    answer = there.work(good)
    assert answer.verb == "refused" and answer.about["reason"].startswith(words)
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert there.work(good).blob == device("other").work(good).blob, "and nothing of it stays"


def test_paths_in_an_error_stay_on_the_device(device, asked):
    there = device()
    device.wrong.append(FileNotFoundError(2, "No such file or directory", "/home/somebody/private.npz"))
    reason = there.work(asked("assignment", {"recipe": RECIPE, "seed": 1})).about["reason"]
    assert "FileNotFoundError: No such file or directory" in reason and "private" not in reason


def test_an_answer_that_cannot_be_remembered_is_not_given_and_owes_what_was_owed(device, asked, tmp_path, capsys):
    """The folder of the state is gone when the second round's answer is to be kept, and back when it is asked again."""
    header = {"recipe": RECIPE, "job": OWING, "seed": 1}
    there, other = device(), device("other")
    for one in (there, other):
        assert one.work(asked("assignment", header, 1)).verb == "done"
    second = asked("assignment", {**header, "seed": 2}, 2)
    (tmp_path / "state").rename(tmp_path / "away")
    answer = there.work(second)
    assert answer.verb == "refused" and "cannot write what it must remember" in answer.about["reason"]
    assert str(tmp_path) not in answer.about["reason"] and str(tmp_path) in capsys.readouterr().err
    (tmp_path / "away").rename(tmp_path / "state")
    assert there.work(second).blob == other.work(second).blob
    assert device().work(second).about["again"], "a new process knows it"
