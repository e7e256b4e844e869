"""What export_onnx makes of unusual models, and what it refuses: one sentence, and no file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import EdgePruneError
from edgeprune.export import TARGETS, check_parity, export_onnx
from edgeprune.export._data_flow import value_read
from edgeprune.export.onnx import RESERVED

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Forward(nn.Module):
    """A layer and what is done with it."""

    def __init__(self, do: Callable[..., Any]) -> None:
        super().__init__()
        self.do, self.layer = do, nn.Linear(4, 4)
        self.register_buffer("two", torch.tensor(2.0))

    def forward(self, *x: Tensor) -> Any:
        return self.do(self, *x)


def with_weight(value: float) -> nn.Module:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = value
    return layer


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_masked_layers_are_exported_as_dense_ones(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    images = torch.randn(5, 3, 8, 8)
    net = edgeprune.sparsify(dense, 0.1)
    kinds = [type(module) for module in net.modules()]
    path = export_onnx(net, images, tmp_path / "m.onnx", target).path
    assert [type(module) for module in net.modules()] == kinds and net.training
    assert check_parity(net, path, images, real=True).argmax_agreement == 1.0
    weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(str(path)).graph.initializer]
    assert sorted(int(np.count_nonzero(w)) for w in weights if w.ndim > 1) == [22, 288]  # a tenth of 216 and 2880


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
    images = torch.randn(3, 1, 4, 4).to(dtype)
    done = export_onnx(net, images, tmp_path / "m.onnx")
    graph = onnx.load(str(done.path)).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert {w.data_type for w in graph.initializer} == {onnx.TensorProto.FLOAT}
    check_parity(net, done.path, images, real=True)
    assert all(weight.dtype == dtype for weight in net.parameters())


READS = {
    "if": lambda m, x: m.layer(x) if x.sum() > 0 else m.layer(-x),
    "far away": lambda m, x: m.layer(x) if x.max() < 1e6 else m.layer(-x),
    "float": lambda m, x: m.layer(x) * float(x.max()),
    "item": lambda m, x: m.layer(x) * x.max().item(),
    "tolist": lambda m, x: m.layer(x) * x.max().tolist(),
    "numpy": lambda m, x: m.layer(x) * float(x.numpy().max()),
    "through memory": lambda m, x: m.layer(x) * float(torch.zeros(4).copy_(x[0])[1]),
}
KEEPS = {
    "buffer": lambda m, x: m.layer(x) * m.two.item(),
    "size": lambda m, x: m.layer(x) * (2 if x.shape[1] == 4 else 3) * int(torch.tensor(x.shape[1])),
    "where": lambda m, x: torch.where(x.sum() > 0, m.layer(x), m.layer(-x)),
    "mask": lambda m, x: m.layer(x).masked_fill(torch.ones_like(x).triu(1) > 0, -1e9) if x.new_ones(1) else x,
}


@pytest.mark.parametrize("name", READS)
def test_data_that_becomes_a_python_value_is_refused(name: str, tmp_path: Path) -> None:
    assert "test_refused.py, line" in str(value_read(Forward(READS[name]), (X,)))
    with pytest.raises(EdgePruneError, match="turns data into a Python value \\(test_refused.py, line") as caught:
        export_onnx(Forward(READS[name]), X, tmp_path / "m.onnx", exporter="torchscript")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", KEEPS)
def test_sizes_weights_and_constants_are_no_data(name: str, tmp_path: Path) -> None:
    net = Forward(KEEPS[name])
    assert value_read(net, (X,)) is None
    path = export_onnx(net, X, tmp_path / "m.onnx").path
    check_parity(net, path, torch.cat([X, -X]), real=True)


def test_control_flow_is_refused_by_default_too(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="torch.where"):
        export_onnx(Forward(READS["if"]), X, tmp_path / "m.onnx")


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    noisy = Forward(lambda m, x: m.layer(x) + torch.rand(4) * 9)
    with pytest.raises(EdgePruneError, match="disagree by"):
        export_onnx(noisy, X, tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


NET = nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": None}, "the model is NoneType"),
        ({"model": nn.Linear}, "the model is the class Linear"),
        ({"model": nn.LazyLinear(4)}, "has lazy weights"),
        ({"model": with_weight(float("nan"))}, "the weight 'weight' holds NaN"),
        ({"model": with_weight(1e6), "precision": "fp16"}, "reaches 1e\\+06, fp16 ends at 65504"),
        ({"model": Forward(lambda m, x: m.layer(x).double())}, "'output' is double"),
        ({"model": Forward(lambda m, x: m.layer(x).half())}, "'output' is float16"),
        ({"example_inputs": None}, "example inputs must be tensors"),
        ({"target": None}, "unknown target None; known are"),
        ({"target": []}, "unknown target \\[\\]"),
        ({"precision": None}, "unknown precision None"),
        ({"metadata": [1]}, "metadata is list"),
        ({"metadata": {3: "x"}}, "metadata 3: keys must be text"),
        ({"metadata": {"a": X}}, "metadata 'a': .* not Tensor"),
        ({"metadata": {"a": "\ud800"}}, "metadata 'a'"),
        ({"metadata": {"a": float("nan")}}, "metadata 'a'"),
        *(({"metadata": {key: "lie"}}, f"metadata '{key}' is written by the export itself") for key in RESERVED),
        ({"precision": "int8", "calibration": torch.ones(9, 5)}, "is \\(5,\\) float32; the model takes \\(4,\\)"),
        ({"precision": "int8", "calibration": torch.full((9, 4), torch.nan)}, "calibration inputs hold NaN"),
        ({"precision": "int8", "calibration": "rows"}, "calibration inputs must be tensors"),
    ],
    ids=range(24),
)
def test_mistakes_are_one_sentence(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match=words) as caught:
        export_onnx(**{"model": NET, "example_inputs": X, "path": tmp_path / "m.onnx", **arguments})
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_what_an_exporter_says_has_no_colours_and_the_newest_target_is_not_advised(tmp_path: Path) -> None:
    net = Forward(lambda m, x: torch.special.bessel_j0(m.layer(x)))
    with pytest.raises(EdgePruneError, match="has no ONNX form at opset 18 .*; replace that operator$") as caught:
        export_onnx(net, X, tmp_path / "m.onnx", "jetpack7")
    assert "\x1b" not in str(caught.value)


def test_torchs_graph_dump_does_not_reach_the_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    export_onnx(net, torch.randn(2, 3, 8), tmp_path / "m.onnx")
    os.write(1, b"and on\n")
    assert capfd.readouterr().out == "and on\n"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_full_disk_is_one_sentence(precision: str, tmp_path: Path) -> None:
    script = f"""
import torch
from edgeprune import EdgePruneError, export_onnx
x = torch.randn(9, 200)
try:
    export_onnx(torch.nn.Linear(200, 200), x, "m.onnx", precision={precision!r}, calibration=x)
except EdgePruneError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written (File too large)" in done.stdout and len(done.stdout.splitlines()) == 1
    assert os.listdir(tmp_path) == []
