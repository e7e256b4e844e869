"""export_onnx: what the file is, and that the model is left alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.export import TARGETS, _trace, check_parity, export_onnx
from edgeprune.export.onnx import weights_digest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class SmallNet(nn.Module):
    """A residual CNN that flattens with the batch size read at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.nn.functional.max_pool2d(x + self.left(x), 2)
        return self.head(self.drop(x.view(x.shape[0], -1)))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1) * 2


def trained_net() -> SmallNet:
    torch.manual_seed(0)
    net = SmallNet()
    for _ in range(3):  # running statistics away from their start
        net(torch.randn(16, 1, 8, 8) * 3 + 1)
    return net


IMAGES = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_file_carries_what_the_target_reads(target: str, tmp_path: Path) -> None:
    net = trained_net()
    done = export_onnx(net, (IMAGES[:1],), tmp_path / "net.onnx", target=target)
    proto = onnx.load(str(done.path))
    profile = TARGETS[target]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", profile.opset)]
    assert (proto.ir_version, done.ir_version) == (profile.ir_version, profile.ir_version)
    assert done.size_bytes == done.path.stat().st_size > 6 * 16 * 4 * 4
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 1, 8, 8]
    assert (done.inputs, done.outputs) == (("input",), ("output",))
    assert os.listdir(tmp_path) == ["net.onnx"]
    check_parity(net, done.path, IMAGES, real=True)


def test_default_is_the_portable_file(tmp_path: Path) -> None:
    done = export_onnx(trained_net(), IMAGES[:2], tmp_path / "net.onnx")
    assert (done.opset, done.ir_version) == (17, 8)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_alone(training: bool, tmp_path: Path) -> None:
    net = trained_net().train(training)
    net.norm.eval()  # a mixed state, as in fine-tuning
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    export_onnx(net, IMAGES[:2], tmp_path / "net.onnx")
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad for p in net.parameters())


def test_exported_in_eval_mode_even_from_a_training_model(tmp_path: Path) -> None:
    export_onnx(trained_net().train(), IMAGES[:2], tmp_path / "net.onnx")
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node}
    assert "Conv" in kinds and not kinds & {"Dropout", "BatchNormalization"}


def test_metadata_and_no_traces_of_this_machine(tmp_path: Path) -> None:
    net = trained_net()
    metadata = {"method": "adaptcl", "accuracy": 0.971, "classes": ["zero", "<one>"], "retention": 0.5}
    done = export_onnx(net, IMAGES[:2], tmp_path / "net.onnx", metadata=metadata)
    found = {entry.key: entry.value for entry in onnx.load(str(done.path)).metadata_props}
    assert found == done.metadata
    assert found["edgeprune.method"] == "adaptcl"
    assert json.loads(found["edgeprune.classes"]) == ["zero", "<one>"]
    assert json.loads(found["edgeprune.accuracy"]) == 0.971
    assert found["edgeprune.weights_sha256"] == weights_digest(net)
    raw = done.path.read_bytes()
    for place in (os.getcwd(), str(Path.home()) + "/", str(tmp_path), os.path.dirname(torch.__file__), "test_onnx.py"):
        assert place.encode() not in raw


def test_metadata_with_a_path_of_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="metadata 'note' holds a path"):
        export_onnx(trained_net(), IMAGES[:2], tmp_path / "a.onnx", metadata={"note": os.getcwd() + "/x"})
    assert os.listdir(tmp_path) == []


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    net = trained_net()
    first = export_onnx(net, IMAGES[:2], tmp_path / "a.onnx").path.read_bytes()
    assert export_onnx(net, IMAGES[:2], tmp_path / "b.onnx").path.read_bytes() == first


def test_digest_sees_one_changed_bit() -> None:
    net = trained_net()
    before = weights_digest(net)
    with torch.no_grad():
        net.head.bias[0] = torch.nextafter(net.head.bias[0], torch.tensor(9.0))
    assert weights_digest(net) != before


