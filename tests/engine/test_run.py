"""The engine on real digits: what a round computes, what it counts, and what it survives."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from short_runs import SETS, Killed, maker, same, weights
from torch import nn

from edgeprune import engine
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.algorithms.training import train_local
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir
from edgeprune.engine.rounds import seed_of
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import LatencyTable
from edgeprune.tasks import get as get_task


def fedavg(small, *sets):
    experiment = small("run.rounds=1", *sets)
    return replace(experiment, algorithm=FedAvg())


def by_hand(prepared, clients):
    """One round of federated averaging without any of the engine: train copies, take the mean in double."""
    total = sum(prepared.setting.samples[client] for client in clients)
    mean = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in prepared.model.state_dict().items()}
    for client in clients:
        model = prepared.task.make_model()
        model.load_state_dict(prepared.model.state_dict())
        data = prepared.local[client]
        train_local(model, data, prepared.task.loss, prepared.setting.recipe, seed_of(0, 1, client))
        for name, value in model.state_dict().items():
            mean[name] += value.double() * len(data) / total
    return mean


def test_a_round_of_fedavg_is_the_mean_of_the_clients(small, tmp_path):
    prepared = engine.prepare(fedavg(small))
    engine.start(prepared, tmp_path / "run")
    expected = by_hand(prepared, prepared.setting.clients)
    for name, value in weights(tmp_path / "run").items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("drop", "no update arrived"),
        ("nan", "not finite"),
        ("shape", "has shape"),
        ("truncated", "truncated"),
        ("forged", "checksum"),
    ],
)
def test_a_faulty_device_is_left_out_named_and_the_run_goes_on(small, tmp_path, kind, sentence):
    fault = f'fleet.fault=[{{device="device-2", kind="{kind}", first=1, last=1}}]'
    prepared = engine.prepare(fedavg(small, fault))
    engine.start(prepared, tmp_path / "run")
    (record,) = engine.RunDir(tmp_path / "run").metrics()
    assert record["participants"] == ["device-0", "device-1", "device-3"]
    assert list(record["rejected"]) == ["device-2"] and sentence in record["rejected"]["device-2"]
    assert engine.RunDir(tmp_path / "run").summary()["rejected"] == 1
    expected = by_hand(prepared, ["device-0", "device-1", "device-3"])
    for name, value in weights(tmp_path / "run").items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_device_that_failed_takes_part_again(small, tmp_path):
    fault = 'fleet.fault=[{device="device-1", kind="nan", first=2, last=3}]'
    engine.start(engine.prepare(small("run.rounds=6", fault)), tmp_path / "run")
    left_out = [list(r["rejected"]) for r in engine.RunDir(tmp_path / "run").metrics()]
    assert left_out == [[], ["device-1"], ["device-1"], [], [], []]


def test_all_devices_failing_leaves_the_model_as_it_was(small, tmp_path):
    faults = ",".join(f'{{device="device-{i}", kind="nan"}}' for i in range(4))
    prepared = engine.prepare(fedavg(small, f"fleet.fault=[{faults}]"))
    engine.start(prepared, tmp_path / "run")
    assert same(weights(tmp_path / "run"), prepared.model.state_dict())


def test_a_missing_answer_costs_the_servers_patience(small, tmp_path):
    quiet = "fleet.noise=0"
    prepared = engine.prepare(fedavg(small, quiet))
    engine.start(prepared, tmp_path / "all")
    fault = 'fleet.fault=[{device="device-0", kind="drop"}]'
    engine.start(engine.prepare(fedavg(small, quiet, fault, "run.patience=3.0")), tmp_path / "one-less")
    (full,), (less,) = (engine.RunDir(tmp_path / name).metrics() for name in ("all", "one-less"))
    assert less["time_s"] == pytest.approx(3.0 * full["time_s"], rel=1e-6)


def test_sub_models_shrink_travel_and_train(small, tmp_path):
    engine.start(engine.prepare(small("run.rounds=6", "fleet.heterogeneity=8")), tmp_path / "run")
    run = engine.RunDir(tmp_path / "run")
    records = run.metrics()
    assert set(records[0]["retention"].values()) == {1.0}
    slow = [record["retention"]["device-3"] for record in records]
    assert slow[0] == slow[1] == 1.0 and slow[2] < 0.8 and slow[4] < slow[2]
    assert records[-1]["retention"]["device-0"] == 1.0
    assert records[-1]["upload_bytes"] < 0.8 * records[0]["upload_bytes"]
    model, plan = run.model("device-3")
    full, _ = run.model()
    assert plan.retention < 0.8
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in full.parameters())


def test_bytes_are_those_of_the_messages(small, tmp_path):
    prepared = engine.prepare(fedavg(small))
    engine.start(prepared, tmp_path / "run")
    (record,) = engine.RunDir(tmp_path / "run").metrics()
    values = sum(t.numel() * t.element_size() for t in prepared.model.state_dict().values())
    for key in ("upload_bytes", "download_bytes"):
        per_device = record[key] / 4
        assert values < per_device < values + 150 * len(prepared.model.state_dict()) + 1500


def test_the_same_seed_is_the_same_run_and_its_config_reruns_it(small, tmp_path):
    engine.start(engine.prepare(small()), tmp_path / "a")
    engine.start(engine.prepare(engine.load_experiment(tmp_path / "a" / rundir.CONFIG)), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert (tmp_path / "a" / rundir.METRICS).read_bytes() == (tmp_path / "b" / rundir.METRICS).read_bytes()
    engine.start(engine.prepare(small("run.seed=1")), tmp_path / "c")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("moment", ["before the first round", "after the record", "after the checkpoint"])
@pytest.mark.parametrize("round_", [1, 2, 3, 4])
def test_resuming_equals_never_stopping(small, tmp_path, monkeypatch, moment, round_):
    engine.start(engine.prepare(small()), tmp_path / "whole")

    save, append = checkpoints.save, rundir.append_metrics

    def dying_save(path, checkpoint):
        if moment == "after the record" and checkpoint.state.round == round_:
            raise Killed
        save(path, checkpoint)
        if moment == "after the checkpoint" and checkpoint.state.round == round_:
            raise Killed

    def dying_append(path, record):
        if moment == "before the first round" and record["round"] == round_:
            with path.open("a") as file:
                file.write('{"round": ')  # half a line, as a crash leaves it
            raise Killed
        append(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying_save)
        patch.setattr(rundir, "append_metrics", dying_append)
        with pytest.raises(Killed):
            engine.start(engine.prepare(small()), tmp_path / "cut")
    engine.resume(tmp_path / "cut", None)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    for name in (rundir.METRICS, rundir.CONFIG, checkpoints.FILE):
        if name == checkpoints.FILE:
            continue  # holds wall-clock totals; its weights were compared above
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_a_finished_run_changes_nothing(small, tmp_path):
    engine.start(engine.prepare(small()), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert engine.resume(tmp_path / "run", None) == engine.RunDir(tmp_path / "run").summary()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def dying(round_, *, saved):
    """checkpoints.save of a process that ends at the checkpoint of ``round_``, before or once it is written."""
    save = checkpoints.save

    def save_and_die(path, checkpoint):
        if saved or checkpoint.state.round != round_:
            save(path, checkpoint)
        if checkpoint.state.round == round_:
            raise Killed

    return save_and_die


@pytest.mark.parametrize("algorithm", ["adaptcl", "fedasync"])
def test_a_round_made_the_last_is_judged_as_the_last(latency, tmp_path, monkeypatch, algorithm):
    make = maker(latency, f"algorithm.name={algorithm}", "algorithm.calibrate=2", "run.evaluate_every=3", *SETS)
    engine.start(engine.prepare(make("run.rounds=4")), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying(4, saved=True))
        with pytest.raises(Killed):
            engine.start(engine.prepare(make("run.rounds=9")), tmp_path / "cut")
    assert engine.RunDir(tmp_path / "cut").metrics()[-1]["accuracy"] is None
    engine.resume(tmp_path / "cut", None, rounds=4)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    for name in (rundir.METRICS, rundir.CONFIG):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, cut = (engine.RunDir(tmp_path / name).summary() for name in ("whole", "cut"))
    assert all(whole[key] == cut[key] for key in ("accuracy", "rounds", "time_s", "upload_bytes", "download_bytes"))


def test_a_run_killed_before_and_after_its_first_record_goes_on(small, tmp_path, monkeypatch):
    engine.start(engine.prepare(small()), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying(0, saved=False))
        with pytest.raises(Killed):
            engine.start(engine.prepare(small()), tmp_path / "cut")
        patch.setattr(checkpoints, "save", dying(1, saved=False))
        with pytest.raises(Killed):
            engine.resume(tmp_path / "cut", None)
    engine.resume(tmp_path / "cut", None)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert (tmp_path / "cut" / rundir.METRICS).read_bytes() == (tmp_path / "whole" / rundir.METRICS).read_bytes()


def test_a_longer_run_is_a_resumed_shorter_one(small, tmp_path):
    engine.start(engine.prepare(small("run.rounds=5")), tmp_path / "long")
    engine.start(engine.prepare(small("run.rounds=2")), tmp_path / "short")
    engine.resume(tmp_path / "short", None, rounds=5)
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))


def test_a_folder_in_use_is_left_alone(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    with pytest.raises(EdgePruneError, match="not empty"):
        engine.start(engine.prepare(small()), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_checkpoint_is_one_sentence(small, tmp_path, damage):
    engine.start(engine.prepare(small()), tmp_path / "run")
    path = tmp_path / "run" / checkpoints.FILE
    blob = path.read_bytes()
    path.write_bytes({"cut": blob[: len(blob) // 2], "garbage": b"\xff" * 1000, "empty": b""}[damage])
    with pytest.raises(EdgePruneError, match="not a readable checkpoint"):
        engine.resume(tmp_path / "run", None)


def test_a_damaged_record_is_one_sentence(small, tmp_path):
    engine.start(engine.prepare(small()), tmp_path / "run")
    path = tmp_path / "run" / rundir.METRICS
    path.write_text("[]\n" + path.read_text())
    with pytest.raises(EdgePruneError, match="line 1 is not a JSON object"):
        engine.RunDir(tmp_path / "run").metrics()


def test_records_are_strict_json(small, tmp_path):
    engine.start(engine.prepare(small()), tmp_path / "run")
    for line in (tmp_path / "run" / rundir.METRICS).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_latency_table_for_other_batches_is_refused(small):
    with pytest.raises(EdgePruneError, match="batches of 32"):
        engine.prepare(small("algorithm.batch_size=16"))


def test_calibration_is_counted_beside_the_training_clock(small, tmp_path):
    engine.start(engine.prepare(small("run.evaluate_every=4")), tmp_path / "rarely")
    engine.start(engine.prepare(small("run.evaluate_every=1")), tmp_path / "often")
    rarely, often = (engine.RunDir(tmp_path / name) for name in ("rarely", "often"))
    assert [r["time_s"] for r in rarely.metrics()] == [r["time_s"] for r in often.metrics()]
    assert [r["calibration"] is None for r in rarely.metrics()] == [True, True, True, False]
    last = rarely.metrics()[-1]
    assert last["calibration"]["time_s"] > 0
    assert rarely.summary()["time_s"] == pytest.approx(last["time_s"] + last["calibration"]["time_s"])
    assert same(weights(tmp_path / "rarely"), weights(tmp_path / "often"))


def test_a_device_that_fails_in_calibration_is_left_out_and_named(small, tmp_path):
    fault = 'fleet.fault=[{device="device-2", kind="nan", first=4, last=4}]'
    engine.start(engine.prepare(small("run.evaluate_every=4", fault)), tmp_path / "run")
    record = engine.RunDir(tmp_path / "run").metrics()[-1]
    assert "not finite" in record["calibration"]["rejected"]["device-2"]
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values() if t.is_floating_point())


def test_batches_of_one_sample_are_calibrated_with(small, tmp_path):
    table = LatencyTable("digits", 1, (10_000, 10_000_000), (0.9, 9.0), (0.3, 3.0), 1.0)
    (tmp_path / "one.json").write_text(json.dumps(table.to_json()))
    sets = ("algorithm.batch_size=1", "run.rounds=1", "data.samples=24", f"fleet.latency={tmp_path / 'one.json'}")
    engine.start(engine.prepare(small(*sets)), tmp_path / "run")
    record = engine.RunDir(tmp_path / "run").metrics()[-1]
    assert not record["calibration"]["rejected"] and record["calibration"]["time_s"] > 0


def dropping():
    """Digits; what a batch-norm sees has been through dropout."""

    def make():
        layers = (nn.Dropout(0.5), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        return nn.Sequential(nn.Flatten(), *layers)

    return replace(get_task("digits"), make_model=make)


def test_what_calibration_draws_is_the_runs_own(small, tmp_path):
    """Whatever the process drew before: a run that was resumed ends with the bits of one that never stopped."""
    experiment = small(f"task.name={__name__}:dropping", "run.rounds=1", "algorithm.calibrate=1")
    for name in ("one", "other"):
        torch.rand(7)
        engine.start(engine.prepare(experiment), tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))


class Projected(torch.nn.Module):
    """Random features that no state dictionary holds, and what is learnt of them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(64, 128), persistent=False)
        self.head = torch.nn.Linear(128, 10)

    def forward(self, x):
        return self.head(torch.cos(x.flatten(1) @ self.features * 0.1))


def projecting():
    """Digits by random features."""
    return replace(get_task("digits"), make_model=Projected)


def test_the_model_that_is_judged_and_kept_is_the_one_that_was_trained(small, tmp_path):
    experiment = small(f"task.name={__name__}:projecting", "run.rounds=20", "data.samples=400")
    prepared = engine.prepare(replace(experiment, algorithm=FedAvg(lr=0.5)))
    engine.start(prepared, tmp_path / "run")
    accuracy = engine.RunDir(tmp_path / "run").summary()["accuracy"]
    model, _ = engine.RunDir(tmp_path / "run").model()
    x, y = prepared.data.test.x, prepared.data.test.y
    with torch.no_grad():
        right = model.eval()(prepared.data.normalise(x)).argmax(1) == y
    assert float(right.double().mean()) == pytest.approx(accuracy) and accuracy > 0.4
