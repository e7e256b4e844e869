"""``edgeprune bench onnx --vs``: the ratios of its own figures, and a file that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgeprune.bench.versus import Versus, compare
from edgeprune.cli.bench import command
from edgeprune.errors import EdgePruneError
from edgeprune.export import export_onnx

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    small, large = nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 512), nn.Linear(512, 4))
    for model, name in ((small, "small"), (large, "large")):
        export_onnx(model, torch.randn(2, 8), folder / f"{name}.onnx")
    return folder / "small.onnx", folder / "large.onnx"


def test_the_speed_up_is_the_median_of_the_repeats_ratios() -> None:
    found = Versus(1, (1.0, 2.0, 4.0), (3.0, 4.0, 20.0), 30).to_dict()
    assert (found["low"], found["speedup"], found["high"]) == (2.0, 3.0, 5.0)


def test_both_files_run_equally_often(files: tuple[Path, Path]) -> None:
    (found,) = compare(*files, batches=(3,), seconds=0.01, repeats=2)
    assert found.batch == 3 and len(found.this_ms) == len(found.other_ms) == 2 and found.iterations >= 10
    assert all(t > 0 for t in (*found.this_ms, *found.other_ms))


def test_command_writes_both_sides(files: tuple[Path, Path], tmp_path: Path) -> None:
    small, large = map(str, files)
    args = ["onnx", small, "--vs", large, "--seconds", "0.05", "--repeats", "2", "--idle", "0", "--power", "none"]
    done = CliRunner(env={"COLUMNS": "160"}).invoke(command, [*args, "-o", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "r.json").read_text())["versus"]
    assert rows["file"] == "large.onnx" and [r["batch"] for r in rows["results"]] == [1, 32]
    for row in rows["results"]:
        assert f"batch {row['batch']}: {row['speedup']:.2f}x against large.onnx" in done.output


def test_a_file_that_is_not_there_is_noticed_first(files: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(command, ["onnx", str(files[0]), "--vs", "none.onnx", "--power", "none"])
    assert isinstance(done.exception, EdgePruneError) and "there is no such file" in str(done.exception)
