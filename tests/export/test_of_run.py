"""``edgeprune export`` on a real short run, and on runs that cannot be exported."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from edgeprune import engine
from edgeprune.cli import export as cli
from edgeprune.data import DataSet, Split
from edgeprune.engine.rundir import RunDir
from edgeprune.errors import EdgePruneError
from edgeprune.export import of_run
from edgeprune.export.infer import infer_on
from edgeprune.export.of_run import export_run
from edgeprune.export.recalibrate import has_statistics
from edgeprune.tasks import Task, evaluate

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three devices, four rounds of AdaptCL on digits, pruned after the first."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    sets = ["run.rounds=4", "fleet.devices=3", "algorithm.interval=1", "algorithm.min_channels=2"]
    engine.start(engine.prepare(engine.load_experiment(None, sets), None), folder)
    return folder


def slowest(run_dir: Path) -> str:
    kept = RunDir(run_dir).metrics()[-1]["retention"]
    name = min(kept, key=kept.__getitem__)
    assert kept[name] < 0.95  # else these tests say nothing about pruning
    return str(name)


def test_a_devices_part_computes_what_torch_computes(run_dir: Path, tmp_path: Path) -> None:
    client = slowest(run_dir)
    done = export_run(run_dir, tmp_path / "small.onnx", client=client, seconds=0.0)
    assert done.part is not None
    assert done.part.parameters < 0.95 * done.whole.parameters and done.part.macs < done.whole.macs
    assert done.part.size_bytes == (tmp_path / "small.onnx").stat().st_size < done.whole.size_bytes
    assert done.parity.real_inputs and done.parity.argmax_agreement == 1.0
    assert os.listdir(tmp_path) == ["small.onnx"]

    # The same said again without any of our comparison code.
    model, plan = RunDir(run_dir).model(client)
    data = RunDir(run_dir).task().load_data(None)
    session = ort.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        x = data.normalise(data.test.x[:batch])
        with torch.no_grad():
            want = model.eval()(x).numpy()
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    entries = {e.key: e.value for e in onnx.load(str(tmp_path / "small.onnx")).metadata_props}
    assert plan is not None and entries["edgeprune.plan"] == plan.id
    assert json.loads(entries["edgeprune.kept_channels"]) == {g: len(kept) for g, kept in plan.kept.items()}
    assert entries["edgeprune.method"] == "adaptcl" and client not in entries.values()


def test_whole_model(run_dir: Path, tmp_path: Path) -> None:
    done = export_run(run_dir, tmp_path / "whole.onnx", target="jetpack7", seconds=0.0)
    assert done.part is None and done.file.opset == 18
    assert done.whole.parameters == sum(p.numel() for p in RunDir(run_dir).model(None)[0].parameters())
    recorded = RunDir(run_dir).metrics()[-1]["accuracy"]
    assert done.whole.accuracy == pytest.approx(recorded)  # the same test set, the same answer


def test_recalibration_changes_statistics_only(run_dir: Path, tmp_path: Path) -> None:
    client = slowest(run_dir)
    plain = export_run(run_dir, tmp_path / "a.onnx", client=client, seconds=0.0)
    better = export_run(run_dir, tmp_path / "b.onnx", client=client, recalibrate=True, seconds=0.0)
    assert plain.has_statistics and better.recalibrated
    assert plain.part is not None and better.part is not None
    assert better.part.parameters == plain.part.parameters
    assert better.part.accuracy is not None and plain.part.accuracy is not None
    assert better.part.accuracy >= plain.part.accuracy - 0.02
    assert better.file.metadata["edgeprune.recalibrated"] == "true"
    digests = {done.file.metadata["edgeprune.weights_sha256"] for done in (plain, better)}
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_other_precisions_state_their_own_accuracy(run_dir: Path, tmp_path: Path, kind: str) -> None:
    shown = invoke(run_dir, "--client", slowest(run_dir), "-o", tmp_path / "m.onnx", "--precision", kind)
    assert shown.exit_code == 0 and f"accuracy of the {kind} file itself" in shown.output, shown.output
    entries = {e.key: e.value for e in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    data = RunDir(run_dir).task().load_data(None)
    found = infer_on(tmp_path / "m.onnx", data)
    assert entries["edgeprune.precision"] == kind == found.precision
    assert found.accuracy == pytest.approx(float(entries["edgeprune.accuracy"]), abs=1e-6)
    assert found.accuracy == pytest.approx(infer_on_torch(run_dir, slowest(run_dir)), abs=0.1)


def infer_on_torch(run_dir: Path, client: str) -> float:
    run = RunDir(run_dir)
    return evaluate(run.model(client)[0], run.task().load_data(None), run.task())[0]


def test_int8_without_the_data_is_refused(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_run, "_load", lambda *_: (None, "digits not found in nowhere"))
    with pytest.raises(EdgePruneError, match="int8 is calibrated on the task's training data"):
        export_run(run_dir, tmp_path / "m.onnx", precision="int8")


def test_without_the_data_it_compares_on_random_inputs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_run, "_load", lambda *_: (None, "digits not found in nowhere"))
    done = export_run(run_dir, tmp_path / "m.onnx", seconds=0.0)
    assert not done.parity.real_inputs and done.whole.accuracy is None and done.accuracy_rows == 0
    shown = invoke(run_dir, "-o", str(tmp_path / "n.onnx"))
    assert shown.exit_code == 0 and "random inputs" in shown.output and "digits not found in nowhere" in shown.output
    with pytest.raises(EdgePruneError, match="--recalibrate needs the task's training data"):
        export_run(run_dir, tmp_path / "o.onnx", recalibrate=True)


def invoke(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli.command, [str(arg) for arg in args])


def test_command_prints_both_sides(run_dir: Path, tmp_path: Path) -> None:
    client = slowest(run_dir)
    shown = invoke(run_dir, "--client", client, "-o", tmp_path / "m.onnx")
    assert shown.exit_code == 0, shown.output
    for words in ("parameters", "multiply-adds", "file size", "ONNX Runtime, batch 1", client, "largest difference"):
        assert words in shown.output
    assert "same class for 100.0%" in shown.output and "opset 17, IR 8" in shown.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--client", "device-9", "-o", "m.onnx"], "no client 'device-9'; it has device-0, device-1, device-2"),
        (["-o", "m.onnx", "--target", "jetpack9"], "unknown target 'jetpack9'"),
        (["-o", "missing/m.onnx"], "does not exist"),
        (["-o", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    args: list[str], words: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = invoke(run_dir, *args)
    assert isinstance(shown.exception, EdgePruneError), shown.output
    assert words in str(shown.exception) and "\n" not in str(shown.exception)
    assert os.listdir(tmp_path) == []


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="not a run directory"):
        export_run(tmp_path, tmp_path / "m.onnx")


def test_disagreement_leaves_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(*_: object, **__: object) -> None:
        raise EdgePruneError("export: the file and the model disagree")

    monkeypatch.setattr(of_run, "check_parity", disagree)
    with pytest.raises(EdgePruneError, match="disagree"):
        export_run(run_dir, tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


def test_digits_has_batch_norm(run_dir: Path) -> None:
    assert has_statistics(RunDir(run_dir).model(None)[0])


def test_a_run_whose_task_was_changed_says_so(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    config = other / "config.toml"
    config.write_text(config.read_text().replace('"digits"', '"uci-har"'))
    with pytest.raises(EdgePruneError, match="^.*/run[:/].*config.toml") as caught:
        export_run(other, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == ["run"]


@dataclass(frozen=True)
class Shifted:
    """Numbers named as Standardise's are, with another meaning, and one that no JSON holds."""

    mean: tuple[float, ...] = (1.0,)
    std: tuple[float, ...] = (0.5,)
    unit: float = 3.0
    beside: complex = 1j

    def __call__(self, x: Tensor) -> Tensor:
        return x.float().sub_(self.mean[0]).mul_(self.unit * self.std[0])  # in place, where x is float32


