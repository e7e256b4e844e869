"""Golden files of every kind, coding and way to place values: read, and written again byte for byte."""

from __future__ import annotations

import pytest
import torch
from golden.make_golden import HERE, make
from wire_cases import same

from edgeprune import wire
from edgeprune.wire.layout import KINDS

GOLDEN = make()
ZSTD = HERE / "zstd-by-zstandard-0.25.bin"  # zstandard's own bytes may change with its version, their meaning not
KNOWN = {"w": wire.to_bitmap(torch.tensor([True] + [False] * 7 + [True]))}


def test_every_kind_has_a_file():
    assert KINDS.keys() <= GOLDEN.keys()
    assert {path.stem for path in HERE.glob("*.bin")} == GOLDEN.keys() | {ZSTD.stem}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden(name):
    message, by_hand = GOLDEN[name]
    blob = (HERE / f"{name}.bin").read_bytes()
    assert blob == by_hand
    assert wire.encode(message) == blob
    got = wire.decode(blob, kind=tuple(KINDS), masks=KNOWN)
    for field in ("kind", "round", "client", "plan", "samples", "mask", "kept", "header"):
        assert getattr(got, field) == getattr(message, field)
    assert got.tensors.keys() == message.tensors.keys() | message.packed.keys()
    for tensor, value in message.tensors.items():
        assert same(got.tensors[tensor], value)
    for tensor, packed in message.packed.items():
        assert same(got.tensors[tensor], packed.tensor())


def test_values_of_golden_files_by_hand():
    def read(name: str) -> torch.Tensor:
        return wire.decode((HERE / f"{name}.bin").read_bytes(), kind=tuple(KINDS), masks=KNOWN).tensors["w"]

    assert read("bitmap").tolist() == [1, 0, 3, 0, 0, 6, 0, 0, 9]
    assert read("known").tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 9]
    assert torch.nonzero(read("gaps")).flatten().tolist() == [3, 21, 60] and read("gaps")[60] == 61
    assert torch.nonzero(read("runs")).flatten().tolist() == [*range(8, 520), *range(700, 1024)]
    assert torch.nonzero(read("units")).flatten().tolist() == [*range(24, 72), *range(216, 240)]
    codings = wire.decode((HERE / "codings.bin").read_bytes(), kind="state").tensors
    assert all(x.tolist() == [1, -2, 127] for x in codings.values()) and codings["f32"].dtype == torch.float64


def test_a_compressed_mask_of_another_day():
    kept = torch.arange(4096) % 64 < 5
    got = wire.decode(ZSTD.read_bytes(), kind="state").tensors["w"]
    assert torch.equal(got, torch.where(kept, torch.arange(4096.0), 0.0))
    packed = wire.pack_tensor(torch.arange(4096.0), wire.to_bitmap(kept))
    now = wire.encode(wire.Message("state", 0, "", "", {}, packed={"w": packed}))
    assert len(now) < 4 * int(kept.sum()) + 200  # today's library too finds that the mask repeats itself
