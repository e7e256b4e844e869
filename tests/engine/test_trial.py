"""A user's own task whose parts do not fit one another: one sentence before anything is written."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from short_runs import maker
from torch import nn
from torch.nn import functional

from edgeprune import engine
from edgeprune.data import DataSet, Split
from edgeprune.engine import run
from edgeprune.engine.resident import residents
from edgeprune.errors import EdgePruneError
from edgeprune.tasks import Task
from edgeprune.tasks.task import initial_model

THREE = ("a", "b", "c")


def split(samples, labels):
    y = torch.arange(samples) % labels
    return Split(torch.randn(samples, 6, generator=torch.Generator().manual_seed(0)) + y[:, None].float(), y)


def own(train=(64, 3), test=(20, 3), classes=THREE, outputs=3, **values):
    """A task on ``train`` and ``test`` as (samples, labels)."""

    def model():
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, outputs))

    data = DataSet("own", split(*train), split(*test), classes, lambda x: x)
    task = Task("digits", lambda: data, model, lambda: (torch.zeros(2, 6),), batch_size=32, lr=0.02)
    return replace(task, **values)


class Uncopied(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        self.held = self.weight * 2


def spoiled(sample, which, value, normalise=lambda x: x):
    """The data of :func:`own`; one number of one sample is ``value``."""
    data = own().dataset()
    getattr(data, which).x[sample, 2] = value
    return replace(data, normalise=normalise)


class Named(nn.Module):
    """Two heads, by their names."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aside = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return {"head": self.head(x), "aside": self.aside(x)}


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.fixture
def experiment(latency, monkeypatch):
    """``experiment(task)``: two rounds of it on two devices."""

    def make(task):
        monkeypatch.setattr(run, "get_task", lambda name: task)
        monkeypatch.setattr("edgeprune.engine.resident.get_task", lambda name: task)
        return maker(latency, "fleet.devices=2", "run.rounds=2", "run.evaluate_every=1")()

    return make


MISFITS = {
    "no test samples": ({"test": (0, 1)}, "its data set has no test samples"),
    "labels beyond the classes": (
        {"classes": ("a", "b"), "outputs": 2},
        "its training labels go from 0 to 2, and its 2 classes from 0 to 1",
    ),
    "test labels beyond them": ({"test": (20, 4)}, "its test labels go from 0 to 3, and its 3 classes"),
    "labels beyond the outputs": (
        {"outputs": 2},
        "do not fit its training samples (IndexError: Target 2 is out of bounds.)",
    ),
    "nameless classes": ({"classes": (), "outputs": 2}, "do not fit its training samples (IndexError"),
    "one sample": ({"train": (2, 2)}, "device-0: it has one training sample, with which the model cannot be trained"),
    "batches of one": ({"batch_size": 1}, "its batches are of one sample, with which the model cannot be trained"),
    "data that are not there": (
        {"dataset": raising(FileNotFoundError(2, "No such file", "own.npz"))},
        "its data cannot be loaded (FileNotFoundError: [Errno 2] No such file: 'own.npz')",
    ),
    "no model": ({"make_model": raising(ZeroDivisionError())}, "its model cannot be made (ZeroDivisionError)"),
    "a loss without a gradient": (
        {"loss": lambda output, y: output.detach().sum()},
        "do not fit its training samples (RuntimeError: element 0 of tensors does not require grad",
    ),
    "no count": ({"correct": lambda output, y: None}, "correct gave None for 2 targets; return how many of them"),
    "a share for a count": ({"correct": lambda output, y: 0.5}, "correct gave 0.5 for 2 targets"),
    "more right than asked": ({"correct": lambda output, y: 3}, "correct gave 3 for 2 targets"),
    "another thing than a model": ({"make_model": dict}, "make_model returned dict, not a torch.nn.Module"),
    "no example": ({"example_inputs": raising(KeyError("x"))}, "its example inputs cannot be made (KeyError: 'x')"),
    "a model that cannot be copied": (
        {"make_model": lambda: Uncopied()},
        "task 'digits': Uncopied cannot be copied, since 'held' was computed with gradients",
    ),
    "a training sample with NaN": (
        {"dataset": lambda: spoiled(5, "train", math.nan)},
        "its training sample 5 holds NaN or infinity, and so does the loss on it; leave such samples out",
    ),
    "a test sample with infinity": (
        {"dataset": lambda: spoiled(19, "test", math.inf)},
        "its test sample 19 holds NaN or infinity",
    ),
    "a loss that raises": ({"loss": raising(KeyError("x"))}, "do not fit its training samples (KeyError: 'x')"),
}


@pytest.mark.parametrize(("change", "sentence"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_a_sentence_and_leaves_no_folder(experiment, tmp_path, change, sentence):
    with pytest.raises(EdgePruneError) as caught:
        engine.start(engine.prepare(experiment(own(**change))), tmp_path / "run")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"classes": (*THREE, "d"), "outputs": 4},
        {"classes": ()},
        {"train": (2, 2), "make_model": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))},
        {"correct": lambda output, y: (output.argmax(1) == y).sum()},
        {"dataset": lambda: spoiled(5, "train", math.nan, torch.nan_to_num)},
        {
            "make_model": Named,
            "loss": lambda output, y: sum(functional.cross_entropy(each, y) for each in output.values()),
            "correct": lambda output, y: int((output["head"].argmax(1) == y).sum()),
        },
        {"example_inputs": lambda: torch.zeros(2, 6)},
    ],
    ids=[
        "plain",
        "a class without samples",
        "nameless classes",
        "one sample without batch-norm",
        "a count as a tensor",
        "NaN that is normalised away",
        "outputs with names",
        "a lone example",
    ],
)
def test_what_fits_runs(experiment, tmp_path, change):
    engine.start(engine.prepare(experiment(own(**change))), tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert [record["rejected"] for record in records] == [{}, {}] and records[-1]["accuracy"] is not None


def test_the_trial_leaves_model_and_generator_as_they_are(experiment):
    drawn = []

    def loss(output, target):
        drawn.append(torch.rand(1))
        return functional.cross_entropy(output, target)

    before = torch.get_rng_state()
    task = own(loss=loss)
    prepared = engine.prepare(experiment(task))
    assert drawn and torch.equal(torch.get_rng_state(), before)
    untouched = initial_model(task, prepared.experiment.run.seed).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in prepared.model.state_dict().items())


def test_a_device_tries_its_own_data_and_needs_no_test_samples(experiment, tmp_path):
    """With data of its own nobody but the device can look."""
    whole = residents(experiment(own(test=(0, 1))), ["device-0"], None, tmp_path, own=True)
    assert whole["device-0"].hello("t").about["samples"] == 64
    for train, sentence in (((1, 1), "one training sample"), ((0, 1), "no training samples"), ((9, 4), "0 to 3")):
        with pytest.raises(EdgePruneError, match=sentence):
            residents(experiment(own(train=train)), ["device-0"], None, tmp_path, own=True)
