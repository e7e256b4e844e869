"""Short experiments on real digits, on a fixed latency table so that nothing waits for a measurement."""

from __future__ import annotations

import json
import shutil

import pytest
from short_runs import SETS

from edgeprune import engine
from edgeprune.engine import load_experiment
from edgeprune.fleet import LatencyTable


@pytest.fixture
def latency(tmp_path):
    """A latency table's file: time grows with size, a tenth of it never shrinks."""
    table = LatencyTable(
        "digits", 32, (10_000, 100_000, 1_000_000, 10_000_000), (0.9, 1.0, 2.0, 9.0), (0.3, 0.4, 0.7, 3.0), 1.0
    )
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_json()))
    return path


@pytest.fixture
def small(latency):
    """``small("key.path=value", ...)``: an experiment of a few seconds at most."""

    def make(*sets: str):
        return load_experiment(
            None,
            [
                "run.rounds=4",
                "run.threads=1",
                "data.samples=200",
                "fleet.devices=4",
                "algorithm.interval=2",
                f"fleet.latency={json.dumps(str(latency))}",
                *sets,
            ],
        )

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of two rounds."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    engine.start(engine.prepare(load_experiment(None, SETS)), path)
    return path


@pytest.fixture
def ran(finished, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "ran")
