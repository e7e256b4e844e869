"""UCI-HAR from its two forms, and .npz archives nobody vouches for."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import data
from edgeprune.data.har import SIGNALS
from edgeprune.data.npz import read_npz
from edgeprune.errors import EdgePruneError


def arrays():
    """Three training and two test windows; values that float32 holds exactly."""
    rng = np.random.default_rng(0)
    out = {}
    for part, count in (("train", 3), ("test", 2)):
        out[f"x_{part}"] = rng.integers(-512, 512, (count, 9, 128)).astype(np.float32) / 256
        out[f"y_{part}"] = np.arange(count, dtype=np.uint8)
        out[f"subject_{part}"] = np.arange(10, 10 + count, dtype=np.uint8)
    return out


def write_npz(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **values)


def write_published(path, values, change=lambda name, text: text):
    """The archive as UCI publishes it: numbers as text, labels from 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "test"):
            folder = f"UCI HAR Dataset/{part}"
            texts = {
                f"{folder}/y_{part}.txt": "\n".join(str(int(y) + 1) for y in values[f"y_{part}"]) + "\n",
                f"{folder}/subject_{part}.txt": "\n".join(str(s) for s in values[f"subject_{part}"]) + "\n",
            }
            for channel, signal in enumerate(SIGNALS):
                rows = values[f"x_{part}"][:, channel]
                text = "\n".join(" " + "  ".join(f"{v:.7e}" for v in row) for row in rows) + "\n"
                texts[f"{folder}/Inertial Signals/{signal}_{part}.txt"] = text
            for name, text in texts.items():
                archive.writestr(name, change(name, text))


@pytest.mark.parametrize("form", ["npz", "zip"])
def test_both_forms_give_the_same(tmp_path, alone, form):
    values = arrays()
    if form == "npz":
        write_npz(tmp_path / "uci-har" / "uci_har.npz", **values)
    else:
        write_published(tmp_path / "uci-har" / "UCI HAR Dataset.zip", values)
    loaded = data.load("uci-har", tmp_path)
    np.testing.assert_array_equal(loaded.train.x.numpy(), values["x_train"])
    np.testing.assert_array_equal(loaded.test.x.numpy(), values["x_test"])
    assert loaded.train.y.tolist() == [0, 1, 2]
    assert loaded.test.subject.tolist() == [10, 11]
    normal = loaded.normalise(loaded.train.x).double()
    np.testing.assert_allclose(normal.mean(dim=(0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(dim=(0, 2), correction=0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x_train": np.zeros((3, 9, 64), np.float32)}, "train windows"),
        ({"x_train": np.zeros((3, 9, 128))}, "of float64"),
        ({"y_test": np.zeros(3, np.uint8)}, "for 2 test windows"),
        ({"y_test": np.full(2, 6, np.uint8)}, "labels 6 to 6 where there are 6"),
        ({"x_test": np.full((2, 9, 128), np.nan, np.float32)}, "no numbers"),
        ({"subject_train": np.array(["a", "b", "c"])}, "not plain numbers"),
        ({"subject_train": np.array([1, None, 2], dtype=object)}, "not plain numbers"),  # would be a pickle
    ],
)
def test_arrays_that_do_not_belong_there(tmp_path, alone, change, sentence):
    write_npz(tmp_path / "uci-har" / "uci_har.npz", **{**arrays(), **change})
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        data.load("uci-har", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda name, text: text.replace("e", "x", 1) if "body_acc_x_train" in name else text, "not a number"),
        (lambda name, text: text[:-20] if "total_acc_z_test" in name else text, "values in|not a number"),
        (lambda name, text: "7\n8\n" if name.endswith("/y_test.txt") else text, "labels 6 to 7"),
        (lambda name, text: "\xff" if "subject_train" in name else text, "not a number"),
    ],
)
def test_text_that_does_not_belong_there(tmp_path, alone, change, sentence):
    write_published(tmp_path / "uci-har" / "UCI HAR Dataset.zip", arrays(), change)
    with pytest.raises(EdgePruneError, match=sentence):
        data.load("uci-har", tmp_path)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"), "which takes 8000000000000"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)), "4 bytes for an array"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "8 bytes for an array"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(4)), "negative size"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "not plain numbers"),
        (npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", bytes(4)), "not plain numbers"),
        (npy("__import__('os').abort()"), "cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff", "header of 65535"),
        (b"\x93NUMPY\x03\x00\x00\x00\x00\x00", "format 1 or 2"),
        (b"PK", "more than it can hold"),
    ],
)
def test_a_header_that_lies_is_one_sentence(tmp_path, member, sentence):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(EdgePruneError, match=sentence) as caught:
        read_npz(path, ("x",))
    assert "\n" not in str(caught.value) and "x.npy" in str(caught.value)


def test_an_archive_without_the_array_is_one_sentence(tmp_path):
    write_npz(tmp_path / "x.npz", y=np.zeros(3))
    with pytest.raises(EdgePruneError, match=r"holds no 'x\.npy'"):
        read_npz(tmp_path / "x.npz", ("x",))


def test_a_member_that_promises_more_than_deflate_can_do_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
    raw = path.read_bytes()
    central = raw.rfind(b"PK\x01\x02")
    path.write_bytes(raw[: central + 24] + (1 << 29).to_bytes(4, "little") + raw[central + 28 :])
    with pytest.raises(EdgePruneError, match="promises 536870912 bytes"):
        read_npz(path, ("x",))


GOOD = io.BytesIO()
np.savez_compressed(GOOD, x=np.arange(20, dtype=np.float32).reshape(4, 5))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_wrong_bytes_never_end_in_anything_but_a_sentence(tmp_path_factory, changes, cut):
    raw = bytearray(GOOD.getvalue())
    for at, value in changes:
        raw[at % len(raw)] = value
    path = tmp_path_factory.mktemp("flip") / "x.npz"
    path.write_bytes(raw[: changes[0][0] % len(raw)] if cut else raw)
    try:
        assert read_npz(path, ("x",))["x"].nbytes <= 4 * 5 * 8
    except EdgePruneError as error:
        assert "\n" not in str(error)


def test_the_real_file(real):
    loaded = data.load("uci-har", real)
    assert loaded.train.x.shape == (7352, 9, 128) and loaded.test.x.shape == (2947, 9, 128)
    people = [set(split.subject.tolist()) for split in (loaded.train, loaded.test)]
    assert len(people[0]) == 21 and len(people[1]) == 9 and not people[0] & people[1]
