"""``edgeprune prune``: MODEL in its three forms, every way to say how much, and what a user gets wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from torch import nn

import edgeprune
from edgeprune import EdgePruneError, engine
from edgeprune.cli import export
from edgeprune.cli.prune import command
from edgeprune.pruning import cost, files

MODULE = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(32, 4))

def pair():
    return plain(), torch.randn(2, 3, 12, 12)

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_net", None)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    engine.start(engine.prepare(engine.load_experiment(None, ["run.rounds=2", "fleet.devices=2"]), None), folder)
    return folder


def invoke(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(command, [str(a) for a in args])


def own() -> nn.Module:
    import own_net

    return own_net.plain()


def test_a_users_function_with_a_shape(beside: Path) -> None:
    done = invoke("own_net:plain", "--input", "2,3,12,12", "--budget", "macs=0.5", "--round-to", 4, "-o", "small")
    assert done.exit_code == 0, done.output
    model, plan = edgeprune.load("small", own)
    x = torch.randn(2, 3, 12, 12)
    assert cost.macs(model, x) <= 0.5 * cost.macs(own(), x) and all(c % 4 == 0 for c in plan.counts.values())
    assert f"{cost.macs(model, x):,}" in done.output
    said = files.describe("small")
    assert said["kept"] == plan.counts and said["macs"] == cost.macs(model, x)
    for path in ("small/plan.json", "small/model.safetensors"):
        assert str(beside).encode() not in Path(path).read_bytes()


def test_the_pruned_model_exports_from_its_folder(beside: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    assert invoke("own_net:pair", "--keep", 0.5, "-o", "small").exit_code == 0
    model, plan = edgeprune.load("small", own)
    rows = torch.randn(40, 3, 12, 12)
    np.savez("rows.npz", x=rows.numpy())
    np.savez("none.npz", x=rows[:0].numpy())
    np.savez("flat.npz", x=np.zeros((5, 12), np.float32))
    for extra in ([], ["--precision", "int8", "--calibration", "rows.npz"]):
        args = ["own_net:pair", "--pruned", "small", "-o", "m.onnx", "--target", "jetpack5", *extra]
        done = CliRunner().invoke(export.command, args)
        assert done.exit_code == 0 and "agrees with torch" in done.output, (done.output, done.exception)
        session = ort.InferenceSession("m.onnx")
        entries = session.get_modelmeta().custom_metadata_map
        assert json.loads(entries["edgeprune.kept_channels"]) == plan.counts
        with torch.no_grad():
            want = model(rows).numpy()
        got = session.run(None, {"input": rows.numpy()})[0]
        assert np.linalg.norm(got - want) <= (0.2 if extra else 1e-5) * np.linalg.norm(want)
    for args, words in (
        (["own_net:pair", "--client", "a"], "are for runs"),
        (["small", "--pruned", "small"], "are for a MODEL"),
        (["own_net:pair", "--precision", "int8"], "needs calibration inputs"),
        (["own_net:pair", "--pruned", "none"], "cannot be read"),
        (["own_net:pair", "--calibration", "none.npz"], "holds 0 rows of shape"),
        (["own_net:pair", "--calibration", "flat.npz"], r"holds 5 rows of shape (12,); give at least one of shape (3"),
        (["x" * 300], "not a run directory"),
    ):
        done = CliRunner().invoke(export.command, [*args, "-o", "n.onnx"])
        assert isinstance(done.exception, EdgePruneError) and words in str(done.exception)
    assert not Path("n.onnx").exists()


def test_a_pruned_task_exports_under_the_tasks_name(run_dir: Path, beside: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert invoke(run_dir, "--keep", 0.5, "-o", "small").exit_code == 0
    done = CliRunner().invoke(export.command, [str(run_dir), "--pruned", "small", "-o", "m.onnx"])
    said = str(done.exception)
    assert isinstance(done.exception, EdgePruneError) and "export digits --pruned small -o m.onnx" in said
    args = said.partition("edgeprune export ")[2].split()
    done = CliRunner().invoke(export.command, args)
    assert done.exit_code == 0 and "agrees with torch" in done.output, (done.output, done.exception)
    assert "random;" not in done.output and Path("m.onnx").exists()
    done = CliRunner().invoke(export.command, ["digits", "-o", "n.onnx"])
    assert done.exit_code == 0 and "its weights are random" in done.output, (done.output, done.exception)


def test_what_stays_and_where_the_weights_come_from(beside: Path) -> None:
    state = {n: t + 1 for n, t in own().state_dict().items()}
    safetensors.torch.save_file(state, "w.safetensors")
    done = invoke("own_net:pair", "--keep", 0.5, "--protect", "0", "--weights", "w.safetensors", "-o", "small")
    assert done.exit_code == 0, done.output
    model, plan = edgeprune.load("small", own)
    assert model[0].out_channels == 16 and model[2].out_channels == 16
    assert torch.equal(model[0].weight, state["0.weight"])


def test_one_frozen_order_gives_nested_models(beside: Path) -> None:
    for keep in (0.3, 0.7):
        done = invoke("own_net:pair", "--keep", keep, "--order", "order.json", "-o", f"s{keep}")
        assert done.exit_code == 0, done.output
    small, large = (edgeprune.load(f"s{keep}", own)[1] for keep in (0.3, 0.7))
    assert all(set(small.kept[g]) <= set(large.kept[g]) for g in small.kept)


def test_milliseconds_by_a_table_of_layers_measured_here(beside: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = invoke("own_net:pair", "--keep", 0.9, "--latency", "t.json", "-o", "first")
    assert done.exit_code == 0 and "milliseconds, by its table" in done.output, done.output
    table = json.loads(Path("t.json").read_text())
    assert table["format"] == "edgeprune.layers/1" and str(beside) not in Path("t.json").read_text()
    # Times of this machine may be anything; made dearer by hand they decide.
    table["layers"] = {"3x3@100": [[16, 3, 1.0], [8, 3, 1.0]], "3x3@64": [[32, 16, 8.0], [16, 16, 4.0], [16, 8, 2.0]]}
    table["layers"]["@1"] = [[4, 32, 0.001]]
    table["rest"] = [[5000, 5000, 0.001]]
    Path("t.json").write_text(json.dumps(table))
    done = invoke("own_net:pair", "--budget", "ms=5", "--scope", "cost", "--latency", "t.json", "-o", "small")
    assert done.exit_code == 0, done.output
    assert edgeprune.load("small", own)[1].counts["2"] <= 16


def test_a_runs_checkpoint_with_its_data(run_dir: Path, tmp_path: Path) -> None:
    done = invoke(run_dir, "--keep", 0.6, "--importance", "taylor", "-o", tmp_path / "small")
    assert done.exit_code == 0 and "accuracy, not trained further" in done.output, done.output
    task = engine.rundir.RunDir(run_dir).task()
    model, _ = edgeprune.load(tmp_path / "small", task.make_model)
    whole, _ = engine.rundir.RunDir(run_dir).model(None)
    assert sum(p.numel() for p in model.parameters()) < 0.7 * sum(p.numel() for p in whole.parameters())
    assert sorted(os.listdir(tmp_path)) == ["small"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["own_net:plain"], "its inputs are not known"),
        (["own_net:number"], "it returned int"),
        (["own_net:broken"], "no weights here"),
        (["own_net:plan"], "did you mean 'plain'"),
        (["no_such:thing"], "cannot import 'no_such'"),
        (["digit"], "did you mean 'digits'"),
        (["own_net:plain", "--input", "2,x"], "write a shape such as"),
        (["own_net:plain", "--input", "2,-3,8,8"], "every size is at least 1"),
        (["own_net:plain", "--input", "2,3,99999,99999"], "fits memory"),
        (["own_net:plain", "--input", "4294967296,4294967296"], "fits memory"),
        (["own_net:plain", "--input", "99999999999999999999999,2"], "fits memory"),
        (["x" * 300], "known are"),
        (["own_net:pair", "--latency", "t" * 300], "cannot name a file"),
        (["own_net:pair", "--keep", "0.5", "--budget", "macs=0.5"], "two ways to say it"),
        (["own_net:pair", "--budget", "macs"], "write UNIT=LIMIT"),
        (["own_net:pair", "--budget", "flops=0.5"], "unknown unit 'flops'"),
        (["own_net:pair", "--budget", "ms=3"], "milliseconds need measured times"),
        (["own_net:pair", "--latency", "no/t.json"], "does not exist"),
        (["own_net:pair", "--latency", "own_net.py"], "not JSON"),
        (["own_net:pair", "--order", "own_net.py"], "--order own_net.py: this is not a ranking"),
        (["own_net:pair", "--weights", "own_net.py"], "is not a safetensors file"),
        (["own_net:pair", "--weights", "none.safetensors"], "cannot be read"),
        (["own_net:pair", "--protect", "heads"], "no tensor of the model matches 'heads'"),
        (["own_net:pair", "--importance", "taylor"], "taylor needs data"),
    ],
    ids=range(24),
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(beside: Path, args: list[str], words: str) -> None:
    before = sorted(p for p in os.listdir(beside) if p != "__pycache__")
    done = invoke(*args, "-o", "small")
    assert isinstance(done.exception, EdgePruneError) and words in str(done.exception)
    assert sorted(p for p in os.listdir(beside) if p != "__pycache__") == before


def test_a_name_that_no_folder_can_have_is_refused(beside: Path) -> None:
    done = invoke("own_net:pair", "-o", "s" * 300)
    assert isinstance(done.exception, EdgePruneError) and "cannot name a folder" in str(done.exception)


def test_a_folder_that_is_there_is_not_touched(beside: Path) -> None:
    (beside / "small").mkdir()
    done = invoke("own_net:pair", "-o", "small")
    assert "is there already" in str(done.exception) and os.listdir("small") == []
