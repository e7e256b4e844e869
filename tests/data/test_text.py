"""Text as windows of characters."""

from __future__ import annotations

import pytest
import torch

from edgeprune import data
from edgeprune.data.text import load_text
from edgeprune.errors import EdgePruneError


def load(path, raw, **kwargs):
    path.write_bytes(raw)
    return load_text("mine", {"input.txt": path}, **kwargs)


def test_each_character_is_followed_by_its_target(tmp_path):
    loaded = load(tmp_path / "t", b"abcd" * 10, window=3)  # 36 characters train, 4 test
    assert loaded.classes == ("a", "b", "c", "d")
    assert loaded.train.x[:2].tolist() == [[0, 1, 2], [3, 0, 1]]
    assert loaded.train.y[:2].tolist() == [[1, 2, 3], [0, 1, 2]]
    assert len(loaded.train) == 11 and len(loaded.test) == 1
    assert loaded.test.x.tolist() == [[0, 1, 2]] and loaded.test.y.tolist() == [[1, 2, 3]]
    assert loaded.normalise(loaded.train.x).dtype == torch.int64


def test_characters_beyond_ascii_are_one_class_each(tmp_path):
    loaded = load(tmp_path / "t", "äß€😀".encode() * 10, window=3)
    assert loaded.classes == ("ß", "ä", "€", "😀")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "0 characters, too few"),
        (b"abc", "too few for windows"),
        (b"\xff\xfe" * 200, "not text in UTF-8"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 257))).encode() * 20, "257 different characters"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, raw, sentence):
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        load(tmp_path / "t", raw)
    assert "\n" not in str(caught.value)


def test_a_file_too_large_for_memory_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeprune.data.text.LARGEST", 100)
    with pytest.raises(EdgePruneError, match="holds more than 100 bytes of text"):
        load(tmp_path / "t", b"a" * 101)


def test_the_real_file(real):
    loaded = data.load("tinyshakespeare", real)
    assert len(loaded.classes) == 65
    text = "".join(loaded.classes[i] for i in loaded.train.x[0].tolist())
    assert text.startswith("First Citizen:\nBefore we proceed")
    assert loaded.note == ""
