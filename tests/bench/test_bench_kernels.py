"""``edgeprune bench kernels``: the rule it derives, and the command on a few small layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeprune.bench import kernels
from edgeprune.ops import crossover


def rows(kind: str, layer: str, positions: int, gains: dict[float, float]) -> list[dict[str, object]]:
    return [
        {"layer": layer, "kind": kind, "positions": positions, "threads": 1, "density": density}
        | {
            f"{work}_{path}_ms": 10.0 + (gain if path == "dense" else 0.0)
            for work in kernels.WORKS
            for path in kernels.PATHS
        }
        for density, gain in gains.items()
    ]


def test_crossing_by_hand() -> None:
    assert kernels.crossing(rows("conv", "a", 1, {0.1: 3.0, 0.5: -1.0}), "step") == 0.4
    assert kernels.crossing(rows("conv", "a", 1, {0.5: 1.0, 0.1: 3.0}), "step") == 1.0
    assert kernels.crossing(rows("conv", "a", 1, {0.1: -1.0, 0.5: 3.0}), "forward") == 0.0


def test_rule_takes_the_lowest_of_shapes_alike_in_positions() -> None:
    every = [row for kind in crossover.KINDS for row in rows(kind, f"{kind} b", 8, {0.1: 1.0, 0.3: -1.0})]
    every += rows("conv", "conv a", 8, {0.1: 3.0, 0.5: -1.0}) + rows("conv", "conv c", 2, {0.1: 1.0})
    tables = kernels.tables_of(every)
    assert tables[1]["step"]["conv"] == ((2.0, 1.0), (8.0, 0.2))
    assert crossover.from_json(crossover.to_json(tables))[0] == tables


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [kernels.Shape(kind, 2, 4, 4, 1 if kind == "linear" else 3, 1) for kind in ("linear", "conv1x1")]
    small += [kernels.Shape("conv", 2, 4, 16, 3, 3), kernels.Shape("conv_odd", 2, 4, 4, 3, 3)]
    small += [kernels.Shape("grouped", 2, 4, 4, 3, 3, 1, 4)]
    monkeypatch.setattr(kernels, "SHAPES", small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = dict(crossover._state)
    try:
        output = tmp_path / "out.json"
        done = CliRunner().invoke(kernels.command, ["-o", str(output), "--threads", "1", "--seconds", "0.001"])
        assert done.exit_code == 0, done.output
        assert "chosen up to" in done.output and "multiply-add peak" in done.output
        assert max(len(line) for line in done.output.splitlines()) <= 80
        found = json.loads(output.read_text())
        assert len(found["results"]) == len(small) * len(kernels.DENSITIES)
        assert all(row["step_sparse_ms"] > 0 for row in found["results"])
        tables, machine = crossover.from_json(crossover.cache_file().read_text())
        assert set(tables) == {1} and machine == crossover.fingerprint()
        assert tables == crossover._state["tables"]
    finally:
        crossover._state.update(before)
