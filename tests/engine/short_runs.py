"""Short runs on real digits, and the end of their process: what several of the engine's tests need."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from edgeprune import engine
from edgeprune.cli import cli
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir

# What an experiment of a second sets.
SETS = ["run.rounds=2", "data.samples=100", "fleet.devices=2"]


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


def maker(latency, *shared: str):
    """``make("key.path=value", ...)``: an experiment of ``shared`` and these, on one thread, with a fixed table."""
    fixed = ("run.threads=1", f"fleet.latency={json.dumps(str(latency))}")
    return lambda *sets: engine.load_experiment(None, [*fixed, *shared, *sets])


def command(*arguments):
    """The outcome of ``edgeprune ARGUMENTS`` in this process."""
    return CliRunner().invoke(cli, [str(item) for item in arguments], catch_exceptions=True)


def weights(path):
    """All tensors of the run's last checkpoint."""
    return safetensors.torch.load_file(path / checkpoints.FILE)


def same(one, other):
    """Whether two dictionaries of tensors are bit for bit the same."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def resumed_equals_whole(experiment, folder, monkeypatch, round_):
    """Run ``experiment`` whole, and again with an end after ``round_``, resumed; asserts that nothing differs."""
    engine.start(engine.prepare(experiment), folder / "whole")
    save = checkpoints.save

    def dying(path, checkpoint):
        if checkpoint.state.round == round_ + 1:
            raise Killed
        save(path, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying)
        with pytest.raises(Killed):
            engine.start(engine.prepare(experiment), folder / "cut")
    engine.resume(folder / "cut", None)
    assert same(weights(folder / "whole"), weights(folder / "cut"))
    for name in (rundir.METRICS, rundir.CONFIG):
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes()
