"""Messages: round trip, the same bytes every time, and what a hostile sender can try."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import EdgePruneError
from edgeprune.wire import Message, decode, encode


def message(**tensors: torch.Tensor) -> Message:
    tensors = tensors or {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    return Message("update", 4, "device-1", "0123456789abcdef", tensors, {"samples": 12, "loss": 0.5})


def repacked(blob: bytes, **changes: object) -> bytes:
    """``blob`` with keys of its header changed by somebody who knows the format; None removes a key."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["edgeprune"])
    header.update(changes)
    header = {key: value for key, value in header.items() if value is not None}
    return safetensors.torch.save(safetensors.torch.load(blob), metadata={"edgeprune": json.dumps(header)})


def test_round_trip():
    sent = message()
    got = decode(encode(sent), kind="update")
    assert (got.kind, got.round, got.client, got.plan, got.header) == (
        sent.kind,
        sent.round,
        sent.client,
        sent.plan,
        sent.header,
    )
    assert got.tensors.keys() == sent.tensors.keys()
    assert all(torch.equal(got.tensors[name], sent.tensors[name]) for name in sent.tensors)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5, 7)])
def test_every_type_and_shape_comes_back_bit_for_bit(dtype, shape):
    value = torch.randint(0, 2, shape).to(dtype)
    got = decode(encode(message(x=value)), kind="update").tensors["x"]
    assert got.dtype == dtype and got.shape == value.shape and torch.equal(got, value)


def test_the_same_message_is_the_same_bytes():
    a = {"b": torch.ones(3), "a": torch.zeros(2)}
    b = {"a": torch.zeros(2), "b": torch.ones(6)[::2]}
    assert encode(message(**a)) == encode(message(**b))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"kind": "assignment"}, "expected a message of kind 'update'"),
        ({"round": "4"}, "'round' is missing or not int"),
        ({"round": True}, "'round' is missing or not int"),
        ({"client": 7}, "'client' is missing or not str"),
        ({"plan": None}, "'plan' is missing or not str"),
        ({"crc32": 1}, "checksum"),
    ],
)
def test_forged_headers_are_refused(changes, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        decode(repacked(encode(message()), **changes), kind="update")


ATTACKS = {
    "nothing at all": b"",
    "less than a length": b"\x01\x02\x03",
    "a header length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "a header length beyond the end": (1000).to_bytes(8, "little") + b"{}",
    "a header that is not text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "a header that is a list": (2).to_bytes(8, "little") + b"[]",
    "a header without metadata": (2).to_bytes(8, "little") + b"{}",
    "deep nesting": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "metadata that is a list": safetensors.torch.save({"w": torch.ones(1)}, metadata={"edgeprune": "[]"}),
    "metadata that is not JSON": safetensors.torch.save({"w": torch.ones(1)}, metadata={"edgeprune": "{"}),
    "somebody else's safetensors": safetensors.torch.save({"w": torch.ones(1)}),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_hostile_bytes_are_refused(attack):
    with pytest.raises(EdgePruneError):
        decode(ATTACKS[attack], kind="update")


def test_offsets_that_claim_more_than_there_is():
    blob = encode(message(w=torch.ones(4)))
    length = int.from_bytes(blob[:8], "little")
    outer = json.loads(blob[8 : 8 + length])
    outer["w"]["shape"], outer["w"]["data_offsets"] = [1 << 40], [0, 1 << 42]
    header = json.dumps(outer).encode()
    with pytest.raises(EdgePruneError, match="cannot be read"):
        decode(len(header).to_bytes(8, "little") + header + blob[8 + length :], kind="update")


def test_too_large_is_refused_unread():
    blob = encode(message())
    with pytest.raises(EdgePruneError, match="over the limit"):
        decode(blob, kind="update", limit=len(blob) - 1)
    assert decode(blob, kind="update", limit=len(blob)).client == "device-1"


@settings(max_examples=200)
@given(st.data())
def test_cut_or_flipped_bytes_never_pass_unnoticed(data):
    blob = bytearray(encode(message()))
    if data.draw(st.booleans()):
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
        with pytest.raises(EdgePruneError):
            decode(bytes(blob), kind="update")
    else:
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] ^= data.draw(st.integers(1, 255))
        try:
            got = decode(bytes(blob), kind="update")
        except EdgePruneError:
            return
        # What still decodes can only differ in the header (which the server compares) or be the same message.
        assert all(torch.equal(got.tensors[name], message().tensors[name]) for name in got.tensors)


def test_reserved_keys_are_not_for_callers():
    with pytest.raises(EdgePruneError, match="belongs to the format"):
        encode(Message("update", 1, "a", "p", {}, {"crc32": 5}))
