"""Masked layers in the graphs that others make of a network: torch.fx, and torch.onnx without edgeprune's export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeprune.nn import Chain, MaskedConv2d, MaskedLinear, sparsify


def sparse_net(path: str = "sparse") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
    made = sparsify(net, density=0.2, distribution="uniform")
    for layer in made:
        if isinstance(layer, MaskedConv2d | MaskedLinear):
            layer.path = path
    assert isinstance(made, nn.Sequential)
    return made


def pictures() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chained", [False, True])
def test_fx_records_a_masked_layer_as_one_node(chained: bool) -> None:
    net: nn.Module = Chain(*sparse_net()) if chained else sparse_net()
    traced = fx.symbolic_trace(net)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1", "2", "3", "4", "5"]
    x = pictures()
    out = traced(x)
    assert torch.equal(out, net(x))
    out.square().sum().backward()
    first = traced.get_submodule("0")
    assert isinstance(first, MaskedConv2d)
    assert first.weight_kept.grad is not None and first.weight_kept.grad.count_nonzero()


def test_fx_names_a_nested_masked_layer_by_its_path() -> None:
    net = nn.ModuleDict({"inner": sparse_net()})

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["inner"](x) * 2

    outer = Outer().eval()
    traced = fx.symbolic_trace(outer)
    assert "parts.inner.5" in {node.target for node in traced.graph.nodes}
    assert torch.equal(traced(pictures()), outer(pictures()))


@pytest.mark.parametrize(("dynamo", "path"), [(False, "sparse"), (False, "dense"), (True, "sparse")])
@pytest.mark.filterwarnings("ignore")  # torch's own, about the exporter that it calls old
def test_torchs_own_exporters_write_a_masked_network(tmp_path: Path, dynamo: bool, path: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    net, x, file = sparse_net(path).eval(), pictures(), tmp_path / "net.onnx"
    torch.onnx.export(net, (x,), str(file), dynamo=dynamo)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (said,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(said, net(x).detach().numpy(), atol=1e-6)
    net.train()(x).sum().backward()
    layer = net[5]
    assert isinstance(layer, MaskedLinear) and layer.weight_kept.grad is not None
