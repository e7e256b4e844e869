"""Files for exactly so many rows: models without a free batch, and what reads such a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from edgeprune.bench.onnx import batch_sizes, made_up_feed, open_session
from edgeprune.cli.export import command
from edgeprune.errors import EdgePruneError
from edgeprune.export import check_parity, export_onnx
from edgeprune.export.infer import infer
from edgeprune.export.latency import median_latencies

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pruning"))
from zoo_attention import ATTENTION

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Pairs(nn.Module):
    """Works on three rows alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(3, 4))


def net() -> Pairs:
    torch.manual_seed(0)
    return Pairs().eval()


X = torch.randn(10, 2, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("exporter", ["torchscript", "torch.export"])
@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_attention_without_a_free_batch(batch: int, exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    factory, inputs = ATTENTION["swin"]
    swin, given = factory().eval(), inputs()
    with pytest.raises(EdgePruneError, match=r"(fails on the graph at batch|no free batch).*export for one"):
        export_onnx(swin, given, tmp_path / "free.onnx", exporter=exporter)
    done = export_onnx(swin, given, tmp_path / "net.onnx", exporter=exporter, batch=batch)
    assert done.batch == batch and sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]
    (entry,) = onnx.load(str(done.path)).graph.input
    assert entry.type.tensor_type.shape.dim[0].dim_value == batch
    parity = check_parity(swin, done.path, given)
    assert set(parity.batches) == {batch} and parity.max_abs_diff < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision(precision: str, tmp_path: Path) -> None:
    rows = X if precision == "int8" else None  # ten rows: the last of four batches is filled up
    done = export_onnx(net(), X[:3], tmp_path / "net.onnx", precision=precision, calibration=rows, batch=3)
    assert check_parity(net(), done.path, X, real=True, precision=precision).rows == 10


def test_rows_that_do_not_fill_the_last_batch(tmp_path: Path) -> None:
    path = export_onnx(net(), X[:3], tmp_path / "net.onnx", batch=3).path
    with torch.no_grad():
        expected = net().head(X.flatten(1)).argmax(1)
    done = infer(path, X, expected, batch=32)
    assert (done.batch, done.rows, done.targets, done.accuracy) == (3, 10, 10, 1.0)
    np.testing.assert_array_equal(done.chosen, expected.numpy())
    assert infer(path, X[:1], expected[:1]).accuracy == 1.0
    assert median_latencies([path], X, seconds=0.0, least=1)[0] > 0


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="does not run on example inputs of shape"):
        export_onnx(net(), X[:3], tmp_path / "free.onnx")
    for batch in (0, -1, 2.5):
        with pytest.raises(EdgePruneError, match="number of rows, 1 or more"):
            export_onnx(net(), X[:3], tmp_path / "net.onnx", batch=batch)  # type: ignore[arg-type]
    path = export_onnx(net(), X[:3], tmp_path / "net.onnx", batch=3).path
    assert batch_sizes([path], ()) == batch_sizes([path], (3,)) == (3,)
    with pytest.raises(EdgePruneError, match="batches of 3 alone; give --batch 3"):
        batch_sizes([path], (3, 1))
    with pytest.raises(EdgePruneError, match="batches of 3 alone"):
        made_up_feed(open_session(path, 1, "CPU")[0], 1, path)


class Rows(nn.Module):
    """What it does is given as a function of x."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(x)


@pytest.mark.parametrize("exporter", ["torchscript", "torch.export"])
@pytest.mark.parametrize(
    ("what", "batch", "said"),
    [
        (lambda x: x.mean(0, keepdim=True), 3, "has 1 rows, not one for each of the batch's 3"),
        (lambda x: x.reshape(-1, 2), 3, "has 6 rows, not one for each of the batch's 3"),
        (lambda x: x if x.shape[0] > 1 else x.reshape(2, 2), None, "at batch 1 the graph gives shape"),
        (lambda x: x if x.shape[0] != 1 else x[0], None, "at batch 1 the graph gives shape"),
    ],
)
def test_outputs_of_another_number_of_rows(
    what: Callable[[Tensor], Tensor], batch: int | None, said: str, exporter: str, tmp_path: Path
) -> None:
    with pytest.raises(EdgePruneError, match=said if exporter == "torchscript" else "export: "):
        export_onnx(Rows(what), torch.randn(3, 4), tmp_path / "net.onnx", batch=batch, exporter=exporter)
    assert not list(tmp_path.iterdir())


def test_more_answers_than_rows_are_not_taken_for_theirs(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    kinds = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["n", 4]), ("y", ["m", 2]))
    ]
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, 2])
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = onnx.helper.make_graph([node], "g", kinds[:1], kinds[1:], [shape])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(made, str(path))
    with pytest.raises(EdgePruneError, match="does not go with 7 rows"):
        infer(path, X[:7].flatten(1))


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x.reshape(3, 4) * 2\n"
        "def make():\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "net.onnx"
    done = CliRunner().invoke(command, ["own_model:make", "--input", "3,2,2", "--batch", "3", "-o", str(out)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert out.is_file() and "agrees with torch" in done.output
