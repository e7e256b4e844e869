"""Our own layers, and what torch's exporter makes wrong, as ONNX files that compute the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune import tasks
from edgeprune.export import check_parity, export_onnx
from edgeprune.export._plain import plain
from edgeprune.nn import LinearInto
from edgeprune.nn.pooling import MaxPool2d

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Stream(nn.Module):
    """An addition into some channels of a stream."""

    def __init__(self, rows: list[int], bias: bool) -> None:
        super().__init__()
        self.into = LinearInto(5, len(rows), bias)
        self.into.index = torch.tensor(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.into(x[..., :5], x)


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1).flatten(2).mean(2) + x.permute(0, -1, 1).sum(2)


class Added(nn.Module):
    """Positions summed by number: torch's first exporter writes another sum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 2, x.shape[2]).index_add(1, torch.tensor([0, 1, 1, 0]), x)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Stream([0, 1, 2, 3, 4, 5, 6, 7], True), (3, 8)),
        (Stream([1, 2, 6], True), (3, 4, 8)),
        (Stream([7], False), (3, 4, 8)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), MaxPool2d(3, 1)), (3, 2, 9, 7)),
        (nn.Sequential(MaxPool2d(2)), (3, 2, 8, 8)),
        (Moved(), (3, 4, 5)),
        (Added(), (3, 4, 5)),
    ],
    ids=range(7),
)
def test_same_values_in_torch_and_in_the_file(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    assert torch.equal(plain(copy.deepcopy(model))(x), model(x))
    done = export_onnx(model, x[:2], tmp_path / "m.onnx")
    check_parity(model, done.path, x, real=True)


@pytest.mark.parametrize("name", ["cifar10-adp", "cifar10-vit", "mnist-feddst", "shakespeare"])
def test_tasks_with_layers_of_our_own(name: str, tmp_path: Path) -> None:
    task = tasks.get(name)
    model, inputs = task.make_model(), task.example_inputs()
    kinds = [type(module) for module in model.modules()]
    done = export_onnx(model, inputs, tmp_path / "m.onnx")
    check_parity(model, done.path, inputs)
    assert [type(module) for module in model.modules()] == kinds
