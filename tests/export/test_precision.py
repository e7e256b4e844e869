"""fp16 and int8 files: still the target's opset and IR, fp32 outside, near the model, and smaller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.export import TARGETS, check_parity, export_onnx, precision
from edgeprune.export.onnx import annotate
from edgeprune.export.verify import verify

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32 * 16, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(nn.functional.max_pool2d(x + self.depth(x), 2).flatten(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(32, 3, 8, 8) * 2)
    return model.eval()


ROWS = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_file_is_the_targets_and_near_the_model(net: nn.Module, kind: str, target: str, tmp_path: Path) -> None:
    plain = export_onnx(net, ROWS, tmp_path / "plain.onnx", target)
    done = export_onnx(net, ROWS, tmp_path / "m.onnx", target, precision=kind, calibration=ROWS)
    assert done.size_bytes < {"fp16": 0.7, "int8": 0.4}[kind] * plain.size_bytes
    assert done.metadata["edgeprune.precision"] == kind
    proto = verify(done.path, TARGETS[target])
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    kinds = {t.data_type for t in proto.graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[kind] in kinds
    assert ("QuantizeLinear" in {n.op_type for n in proto.graph.node}) == (kind == "int8")
    found = check_parity(net, done.path, ROWS, real=True, precision=kind)
    assert 0 < found.relative_error < {"fp16": 0.002, "int8": 0.05}[kind]
    assert found.argmax_agreement is not None and found.argmax_agreement > 0.9
    raw = done.path.read_bytes()
    assert str(tmp_path).encode() not in raw and str(Path.home()).encode() not in raw


def test_int8_weights_are_per_channel_and_activations_symmetric(net: nn.Module, tmp_path: Path) -> None:
    """By hand: every weight's scale is its filter's largest magnitude over 127, every zero point is 0."""
    path = export_onnx(net, ROWS, tmp_path / "m.onnx", precision="int8", calibration=ROWS).path
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    scales = next(v for n, v in arrays.items() if v.shape == (32,) and "scale" in n and "depth" in n)
    want = net.depth.weight.detach().abs().amax((1, 2, 3)).numpy() / 127
    np.testing.assert_allclose(scales, want, rtol=1e-5)
    assert all((v == 0).all() for n, v in arrays.items() if "zero_point" in n)


def test_calibration_on_other_inputs_is_noticed(net: nn.Module, tmp_path: Path) -> None:
    path = export_onnx(net, ROWS, tmp_path / "m.onnx", precision="int8", calibration=ROWS * 1e-3).path
    with pytest.raises(EdgePruneError, match="the int8 file is off by .* calibrate on real inputs"):
        check_parity(net, path, ROWS, real=True, precision="int8")


def test_the_model_is_left_alone(net: nn.Module, tmp_path: Path) -> None:
    before = {n: t.clone() for n, t in net.state_dict().items()}
    for kind in ("fp16", "int8"):
        export_onnx(net, ROWS, tmp_path / f"{kind}.onnx", precision=kind, calibration=ROWS)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_more_metadata_afterwards(net: nn.Module, tmp_path: Path) -> None:
    done = annotate(export_onnx(net, ROWS, tmp_path / "m.onnx", metadata={"a": 1}), {"accuracy": 0.5})
    entries = {e.key: e.value for e in onnx.load(str(done.path)).metadata_props}
    assert entries == done.metadata and entries["edgeprune.accuracy"] == "0.5" and entries["edgeprune.a"] == "1"
    with pytest.raises(EdgePruneError, match="holds a path of this machine"):
        annotate(done, {"where": str(Path.home() / "x")})


def test_what_cannot_be_done_is_one_sentence(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(EdgePruneError, match="unknown precision 'int9'; did you mean 'int8'"):
        export_onnx(net, ROWS, path, precision="int9")
    with pytest.raises(EdgePruneError, match="int8 needs calibration inputs"):
        export_onnx(net, ROWS, path, precision="int8")
    with pytest.raises(EdgePruneError, match="a row of the calibration inputs is"):
        export_onnx(net, ROWS, path, precision="int8", calibration=(ROWS, ROWS))
    with pytest.raises(EdgePruneError, match="nothing in this model could be quantised"):
        export_onnx(nn.ELU(), ROWS, path, precision="int8", calibration=ROWS)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(EdgePruneError, match="onnxruntime.quantization is not installed|does not import"):
        export_onnx(net, ROWS, path, precision="int8", calibration=ROWS)
    assert not path.exists() and set(precision.ROUND_TO) == set(precision.PRECISIONS)


@pytest.mark.parametrize("exporter", ["torchscript", "torch.export"])
def test_transposed_convolutions_in_groups_beside_int8_ones(exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), up, nn.Conv2d(4, 2, 1))
    done = export_onnx(model, ROWS, tmp_path / "m.onnx", precision="int8", calibration=ROWS, exporter=exporter)
    assert check_parity(model, done.path, ROWS, real=True, precision="int8").relative_error < 0.1


HALF = """
import sys, torch
from pathlib import Path
from edgeprune.export import check_parity, export_onnx
from edgeprune.export.infer import infer

class SeqFirst(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = torch.nn.Linear(6, 10), torch.nn.Linear(10, 4)

    def forward(self, x):
        return self.out(self.inner(x.transpose(0, 1)).relu().transpose(0, 1))

x = torch.randn(3, 5, 6)
done = export_onnx(SeqFirst(), x, sys.argv[1], precision="fp16")
infer(Path(sys.argv[1]), x)
"""


def test_a_product_behind_a_transpose_in_half_precision_does_not_end_the_process(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HALF, str(tmp_path / "m.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
