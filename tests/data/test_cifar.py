"""CIFAR-10's binary records."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from edgeprune import data
from edgeprune.data.cifar import RECORD, read_batch
from edgeprune.data.registry import CIFAR_FILES
from edgeprune.errors import EdgePruneError


def record(label: int, pixel) -> bytes:
    """One record; ``pixel(channel, row, column)`` gives its bytes."""
    return bytes([label, *(pixel(c, i, j) for c in range(3) for i in range(32) for j in range(32))])


def test_pixels_are_plane_after_plane_row_after_row(tmp_path):
    path = tmp_path / "batch.bin"
    path.write_bytes(record(7, lambda c, i, j: 100 * c + i) + record(0, lambda c, i, j: j))
    read = read_batch(path)
    assert read.y.tolist() == [7, 0]
    assert read.x.shape == (2, 3, 32, 32) and read.x.dtype == torch.uint8
    assert read.x[0, 2, 5].tolist() == [205] * 32
    assert read.x[1, 1, 9].tolist() == list(range(32))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "0 bytes, not a whole number"),
        (bytes(RECORD - 1), "not a whole number of records"),
        (bytes(RECORD + 1), "not a whole number of records"),
        (b"\x0a" + bytes(RECORD - 1), "label 10 where there are 10"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, raw, sentence):
    path = tmp_path / "batch.bin"
    path.write_bytes(raw)
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        read_batch(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin", "cifar-10", "cifar-10/cifar-10-batches-bin"])
def test_all_layouts_are_found(tmp_path, alone, inside):
    folder = tmp_path / "data" / inside
    folder.mkdir(parents=True)
    for number, name in enumerate(CIFAR_FILES):
        (folder / name).write_bytes(record(number, lambda c, i, j: 0))
    loaded = data.load("cifar-10", tmp_path / "data")
    assert loaded.train.y.tolist() == [0, 1, 2, 3, 4] and loaded.test.y.tolist() == [5]


def test_a_missing_batch_is_named(tmp_path, alone):
    (tmp_path / "cifar-10").mkdir()
    for name in CIFAR_FILES[:-1]:
        (tmp_path / "cifar-10" / name).write_bytes(bytes(RECORD))
    with pytest.raises(EdgePruneError, match=r"lacks test_batch\.bin; 'edgeprune data fetch cifar-10'"):
        data.load("cifar-10", tmp_path)


def test_the_real_files_as_a_rebuilt_copy(real, tmp_path):
    """A copy whose photographs are kept as lossless sheets, written out in the published layout."""
    pytest.importorskip("PIL", reason="the rebuilt copy of CIFAR-10 needs pillow")
    script = real / "prepare.py"
    if not script.is_file():
        pytest.skip("no rebuilt copy of CIFAR-10 in EDGEPRUNE_DATA")
    subprocess.run([sys.executable, str(script), str(tmp_path / "cifar-10")], check=True, timeout=120)
    loaded = data.load("cifar-10", tmp_path)
    assert loaded.train.x.shape == (50_000, 3, 32, 32)
    assert loaded.train.y.bincount().tolist() == [5000] * 10 and loaded.test.y.bincount().tolist() == [1000] * 10
    assert "test_batch.bin" in loaded.note  # 98 of its images are not the published ones, and the copy says so
    labels = np.load(real / "cifar-10" / "labels.npz")
    assert loaded.train.y.tolist() == labels["y_train"].tolist()
    x = loaded.normalise(loaded.train.x[:5000]).double()
    assert float(x.mean(dim=(0, 2, 3)).abs().max()) < 0.02
