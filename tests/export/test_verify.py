"""verify() against files that an exporter could have written wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.errors import EdgePruneError
from edgeprune.export import targets
from edgeprune.export.onnx import export_onnx
from edgeprune.export.verify import strip_notes, verify

onnx = pytest.importorskip("onnx")

TARGET = targets.get("jetpack6")


@pytest.fixture
def proto(tmp_path: Path) -> Any:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    return onnx.load(str(export_onnx(net, torch.zeros(2, 5), tmp_path / "good.onnx").path))


def newer_opset(proto: Any) -> None:
    proto.opset_import[0].version = 18


def newer_ir(proto: Any) -> None:
    proto.ir_version = 10


def foreign_operator(proto: Any) -> None:
    proto.graph.node[1].domain = "edgeprune"
    proto.graph.node[1].op_type = "MaskedLinear"
    proto.opset_import.add(domain="edgeprune", version=1)


def fixed_input(proto: Any) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def weights_elsewhere(proto: Any) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def stack_trace(proto: Any) -> None:
    proto.graph.node[0].doc_string = 'File "secret/place.py", line 3'


def node_metadata(proto: Any) -> None:
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="secret/place.py")


def dangling_name(proto: Any) -> None:
    proto.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (newer_opset, "reads only opset 17"),
        (newer_ir, "is IR 10, jetpack6 wants 8"),
        (foreign_operator, "reads only opset 17|outside the ONNX standard"),
        (fixed_input, "no free batch dimension"),
        (weights_elsewhere, "outside itself"),
        (stack_trace, "notes"),
        (node_metadata, "notes"),
        (dangling_name, "not valid ONNX"),
    ],
)
def test_each_fault_is_named(spoil: Callable[[Any], None], words: str, proto: Any, tmp_path: Path) -> None:
    path = tmp_path / "spoilt.onnx"
    onnx.save_model(proto, str(path))
    verify(path, TARGET)  # good until spoilt
    spoil(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(EdgePruneError, match=words) as caught:
        verify(path, TARGET)
    assert "\n" not in str(caught.value)


def test_weights_beside_the_file_are_refused_even_when_present(proto: Any, tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(EdgePruneError, match="outside itself"):
        verify(path, TARGET)


def test_strip_reaches_into_branches() -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    inner = helper.make_node("Constant", [], ["y"], doc_string="inner secret", value_float=1.0)
    branch = helper.make_graph([inner], "branch", [], [value], doc_string="branch secret")
    outer = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch, doc_string="outer secret")
    flag = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [1], doc_string="input secret")
    result = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])
    proto = helper.make_model(helper.make_graph([outer], "g", [flag], [result]), doc_string="model secret")
    assert proto.SerializeToString().count(b"secret") == 7
    strip_notes(proto)
    assert b"secret" not in proto.SerializeToString()
    assert len(proto.graph.node[0].attribute) == 2
