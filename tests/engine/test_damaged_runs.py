"""A run directory that is not what it was: another experiment beside it, damaged, cut short, moved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import torch
from short_runs import SETS, command

from edgeprune import engine
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir
from edgeprune.engine.config import load_experiment
from edgeprune.errors import EdgePruneError


@pytest.mark.parametrize(
    "sets",
    [
        [*SETS, "fleet.devices=3"],
        [*SETS, "algorithm.name=fedavg"],
        [*SETS, "run.seed=1"],
        [*SETS, "algorithm.lr=0.5"],
        [],
    ],
    ids=lambda sets: sets[-1] if sets else "empty",
)
def test_a_checkpoint_of_another_experiment_is_refused(ran, sets):
    (ran / rundir.CONFIG).write_text(load_experiment(None, [*sets, "run.rounds=9"]).to_toml() if sets else "")
    before = {path.name: path.read_bytes() for path in ran.iterdir()}
    with pytest.raises(EdgePruneError, match="of another experiment than the config.toml beside it"):
        engine.resume(ran, None)
    assert {path.name: path.read_bytes() for path in ran.iterdir()} == before


def test_what_changes_no_number_keeps_the_identity():
    one = load_experiment(None, ["algorithm.name=heterofl", "algorithm.rates=[1, 0.5]"])
    other = load_experiment(
        None,
        ["algorithm.name=heterofl", "algorithm.rates=[1.0, 0.5]", "run.rounds=7", "run.checkpoint_every=3"],
    )
    assert one.identity() == other.identity() != load_experiment(None).identity()


def test_a_moved_run_is_the_same_experiment(ran, tmp_path):
    ran.rename(tmp_path / "elsewhere")
    engine.resume(tmp_path / "elsewhere", None, rounds=3)
    assert len(engine.RunDir(tmp_path / "elsewhere").metrics()) == 3


def rewritten(path, header=None, tensors=None):
    """The checkpoint with its JSON header and tensors put through functions, as somebody's editor would."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, held = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header:
        metadata["edgeprune"] = json.dumps({**json.loads(metadata["edgeprune"]), **header})
    if tensors:
        tensors(held)
    path.write_bytes(safetensors.torch.save(held, metadata=metadata))


@pytest.mark.parametrize("value", [[], "x", None, {}, -1], ids=repr)
@pytest.mark.parametrize("key", ["plans", "assigned", "flight", "round", "memory", "time_s", "totals"])
def test_a_changed_header_is_one_sentence(ran, key, value):
    if key == "flight" and value == {}:
        value = {"device-0": {}}
    path = ran / checkpoints.FILE
    rewritten(path, {key: value})
    for attempt in (lambda: engine.resume(ran, None, rounds=3), engine.RunDir(ran).model):
        with pytest.raises(EdgePruneError, match="damaged checkpoint"):
            attempt()


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("0.weight"),
        lambda held: held.update(more=torch.zeros(2)),
        lambda held: held.update({"0.weight": held["0.weight"][:1].clone()}),
        lambda held: held.update({"0.weight": held["0.weight"].double()}),
        lambda held: held["0.weight"].view(-1)[3:4].view(torch.int32).bitwise_xor_(1),
    ],
    ids=["missing", "extra", "misshapen", "another type", "one bit"],
)
def test_changed_tensors_are_one_sentence(ran, change):
    rewritten(ran / checkpoints.FILE, tensors=change)
    for attempt in (lambda: engine.resume(ran, None, rounds=3), engine.RunDir(ran).model):
        with pytest.raises(EdgePruneError, match="damaged checkpoint"):
            attempt()


def test_another_tasks_checkpoint_is_not_this_tasks_model(ran):
    path = ran / checkpoints.FILE
    at = checkpoints.load(path, engine.prepare(load_experiment(None, SETS)).graph)
    checkpoints.save(path, replace(at, state=replace(at.state, model={"weight": torch.zeros(3)})))
    with pytest.raises(EdgePruneError, match="damaged checkpoint .tensor '0.weight' is not that of the task's model"):
        engine.RunDir(ran).model()


@pytest.mark.parametrize("line", ["{}", '{"round":"a"}', '{"round":true}', "[" * 100_000, "null"], ids=lambda t: t[:12])
def test_a_record_that_is_none_is_one_sentence(ran, line):
    path = ran / rundir.METRICS
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EdgePruneError, match="line 3 .*the file was damaged"):
        engine.resume(ran, None)


def test_records_that_are_gone_are_missed(ran):
    path = ran / rundir.METRICS
    for left in (path.read_text().splitlines(keepends=True)[1], ""):
        path.write_text(left)
        with pytest.raises(EdgePruneError, match="does not hold the rounds 1 to 2"):
            engine.resume(ran, None)
    path.unlink()
    result = command("run", "--resume", "--out", ran)
    assert isinstance(result.exception, EdgePruneError) and "does not hold the rounds" in str(result.exception)


def test_a_lost_checkpoint_does_not_cost_the_records(ran):
    (ran / checkpoints.FILE).unlink()
    before = (ran / rundir.METRICS).read_bytes()
    with pytest.raises(EdgePruneError, match="gone, and rounds were made already"):
        engine.resume(ran, None)
    assert (ran / rundir.METRICS).read_bytes() == before


def test_a_summary_without_a_bottom_is_one_sentence(ran):
    (ran / rundir.SUMMARY).write_text("[" * 100_000)
    with pytest.raises(EdgePruneError, match="cannot be read"):
        engine.RunDir(ran).summary()


def test_no_fewer_rounds_than_were_made(ran):
    with pytest.raises(EdgePruneError, match="run.rounds is 1 and 2 rounds were made"):
        engine.resume(ran, None, rounds=1)
    assert engine.RunDir(ran).experiment.run.rounds == 2


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("run.rounds=0", "run.rounds is 0; give 1 or more"),
        ("run.rounds=²", "run.rounds must be a whole number"),
        ("run.rounds=x", "run.rounds must be a whole number"),
        ("run.seed=1", "only run.rounds can be changed"),
    ],
)
def test_what_resume_cannot_change(ran, item, sentence):
    result = command("run", "--resume", "--out", ran, "--set", item)
    assert isinstance(result.exception, EdgePruneError) and sentence in str(result.exception)
