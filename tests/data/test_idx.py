"""IDX files: what is read is what was written, and no file of any content does more than raise one sentence."""

from __future__ import annotations

import gzip
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from idx_files import idx_bytes

from edgeprune import data
from edgeprune.data import idx
from edgeprune.data.registry import IDX_FILES
from edgeprune.errors import EdgePruneError

VALUES = np.arange(24).reshape(2, 3, 4)


def refused(path, dimensions=3):
    """The sentence about a bad file."""
    with pytest.raises(EdgePruneError) as caught:
        idx.read_idx(path, dimensions)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_what_was_written(tmp_path, suffix):
    path = tmp_path / f"values{suffix}"
    raw = idx_bytes(VALUES)
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    read = idx.read_idx(path, 3)
    assert read.dtype == torch.uint8
    assert read.tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "more than it can hold"),
        (b"\0\0\x08", "more than it can hold"),
        (b"\0\x01" + idx_bytes(VALUES)[2:], "not an IDX file"),
        (b"\0\0\x0d" + idx_bytes(VALUES)[3:], "not an IDX file"),  # floats
        (idx_bytes(VALUES.ravel()), "not an IDX file"),  # one dimension where three belong
        (idx_bytes(VALUES)[:-1], "promises 24 bytes of values"),
        (idx_bytes(VALUES) + b"\0", "goes on after its last sample"),
        (idx_bytes(np.zeros((0, 3, 4))), "holds no values"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "more than it can hold"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, raw, sentence):
    path = tmp_path / "values"
    path.write_bytes(raw)
    assert sentence in refused(path)


def test_a_cut_gzip_file_is_one_sentence(tmp_path):
    path = tmp_path / "values.gz"
    packed = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (10, 28, 28))))
    path.write_bytes(packed[: len(packed) // 2])
    assert "cut off" in refused(path)
    path.write_bytes(packed[:-8] + b"\xff" * 8)  # the checksum at the end
    assert "cannot be read" in refused(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    """64 MB of zeros behind a header that asks for one image: reading stops after the image and one byte more."""
    path = tmp_path / "bomb.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(struct.pack(">HBB3I", 0, 8, 3, 1, 28, 28))
    path.write_bytes(head + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush())
    assert path.stat().st_size < 100_000
    assert "goes on" in refused(path)


def test_a_gzip_files_promise_is_bounded_by_what_deflate_can_do(tmp_path):
    path = tmp_path / "liar.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28)))
    assert "promises 47040000 bytes" in refused(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    assert "No such file" in refused(tmp_path / "nowhere")


@given(raw=st.binary(max_size=200), packed=st.booleans())
def test_any_bytes_give_values_or_one_sentence(tmp_path_factory, raw, packed):
    path = tmp_path_factory.mktemp("any") / ("x.gz" if packed else "x")
    path.write_bytes(raw)
    with pytest.raises(EdgePruneError):
        idx.read_idx(path, 3)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_one_wrong_byte_never_ends_in_anything_else(tmp_path_factory, at, value):
    path = tmp_path_factory.mktemp("flip") / "x.gz"
    raw = bytearray(gzip.compress(idx_bytes(VALUES), mtime=0))
    raw[at % len(raw)] = value
    path.write_bytes(raw)
    try:
        assert idx.read_idx(path, 3).tolist() == VALUES.tolist()
    except EdgePruneError as error:
        assert "\n" not in str(error)


def test_a_folder_of_four_files_becomes_a_data_set(idx_folder, alone):
    loaded = data.load("mnist", idx_folder)
    assert loaded.train.x.shape == (6, 1, 28, 28) and loaded.test.x.shape == (4, 1, 28, 28)
    assert loaded.train.y.dtype == torch.int64
    assert len(loaded.classes) == 10
    assert loaded.note.startswith("not the published bytes: train-images")
    x = loaded.normalise(loaded.train.x)
    by_hand = (loaded.train.x.double() / 255 - 0.1306604762738429) / 0.3081078038564622
    torch.testing.assert_close(x.double(), by_hand, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        (IDX_FILES[1], np.zeros(5), "5 labels for the 6 images"),
        (IDX_FILES[3], np.full(4, 10), "label 10 where there are 10 classes"),
        (IDX_FILES[2], np.zeros((4, 8, 8)), "images of 8x8 where mnist has 28x28"),
    ],
)
def test_files_that_do_not_belong_together(idx_folder, alone, file, values, sentence):
    (idx_folder / file).write_bytes(gzip.compress(idx_bytes(values)))
    with pytest.raises(EdgePruneError, match=sentence):
        data.load("mnist", idx_folder)


@pytest.mark.parametrize(
    ("name", "per_class"),
    [
        ("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("fashion-mnist", [1000] * 10),
    ],
)
def test_the_real_files(real, name, per_class):
    loaded = data.load(name, real)
    assert loaded.train.x.shape == (60_000, 1, 28, 28)
    assert loaded.test.y.bincount().tolist() == per_class
    assert loaded.note == ""
    x = loaded.normalise(loaded.train.x).double()
    assert abs(float(x.mean())) < 1e-4 and abs(float(x.std()) - 1) < 1e-4


def test_one_data_set_in_the_folder_of_the_other_is_noticed(real, tmp_path, alone):
    (tmp_path / "mnist").symlink_to(real / "fashion-mnist")
    with pytest.raises(EdgePruneError, match="holds fashion-mnist, not mnist"):
        data.load("mnist", tmp_path)
