"""check_parity: agreement is found where it is, and disagreement of every kind is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.export import check_parity, export_onnx
from edgeprune.export.latency import median_latencies
from edgeprune.export.parity import _same_class

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def linear(tmp_path: Path) -> tuple[nn.Linear, Path]:
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    return net, export_onnx(net, torch.zeros(2, 5), tmp_path / "linear.onnx").path


def test_random_inputs_cover_the_three_batches(linear: tuple[nn.Linear, Path]) -> None:
    report = check_parity(linear[0], linear[1], torch.zeros(2, 5))
    assert (report.batches, report.rows, report.real_inputs) == ((1, 2, 7), 10, False)
    assert report.max_abs_diff < 1e-5 and report.argmax_agreement == 1.0


@pytest.mark.parametrize("rows", [1, 3, 10, 11, 150])
def test_every_real_row_is_compared(rows: int, linear: tuple[nn.Linear, Path]) -> None:
    """A row that disagrees is found wherever it stands; the stand-in model differs on a marked row only."""
    net, path = linear
    inputs = torch.randn(rows, 5)
    assert check_parity(net, path, inputs, real=True).rows == rows

    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + (x[:, :1] == 42.0) * 0.5

    for marked in {0, rows // 2, rows - 1}:
        hit = inputs.clone()
        hit[marked, 0] = 42.0
        with pytest.raises(EdgePruneError, match="disagree at batch"):
            check_parity(Marked(), path, hit, real=True)


def test_changed_weights_are_a_disagreement(linear: tuple[nn.Linear, Path]) -> None:
    net, path = linear
    with torch.no_grad():
        net.weight[0, 0] += 0.1
    with pytest.raises(EdgePruneError, match="disagree at batch 1 by up to") as caught:
        check_parity(net, path, torch.zeros(2, 5))
    assert "\n" not in str(caught.value)


def test_nan_is_a_disagreement(linear: tuple[nn.Linear, Path]) -> None:
    net, path = linear
    with torch.no_grad():
        net.bias[1] = float("nan")
    with pytest.raises(EdgePruneError, match="disagree"):
        check_parity(net, path, torch.zeros(2, 5))


def test_another_shape_is_a_disagreement(linear: tuple[nn.Linear, Path]) -> None:
    with pytest.raises(EdgePruneError, match=r"gives shape \(1, 3\), the model \(1, 4\)"):
        check_parity(nn.Linear(5, 4), linear[1], torch.zeros(2, 5))


def test_model_in_training_mode_is_compared_as_exported(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    path = export_onnx(net, torch.randn(2, 5), tmp_path / "n.onnx").path
    before = net[1].num_batches_tracked.item()
    check_parity(net, path, torch.randn(2, 5))
    assert net.training and net[1].num_batches_tracked.item() == before


def test_integer_inputs_stay_within_the_values_seen(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(18, 3))
    ids = torch.tensor([[0, 1, 3], [3, 3, 2]])
    path = export_onnx(net, ids, tmp_path / "n.onnx").path
    assert check_parity(net, path, ids).argmax_agreement == 1.0


def test_no_classes_no_agreement(tmp_path: Path) -> None:
    net = nn.Linear(5, 1)
    path = export_onnx(net, torch.zeros(2, 5), tmp_path / "n.onnx").path
    assert check_parity(net, path, torch.zeros(2, 5)).argmax_agreement is None


def test_same_class_by_hand() -> None:
    want = np.array([[1.0, 2.0], [3.0, 1.0], [5.0, 5.0 - 4e-6]], dtype=np.float32)
    got = np.array([[1.0, 2.0], [1.0, 3.0], [5.0 - 4e-6, 5.0]], dtype=np.float32)
    # Row 0 the same, row 1 another class, row 2 a tie within rounding.
    assert _same_class(want, got, atol=1e-5) == (2, 3)
    positions = np.zeros((2, 4, 6), dtype=np.float32)
    assert _same_class(positions, positions, atol=1e-5) == (8, 8)
    pixels = np.zeros((2, 3, 4, 5), dtype=np.float32)
    assert _same_class(pixels, pixels, atol=1e-5) == (40, 40)


def test_rows_that_the_model_cannot_take_are_one_sentence(linear: tuple[nn.Linear, Path]) -> None:
    for rows, words in ((torch.zeros(0, 4), "hold no rows"), (torch.zeros(3, 4), r"fails on rows of shape \(4,\)")):
        with pytest.raises(EdgePruneError, match=words):
            check_parity(*linear, rows, real=True)


def test_not_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"not a model at all")
    with pytest.raises(EdgePruneError, match="is not loaded by ONNX Runtime") as caught:
        check_parity(nn.Linear(2, 2), path, torch.zeros(2, 2))
    assert "\n" not in str(caught.value)


def test_latencies_one_per_file(linear: tuple[nn.Linear, Path]) -> None:
    found = median_latencies([linear[1], linear[1]], torch.zeros(2, 5), seconds=0.0, least=3)
    assert len(found) == 2 and all(value > 0 for value in found)