class Heads(nn.Module):
    """In place, in double precision; one score for each of two questions, and a head that nobody asks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aside = nn.Linear(4, 8).double(), nn.Linear(8, 2).double(), nn.Linear(8, 1).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu_(self.body(x.mul_(2.0)))
        return {"aside": self.aside(x), "asked": self.head(x)}


def own_task() -> Task:
    """Two yes-or-no questions about each sample."""
    x = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :2] + x[:, 2:] > 0).long()
    shift = Shifted()
    return Task(
        "own",
        lambda: DataSet("own", Split(x[:120], y[:120]), Split(x[120:], y[120:]), (), lambda v: shift(v).double()),
        Heads,
        lambda: (torch.zeros(2, 4, dtype=torch.float64),),
        batch_size=16,
        lr=0.2,
        loss=lambda output, y: nn.functional.binary_cross_entropy_with_logits(output["asked"], y.double()),
        correct=lambda output, y: int(((output["asked"] > 0) == (y > 0)).sum()),
    )


@pytest.mark.parametrize("batch", [None, 7])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_users_task_judges_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, batch: int | None
) -> None:
    """Answers that are no classes, outputs with names, rows in double precision, parts that compute in place."""
    task = own_task()
    monkeypatch.setattr("edgeprune.engine.run.get_task", lambda name: task)
    monkeypatch.setattr("edgeprune.engine.rundir.get_task", lambda name: task)
    sets = ["run.rounds=6", "fleet.devices=2", "algorithm.name=fedavg"]
    engine.start(engine.prepare(engine.load_experiment(None, sets), None), tmp_path / "run")
    done = export_run(tmp_path / "run", tmp_path / "m.onnx", precision=precision, batch=batch, seconds=0.0)
    assert done.whole.accuracy == RunDir(tmp_path / "run").metrics()[-1]["accuracy"] > 0.75
    if precision != "fp32":
        assert done.file_accuracy == pytest.approx(done.whole.accuracy, abs=0.05)
        assert done.file.metadata["edgeprune.accuracy"] == f"{done.file_accuracy}"


def test_a_normalisation_of_ones_own_is_not_told_as_ours(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = RunDir(run_dir).task()
    own = replace(task, dataset=lambda: replace(task.load_data(None), normalise=Shifted()))
    monkeypatch.setattr("edgeprune.engine.rundir.get_task", lambda name: own)
    done = export_run(run_dir, tmp_path / "a.onnx", precision="fp16", seconds=0.0)
    assert "edgeprune.normalisation" not in done.file.metadata
    assert done.file_accuracy == pytest.approx(done.whole.accuracy, abs=0.02)
