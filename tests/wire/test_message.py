"""Messages: round trips to the last bit, the same bytes every time, and limits that the receiver sets."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import DTYPES, PLAN, messages, random_tensor, same

from edgeprune.errors import EdgePruneError
from edgeprune.wire import Message, PackedTensor, decode, encode, mask_id, pack_tensor, to_bitmap
from edgeprune.wire.layout import KINDS

ANY = tuple(KINDS)


def message(**tensors: torch.Tensor) -> Message:
    tensors = tensors or {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    return Message("update", 4, "device-1", PLAN, tensors, {"loss": 0.5}, samples=12, kept=b"\x07")


def same_packed(a: PackedTensor, b: PackedTensor) -> bool:
    """The same elements in the same coding."""
    if (a.shape, a.dtype, a.coding, a.kept) != (b.shape, b.dtype, b.coding, b.kept) or not same(a.values, b.values):
        return False
    scales = (a.scales is None) == (b.scales is None) and (a.scales is None or same(a.scales, b.scales))
    return scales and (a.mask is None) == (b.mask is None) and (a.mask is None or same(a.mask, b.mask))


@settings(max_examples=300, deadline=None)
@given(messages())
def test_round_trip_of_everything(sent):
    blob = encode(sent)
    got = decode(blob, kind=ANY, keep_packed=True)
    for field in ("kind", "round", "client", "plan", "samples", "mask", "kept", "header"):
        assert getattr(got, field) == getattr(sent, field)
    assert got.tensors.keys() | got.packed.keys() == sent.tensors.keys() | sent.packed.keys()
    for name, x in sent.tensors.items():
        assert same(got.tensors[name], x)
    dense = decode(blob, kind=ANY).tensors
    for name, packed in sent.packed.items():
        assert same(dense[name], packed.tensor())
        assert same(dense[name], got.tensors[name]) if name in got.tensors else same_packed(got.packed[name], packed)
    assert encode(got) == blob


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5, 7)], ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(dtype, shape):
    value = random_tensor(dtype, shape, 1)
    assert same(decode(encode(message(x=value)), kind="update").tensors["x"], value)


def test_the_same_message_is_the_same_bytes():
    a = {"b": torch.ones(3), "a": torch.zeros(2)}
    b = {"a": torch.zeros(2), "b": torch.ones(6)[::2]}
    assert encode(message(**a)) == encode(message(**b))


def test_what_was_decoded_does_not_hang_together():
    got = decode(encode(message(a=torch.zeros(3), b=torch.zeros(3))), kind="update").tensors
    got["a"].fill_(7)
    assert got["b"].eq(0).all() and got["a"].untyped_storage().nbytes() == 12


def test_a_known_mask_does_not_travel():
    x, kept = torch.randn(4096, generator=torch.Generator().manual_seed(1)), torch.arange(4096) % 3 == 0
    masks = {"w": to_bitmap(kept)}
    sent = Message("update", 1, "a", "", {}, packed={"w": pack_tensor(x, masks["w"], known=True)}, mask=mask_id(masks))
    blob = encode(sent)
    assert len(blob) < 4 * int(kept.sum()) + 120
    assert same(decode(blob, kind="update", masks=masks).tensors["w"], torch.where(kept, x, 0.0))
    for held in ({}, {"w": to_bitmap(~kept)}, {"v": masks["w"]}):
        with pytest.raises(EdgePruneError, match="not held here"):
            decode(blob, kind="update", masks=held)


def test_the_receivers_limits():
    blob = encode(message())
    with pytest.raises(EdgePruneError, match="over the limit"):
        decode(blob, kind="update", limit=len(blob) - 1)
    with pytest.raises(EdgePruneError, match="would take 32 bytes, over the limit of 31"):
        decode(blob, kind="update", dense_limit=31)
    assert decode(blob, kind="update", limit=len(blob), dense_limit=32).client == "device-1"
    with pytest.raises(EdgePruneError, match="expected a message of kind 'assignment' or 'calibrate', got 'update'"):
        decode(blob, kind=("assignment", "calibrate"))


def test_header_costs_what_the_format_says():
    assert len(encode(Message("state", 0, "", "", {}))) == 72 + 4
    assert len(encode(Message("state", 0, "", "", {"name": torch.zeros(5, 2)}))) == 76 + 8 + 2 * 4 + 4 + 40


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "gift"}, "unknown kind 'gift'"),
        ({"round": -1}, "does not fit"),
        ({"round": 1 << 32}, "does not fit"),
        ({"samples": 1 << 64}, "does not fit"),
        ({"client": "x" * (1 << 16)}, "does not fit"),
        ({"client": "\ud800"}, "UTF-8"),
        ({"plan": "p"}, "not 16 lower-case hexadecimal"),
        ({"plan": PLAN.upper()}, "not 16 lower-case hexadecimal"),
        ({"header": {"loss": float("nan")}}, "cannot be written as JSON"),
        ({"header": {"x": "y" * (1 << 16)}}, "over the limit of 65536"),
        ({"tensors": {"n" * 1025: torch.zeros(1)}}, "does not fit the format"),
        ({"tensors": {"n": torch.zeros([1] * 17)}}, "does not fit the format"),
        ({"tensors": {"n": torch.zeros(2, dtype=torch.complex64)}}, "cannot travel"),
        ({"packed": {"w": pack_tensor(torch.zeros(1))}}, "both whole and packed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_written_is_one_sentence(changes, sentence):
    fields = {"kind": "update", "round": 1, "client": "a", "plan": "", "tensors": {"w": torch.zeros(1)}} | changes
    with pytest.raises(EdgePruneError, match=sentence):
        encode(Message(**fields))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cut_or_flipped_bytes_never_pass(data):
    blob = bytearray(encode(message()))
    if data.draw(st.booleans()):
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
    else:
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EdgePruneError):
        decode(bytes(blob), kind=ANY)


@settings(max_examples=400, deadline=None)
@given(messages(), st.data())
def test_a_forger_who_knows_the_checksum_gets_an_error_or_a_message(sent, data):
    blob = bytearray(encode(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 5))] = data.draw(st.integers(0, 255))
    blob[-4:] = zlib.crc32(blob[:-4]).to_bytes(4, "little")
    try:
        got = decode(bytes(blob), kind=ANY, dense_limit=1 << 20, keep_packed=True)
    except EdgePruneError:
        return
    again = decode(encode(got), kind=ANY, keep_packed=True)
    assert all(same(again.tensors[name], x) for name, x in got.tensors.items())
    assert all(same_packed(again.packed[name], x) for name, x in got.packed.items())
