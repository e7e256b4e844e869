"""A device whose own work fails says why; the others go on. Where none can go on the run ends with the sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from short_runs import maker, resumed_equals_whole

from edgeprune import engine
from edgeprune.engine import executor
from edgeprune.errors import EdgePruneError

DST = ("algorithm.name=feddst", "algorithm.interval=1", "algorithm.end=10", "algorithm.epochs=1")
MPFL = ("algorithm.name=mpfl", "algorithm.iterations=2")


@pytest.fixture
def tiny(latency):
    return maker(latency, "fleet.devices=4", "data.samples=160", "run.rounds=3")


def blinded(prepared, names):
    """All pictures as floats, those of ``names`` NaN."""
    local = {name: replace(part, x=part.x.float()) for name, part in prepared.local.items()}
    for name in names:
        local[name] = replace(local[name], x=torch.full_like(local[name].x, float("nan")))
    return replace(prepared, local=local)


@pytest.mark.parametrize("how", ["serial", "batched"])
@pytest.mark.parametrize(("sets", "sentence"), [(DST, "NaN"), (MPFL, "NaN or infinity")], ids=["feddst", "mpfl"])
def test_one_that_sees_nan_is_left_out_and_named(tiny, tmp_path, sets, sentence, how):
    prepared = blinded(engine.prepare(tiny(*sets, f"run.executor={how}")), ["device-2"])
    engine.start(prepared, tmp_path / "run")
    run = engine.RunDir(tmp_path / "run")
    first = run.metrics()[0]
    assert first["rejected"].keys() == {"device-2"} and sentence in first["rejected"]["device-2"]
    assert first["participants"] == ["device-0", "device-1", "device-3"]
    assert run.summary()["rejected"] == 3
    assert all(bool(t.isfinite().all()) for t in run.model()[0].state_dict().values())


def test_where_none_can_go_on_the_run_ends_with_the_sentence(tiny, tmp_path):
    prepared = engine.prepare(tiny(*MPFL))
    with pytest.raises(EdgePruneError, match="round 1: device-0: the sub-model's '.*' holds NaN"):
        engine.start(blinded(prepared, prepared.local), tmp_path / "run")


def fails(client):
    """train_one, but for ``client``."""
    real = executor.train_one

    def one(shelf, order, loss_of):
        if order.message.client == client:
            raise EdgePruneError("the sensor is covered; wipe it")
        return real(shelf, order, loss_of)

    return one


def test_it_has_taken_its_time_and_the_reason_survives_a_resume(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "train_one", fails("device-1"))
    experiment = tiny("algorithm.name=fedbuff", "algorithm.buffer=2", "run.rounds=6", "fleet.heterogeneity=3")
    resumed_equals_whole(experiment, tmp_path, monkeypatch, 1)
    records = engine.RunDir(tmp_path / "whole").metrics()
    rejected = [record for record in records if record["rejected"]]
    assert rejected and all(r["rejected"] == {"device-1": "the sensor is covered; wipe it"} for r in rejected)
    assert all(record["participants"] for record in records)
    took = [record["update_time_s"]["device-1"] for record in rejected]
    assert min(took) > 0
    assert torch.tensor(took).isfinite().all()
