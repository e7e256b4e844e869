"""The example experiments from end to end, on digits and a few devices: every key they set is one that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune import engine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "feddst": ("run.rounds=4", "algorithm.interval=2", "algorithm.sample=3", "fleet.devices=6", "data.per_class=10"),
    "mpfl": ("run.rounds=9", "data.samples=120", "fleet.devices=3"),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("executor", ["serial", "batched"])
def test_an_example_runs_to_its_end(latency, tmp_path, name, executor):
    own = ("task.name=digits", "run.evaluate_every=2", f"run.executor={executor}", "algorithm.epochs=1")
    sets = [*own, *SMALL[name], f"fleet.latency={json.dumps(str(latency))}"]
    experiment = engine.load_experiment(EXAMPLES / f"{name}.toml", sets)
    assert experiment.algorithm.name == name
    summary = engine.start(engine.prepare(experiment), tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert summary["rounds"] == len(records) and summary["rejected"] == 0
    assert engine.load_experiment(tmp_path / "run" / "config.toml").algorithm == experiment.algorithm
    if name == "feddst":  # masks moved at the end of the second round, and stayed as large
        assert [record["facts"]["density"] for record in records] == [pytest.approx(0.2, abs=1e-4)] * 4
        assert records[1]["facts"]["grown"] > 0
    else:  # seven iterations of search, then the small model
        assert "agreement" in records[6]["facts"] and records[8]["upload_bytes"] > records[6]["upload_bytes"]
        assert max(records[8]["retention"].values()) < 0.5
