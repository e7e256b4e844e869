"""A bit flipped in an exported file is noticed; what other tools wrote is not judged."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import EdgePruneError
from edgeprune.export import export_onnx, seal
from edgeprune.export.infer import infer
from edgeprune.export.onnx import annotate

ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    done = export_onnx(net, ROWS, tmp_path_factory.mktemp("sealed") / "net.onnx", metadata={"a": 1})
    assert len(done.metadata[seal.KEY]) == 64 and done.metadata[seal.KEY] != seal.BLANK
    return done.path


def test_a_file_as_it_was_written_runs(file: Path, tmp_path: Path) -> None:
    seal.check(file)
    assert infer(file, ROWS).rows == 8
    done = annotate(export_onnx(nn.Linear(6, 3), ROWS, tmp_path / "b.onnx"), {"accuracy": 0.5})
    seal.check(done.path)
    held = {entry.key: entry.value for entry in onnx.load(str(done.path)).metadata_props}
    assert held[seal.KEY] == done.metadata[seal.KEY]


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_bit_anywhere_is_noticed(file: Path, place: float, bit: int) -> None:
    held = bytearray(file.read_bytes())
    at = int(place * len(held))
    held[at] ^= 1 << bit
    bad = file.with_name("bad.onnx")
    bad.write_bytes(held)
    if seal.KEY.encode() + b"\x12@" in held:  # else it is the seal itself that is gone
        with pytest.raises(EdgePruneError, match="not the bytes that edgeprune wrote"):
            seal.check(bad)


def test_one_bit_of_a_weight_stops_infer(file: Path, tmp_path: Path) -> None:
    held = bytearray(file.read_bytes())
    weight = onnx.load(str(file)).graph.initializer[0].raw_data
    held[held.index(weight) + 2] ^= 1
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(held)
    with pytest.raises(EdgePruneError, match=r"bad.onnx: not the bytes .* take 'edgeprune.file_sha256' out"):
        infer(bad, ROWS)


def test_files_of_other_tools_are_not_judged(file: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(file))
    kept = [entry for entry in proto.metadata_props if entry.key != seal.KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    onnx.save_model(proto, str(tmp_path / "other.onnx"))
    assert infer(tmp_path / "other.onnx", ROWS).rows == 8


def test_what_has_no_place_for_it_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(EdgePruneError, match="no place for its digest"):
        seal.seal(tmp_path / "x")
