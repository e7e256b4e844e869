"""Models that return a dict, as those for segmentation do: a file whose outputs bear its keys."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune import prune
from edgeprune.errors import EdgePruneError
from edgeprune.export import check_parity, export_onnx
from edgeprune.export._trace import EXPORTERS

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


class Segmenter(nn.Module):
    """A class per pixel, and from half way another guess at it."""

    def __init__(self, second: str = "aux") -> None:
        super().__init__()
        self.second = second
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.neck, self.out, self.aux = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        half = self.body(x)
        return OrderedDict([("out", self.out(torch.relu(self.neck(half)))), (self.second, self.aux(half))])


IMAGES = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_pruned_model_with_named_outputs(exporter: str, tmp_path: Path) -> None:
    if exporter == "torch.export":
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = prune(Segmenter(), IMAGES[:2], 0.5).model.eval()
    done = export_onnx(net, IMAGES[:2], tmp_path / "net.onnx", exporter=exporter)
    assert done.outputs == ("out", "aux")
    assert check_parity(net, done.path, IMAGES, real=True).rows >= 6
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (aux,) = session.run(["aux"], {"input": IMAGES.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(aux), net(IMAGES)["aux"], rtol=1e-4, atol=1e-5)
    names = {weight.name for weight in onnx.load(str(done.path)).graph.initializer}
    assert not any(name.startswith("own") for name in names) and "out.weight" in names


@pytest.mark.parametrize("key", ["input", "a b", ""])
def test_keys_that_no_output_can_have(key: str, tmp_path: Path) -> None:
    with pytest.raises(EdgePruneError, match="Segmenter returns a dict with the key"):
        export_onnx(Segmenter(key), IMAGES[:2], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_what_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    class Deep(Segmenter):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(x)}  # type: ignore[dict-item]

    with pytest.raises(EdgePruneError, match="Deep returns dict; .* a tuple or dict of tensors"):
        export_onnx(Deep(), IMAGES[:2], tmp_path / "net.onnx")