class Pair(nn.Module):
    """Token ids and a vector in, a vector and a number per row out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(ids).mean(1) + x, x.sum(1)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    inputs = (torch.arange(8).reshape(2, 4), torch.randn(2, 5))
    net = Pair()
    done = export_onnx(net, inputs, tmp_path / "pair.onnx")
    assert (done.inputs, done.outputs) == (("input_0", "input_1"), ("output_0", "output_1"))
    assert check_parity(net, done.path, inputs).rows == 10


def test_a_compiled_model_is_exported_as_what_was_compiled(tmp_path: Path) -> None:
    net = trained_net().eval()
    compiled = torch.compile(net, backend="eager")
    compiled(IMAGES)
    export_onnx(compiled, (IMAGES,), tmp_path / "compiled.onnx")
    assert check_parity(compiled, tmp_path / "compiled.onnx", IMAGES, real=True).argmax_agreement == 1.0
    names = {tensor.name for tensor in onnx.load(str(tmp_path / "compiled.onnx")).graph.initializer}
    assert {"left.weight", "head.weight"} <= names


def test_hard_coded_batch_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="always has 2 rows"):
        export_onnx(FixedBatch(), torch.randn(2, 3, 4), tmp_path / "f.onnx")
    assert os.listdir(tmp_path) == []


def test_an_older_file_survives_a_failed_export(tmp_path: Path) -> None:
    target = tmp_path / "f.onnx"
    target.write_bytes(b"older")
    with pytest.raises(EdgePruneError):
        export_onnx(FixedBatch(), torch.randn(2, 3, 4), target)
    assert target.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["f.onnx"]


def test_file_gets_ordinary_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        done = export_onnx(trained_net(), IMAGES[:2], tmp_path / "net.onnx")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(3, 2), torch.randn(2, 4), "does not run on example inputs of shape \\(2, 4\\)"),
        (nn.Linear(3, 2), (), "at least one row"),
        (nn.Linear(3, 2), torch.zeros(0, 3), "at least one row"),
        (nn.Bilinear(3, 3, 2), (torch.ones(2, 3), torch.ones(5, 3)), "have 2, 5 rows"),
    ],
)
def test_wrong_inputs_are_one_sentence(model: nn.Module, inputs: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match=words) as caught:
        export_onnx(model, inputs, tmp_path / "x.onnx")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="unknown target 'jetpack66'; did you mean 'jetpack6'"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "x.onnx", target="jetpack66")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="does not exist"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "no" / "x.onnx")
    with pytest.raises(EdgePruneError, match="is a folder"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_operator_without_onnx_form_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="Bessel has no ONNX form at opset 17") as caught:
        export_onnx(Bessel(), torch.randn(2, 3, 8), tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["jetpack6", "jetpack7"])
def test_second_exporter_meets_the_same_contract(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without the TorchScript exporter: the other one's file is converted down and passes the same checks."""
    pytest.importorskip("onnxscript")

    def gone(*_: object) -> None:
        raise RuntimeError("removed")

    monkeypatch.setattr(_trace, "_by_torchscript", gone)
    net = trained_net()
    done = export_onnx(net, IMAGES[:2], tmp_path / "net.onnx", target=target)
    assert (done.opset, done.ir_version) == (TARGETS[target].opset, TARGETS[target].ir_version)
    assert check_parity(net, done.path, IMAGES, real=True).argmax_agreement == 1.0
    assert b"test_onnx.py" not in done.path.read_bytes()


def test_missing_onnx_says_how_to_install_it(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["onnx"] = None
import torch
from edgeprune.export import export_onnx
from edgeprune.errors import EdgePruneError
try:
    export_onnx(torch.nn.Linear(3, 2), torch.zeros(2, 3), {str(tmp_path / "x.onnx")!r})
except EdgePruneError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "onnx is not installed, and ONNX needs it; pip install 'edgeprune[onnx]'"
