"""A graph of opset 18 at opset 17: the same answers, or a refusal. Both are run by ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pruning"))
from zoo_attention import ATTENTION

from edgeprune.export import check_parity, export_onnx
from edgeprune.export._older import CannotBeOlder, to_opset_17

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
helper = onnx.helper
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
X = np.random.default_rng(0).standard_normal((2, 7, 6)).astype(np.float32)
POSITIVE = np.abs(X)  # of which there are logarithms


def model(op: str, constants: dict[str, Any], outputs: int = 1, opset: int = 18, **attributes: Any) -> Any:
    """One node that reads x [batch, 7, 6] and constants (None: an input left out)."""
    named = [helper.make_tensor(n, INT64, [len(v)], v) for n, v in constants.items() if isinstance(v, list)]
    named += [onnx.numpy_helper.from_array(v, n) for n, v in constants.items() if isinstance(v, np.ndarray)]
    given = ["x", *("" if v is None else n for n, v in constants.items())]
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, given, names, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 7, 6])],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in names],
        named,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answers(proto: Any, x: Any = X) -> list[Any]:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]


@pytest.mark.parametrize(
    ("op", "constants", "more"),
    [
        ("Split", {}, {"axis": 1, "num_outputs": 3, "outputs": 3}),  # 3, 3, 1
        ("Split", {}, {"axis": -1, "num_outputs": 2, "outputs": 2}),
        ("Split", {"sizes": [5, 2]}, {"axis": 1, "outputs": 2}),
        ("Pad", {"pads": [0, 1, 0, 0, 2, 3]}, {}),
        ("Pad", {"pads": [1, 0, 2, 3], "value": np.array(1.5, np.float32), "axes": [-2, 2]}, {}),
        ("Pad", {"pads": [1, 2], "value": None, "axes": [1]}, {"mode": "reflect"}),
        *((f"Reduce{r}", {"axes": [-1, 1]}, {"keepdims": 0}) for r in REDUCTIONS),
        *((f"Reduce{r}", {}, {"noop_with_empty_axes": 0}) for r in REDUCTIONS),
        ("ReduceSum", {"axes": [1]}, {"noop_with_empty_axes": 1}),  # the same in both
        ("ReduceMax", {"axes": [1]}, {"noop_with_empty_axes": 1}),  # not empty
        ("ReduceMax", {"axes": []}, {}),  # empty: all
        ("Resize", {"roi": None, "scales": np.float32([1, 2, 2])}, {"mode": "nearest", "antialias": 0}),
    ],
)
def test_the_same_answers(op: str, constants: dict[str, Any], more: dict[str, Any]) -> None:
    newer = model(op, constants, **more)
    before = newer.SerializeToString()
    older = to_opset_17(newer)
    assert newer.SerializeToString() == before and older.opset_import[0].version == 17
    onnx.shape_inference.infer_shapes(older, check_type=True, strict_mode=True)
    x = POSITIVE if op == "ReduceLogSum" else X
    for got, expected in zip(answers(older, x), answers(newer, x), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("op", "constants", "more", "said"),
    [
        ("Mish", {}, {}, "Mish is new in opset 18"),
        ("ReduceMax", {}, {"noop_with_empty_axes": 1}, "does nothing without axes"),
        ("Resize", {"roi": None, "scales": np.float32([1, 2, 2])}, {"mode": "linear", "antialias": 1}, "antialias"),
        ("Resize", {"roi": None, "scales": np.float32([2, 2])}, {"mode": "nearest", "axes": [1, 2]}, "some axes"),
        ("ScatterND", {"indices": np.zeros((1, 1), np.int64), "updates": X[:1]}, {"reduction": "max"}, "larger"),
        ("Split", {}, {"axis": 0, "num_outputs": 2, "outputs": 2}, "size is not known"),
        ("Relu", {}, {"opset": 20}, "opset 20"),
    ],
)
def test_what_has_no_older_form_is_refused(op: str, constants: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotBeOlder, match=said):
        to_opset_17(model(op, constants, **more))


def test_axes_that_are_computed_are_refused() -> None:
    newer = model("ReduceMax", {"axes": [1]})
    del newer.graph.initializer[:]
    newer.graph.input.append(helper.make_tensor_value_info("axes", INT64, [1]))
    with pytest.raises(CannotBeOlder, match="computed at run time"):
        to_opset_17(newer)


@pytest.mark.parametrize("said", [{"value_ints": [-1, 1]}, {"value_int": 1}])
def test_axes_of_a_constant_node(said: dict[str, Any]) -> None:
    newer = model("ReduceMax", {"axes": [1]})
    del newer.graph.initializer[:]
    newer.graph.node.insert(0, helper.make_node("Constant", [], ["axes"], **said))
    if "value_int" in said:  # a number without dimensions, which the node itself would not take
        newer.graph.node[0].output[0] = "axis"
        shape = onnx.numpy_helper.from_array(np.array([1], np.int64), "shape")
        newer.graph.initializer.append(shape)
        newer.graph.node.insert(1, helper.make_node("Reshape", ["axis", "shape"], ["axes"]))
        with pytest.raises(CannotBeOlder, match="computed at run time"):
            to_opset_17(newer)
        return
    np.testing.assert_array_equal(answers(to_opset_17(newer))[0], X.max((1, 2), keepdims=True))


def test_graphs_within_a_graph() -> None:
    """A branch that reduces and splits; its constants lie within it and outside."""
    shape = helper.make_tensor_value_info("y", FLOAT, ["batch", 4, 6])
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("ReduceMax", ["a", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["a", "m"], ["y"]),
    ]
    inner = helper.make_graph(nodes, "inner", [], [shape], [helper.make_tensor("axes", INT64, [1], [-1])])
    choose = helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner)
    yes = helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 7, 6])
    z = helper.make_tensor_value_info("z", FLOAT, ["batch", 4, 6])
    newer = helper.make_model(
        helper.make_graph([choose], "g", [x], [z], [yes]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    older = to_opset_17(newer)
    onnx.checker.check_model(older, full_check=True)
    np.testing.assert_array_equal(answers(older)[0], answers(newer)[0])


def test_what_nobody_reads_any_more_is_gone() -> None:
    older = to_opset_17(model("ReduceMax", {"axes": [1]}))
    assert not older.graph.initializer


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2-split", "gpt-grouped-queries", "dlrm"])
def test_attention_by_torchs_newer_exporter_for_older_boards(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    factory, inputs = ATTENTION[name]
    net, given = factory().eval(), inputs()
    done = export_onnx(net, given, tmp_path / "net.onnx", target="jetpack5", exporter="torch.export")
    assert (done.opset, done.ir_version) == (17, 8)
    assert check_parity(net, done.path, given).max_abs_diff < 1e-4
