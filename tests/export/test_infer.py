"""``edgeprune infer``: the accuracy counted by hand, preparation by the file's metadata, and what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from edgeprune import data
from edgeprune.cli.infer import command
from edgeprune.data.normalise import Standardise
from edgeprune.errors import EdgePruneError
from edgeprune.export import export_onnx
from edgeprune.export.infer import infer, read_rows

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
NORMALISE = Standardise((0.3,), (0.5,), 16.0)


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits")


@pytest.fixture(scope="module")
def net(digits: data.DataSet) -> nn.Module:
    """One full-batch least-squares step is enough to be right often."""
    x = NORMALISE(digits.train.x).flatten(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    one_hot = nn.functional.one_hot(digits.train.y, 10).float()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), one_hot, driver="gelsd").solution
    with torch.no_grad():
        model[1].weight.copy_(solution[:-1].T)
        model[1].bias.copy_(solution[-1])
    return model.eval()


@pytest.fixture(scope="module")
def file(net: nn.Module, digits: data.DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "digits.onnx"
    x = NORMALISE(digits.test.x[:2])
    export_onnx(net, x, path, metadata={"normalisation": asdict(NORMALISE), "accuracy": 0.75})
    return path


def by_hand(net: nn.Module, digits: data.DataSet) -> float:
    with torch.no_grad():
        return float((net(NORMALISE(digits.test.x)).argmax(1) == digits.test.y).double().mean())


def invoke(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(command, [str(arg) for arg in args])


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_accuracy_is_that_of_the_model_on_rows_the_file_prepares(
    net: nn.Module, digits: data.DataSet, file: Path, batch: int
) -> None:
    want = by_hand(net, digits)
    assert want > 0.8
    done = infer(file, digits.test.x, digits.test.y, normalise=digits.normalise, batch=batch)
    assert done.accuracy == pytest.approx(want) and done.targets == done.rows == len(digits.test)
    assert done.promised == 0.75 and done.precision == "fp32"
    assert len(done.times_s) == max(1, len(digits.test) // batch)


def test_command_on_a_data_set_and_on_arrays(net: nn.Module, digits: data.DataSet, file: Path, tmp_path: Path) -> None:
    want = f"accuracy {by_hand(net, digits):.2%} on {len(digits.test):,} targets"
    done = invoke(file, "--data", "digits")
    assert done.exit_code == 0 and want in done.output and "75.00% on the whole test set" in done.output, done.output
    stored, ready = tmp_path / "stored.npz", tmp_path / "ready.npz"
    np.savez(stored, x=digits.test.x.numpy(), y=digits.test.y.numpy())
    np.savez(ready, x=NORMALISE(digits.test.x).numpy().astype(np.float64), y=digits.test.y.numpy().astype(np.uint8))
    for arrays in (stored, ready):
        assert want in invoke(file, "--data", arrays).output
    bare = tmp_path / "bare.npz"
    np.savez_compressed(bare, x=digits.test.x.numpy())
    done = invoke(file, "--data", bare, "--limit", 5, "-o", tmp_path / "classes.txt")
    assert "5 rows; no answers" in done.output and len((tmp_path / "classes.txt").read_text().split()) == 5


def test_text_counts_every_character(tmp_path: Path) -> None:
    model = nn.Embedding(5, 5)  # [N, L] -> [N, L, 5]
    with torch.no_grad():
        model.weight.copy_(torch.eye(5))
    x = torch.tensor([[0, 1, 2], [3, 4, 0]])
    path = export_onnx(model, x, tmp_path / "text.onnx").path
    assert infer(path, x, torch.tensor([[0, 1, 2], [3, 4, 4]])).accuracy == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p, f: infer(p / "none.onnx", torch.ones(1, 1, 8, 8)), "there is no such file"),
        (lambda p, f: infer(f, torch.ones(0, 1, 8, 8)), "give at least one row"),
        (lambda p, f: infer(f, torch.ones(4, 1, 9, 9)), "does not take rows of"),
        (lambda p, f: infer(f, torch.ones(4, 3, 8, 8, dtype=torch.uint8)), "does not take rows of"),
        (
            lambda p, f: infer(f, torch.ones(4, 1, 8, 8), torch.zeros(4, 2, dtype=torch.int64)),
            "does not go with answers",
        ),
        (lambda p, f: infer(f, torch.ones(4, 1, 8, 8), torch.tensor([0, 1, 77, 1])), "and one answer is 77"),
        (lambda p, f: infer(f, torch.ones(4, 1, 8, 8), torch.tensor([0, 1, -1, 1])), "and one answer is -1"),
    ],
    ids=range(7),
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, file: Path, make, words: str) -> None:
    with pytest.raises(EdgePruneError, match=words):
        make(tmp_path, file)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"normalisation": {"mean": [1.0]}},
        {"normalisation": "x"},
        {"normalisation": {"mean": [0], "std": [0], "unit": 1}},
    ],
    ids=range(4),
)
def test_integers_without_a_normalisation_are_refused(net: nn.Module, tmp_path: Path, metadata: dict) -> None:
    path = export_onnx(net, torch.ones(2, 1, 8, 8), tmp_path / "m.onnx", metadata=metadata).path
    with pytest.raises(EdgePruneError, match="normalis"):
        infer(path, torch.ones(2, 1, 8, 8, dtype=torch.uint8))


def test_arrays_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(EdgePruneError):
        read_rows(path)
    np.savez(path, z=np.ones(3))
    with pytest.raises(EdgePruneError):
        read_rows(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(EdgePruneError):
        read_rows(path)
    np.savez(path, x=np.ones((3, 2), np.float32), y=np.ones(2, np.int64))
    with pytest.raises(EdgePruneError, match="3 rows and 2 answers"):
        read_rows(path)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array(["a", "b"]), "y.npy: holds <U1"),
        (np.array([1.0, np.nan]), "y must hold the number of a class"),
        (np.array([1.0, 2.5]), "y must hold the number of a class"),
        (np.array([1, 2**64 - 1], dtype=np.uint64), "y must hold the number of a class"),
        (np.int64(3), "y must hold the number of a class"),
        (np.array([0, -1]), "y must hold the number of a class"),
    ],
    ids=range(6),
)
def test_answers_that_are_no_classes_are_refused(y: np.ndarray, words: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((2, 1, 8, 8), np.float32), y=y)
    done = invoke(file, "--data", path)
    assert isinstance(done.exception, EdgePruneError) and str(path) in str(done.exception), done.output
    assert words in str(done.exception) and "edgeprune data fetch" not in str(done.exception)


def test_whole_numbers_as_floats_are_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=np.array([1.0, 4.0]))
    _, y = read_rows(tmp_path / "a.npz")
    assert y is not None and y.dtype == torch.int64 and y.tolist() == [1, 4]


def foreign(path: Path, node: str, output: int = 1, rows: object = "n", kind: int = 1, **options: object) -> Path:
    """A file of another tool: one operator on four numbers a row; 1, 7, 8, 10 are float, int64, text, float16 there."""
    helper = pytest.importorskip("onnx.helper")
    start, axis = (helper.make_tensor(name, 7, [1], [number]) for name, number in (("start", 0), ("axis", 1)))
    inputs = ["x", "start", "start", "axis"] if node == "Slice" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(node, inputs, ["out"], **options)],
        "g",
        [helper.make_tensor_value_info("x", kind, [rows, 4])],
        [helper.make_tensor_value_info("out", output, None)],
        [start, axis] if node == "Slice" else [],
    )
    if node == "SequenceConstruct":
        graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("out", 1, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"edgeprune.precision": "\x1b[2J"})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("node", "how", "words"),
    [
        ("SequenceConstruct", {}, "no array of numbers"),
        ("Cast", {"to": 8, "output": 8}, "no array of numbers"),
        ("Log", {}, "holds NaN"),
        ("Slice", {}, "holds no classes"),
        ("Identity", {"rows": 1 << 40}, "do not fit memory"),
    ],
)
def test_answers_of_other_files_that_are_none(tmp_path: Path, node: str, how: dict, words: str) -> None:
    with pytest.raises(EdgePruneError, match=words):
        infer(foreign(tmp_path / "m.onnx", node, **how), -torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("kind", [1, 10, 11])
def test_other_files_take_rows_of_their_own_width(tmp_path: Path, kind: int) -> None:
    x = torch.eye(4)
    done = infer(foreign(tmp_path / "m.onnx", "Identity", kind, kind=kind), x, torch.arange(4))
    assert done.accuracy == 1.0 and done.precision == "not stated"


def test_a_batch_that_cannot_be_is_not_timed(tmp_path: Path) -> None:
    from edgeprune.bench.onnx import made_up_feed, open_session

    for rows in (1 << 40, 0):
        path = foreign(tmp_path / "m.onnx", "Identity", rows=rows)
        with pytest.raises(EdgePruneError, match="cannot be made up"):
            made_up_feed(open_session(path, 1, "CPU")[0], rows, path)


@pytest.mark.parametrize(("x", "y"), [(">i2", ">i8"), (">u2", ">i4"), (">f4", ">u2")])
def test_numbers_of_the_other_byte_order_are_read(x: str, y: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.arange(12).reshape(3, 4).astype(x), y=np.array([0, 1, 300]).astype(y))
    rows, answers = read_rows(path)
    assert rows.tolist() == np.arange(12).reshape(3, 4).tolist() and answers.tolist() == [0, 1, 300]


def test_the_runtime_keeps_no_identifier_of_the_machine(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "infer", str(file), "--data", "digits"],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
    )
    assert done.returncode == 0 and [p for p in tmp_path.rglob("*") if "onnxruntime" in str(p)] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([[1.0, value]]))
    with pytest.raises(EdgePruneError, match="x holds NaN, infinity or numbers beyond float32"):
        read_rows(tmp_path / "a.npz")


def test_a_remedy_for_ones_own_arrays_and_a_file_that_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", z=np.ones(3))
    with pytest.raises(EdgePruneError, match="holds no 'x.npy'; write it with numpy.savez"):
        read_rows(tmp_path / "a.npz")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(EdgePruneError, match="^infer: .*broken.onnx is not loaded by ONNX Runtime"):
        infer(tmp_path / "broken.onnx", torch.ones(2, 3))
