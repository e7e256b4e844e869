"""Envelopes: what was written is read, what is cut, made up or too long is refused."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.engine import frames
from edgeprune.engine.frames import Frame
from edgeprune.errors import EdgePruneError

FRAME = Frame("work", "device-3", "00ff", {"round": 4}, b"\x00\x01" * 50)


def test_a_frame_is_its_bytes():
    data = FRAME.to_bytes()
    assert data[:4] == b"EPF1" and data.endswith(FRAME.blob)
    assert Frame.from_bytes(data, ("work",)) == FRAME


@given(st.binary(max_size=400))
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(EdgePruneError):
        Frame.from_bytes(data, frames.ASKS)


@given(st.integers(0, 73))
def test_what_is_cut_within_the_header_is_refused(length):
    data = FRAME.to_bytes()
    assert len(data) - len(FRAME.blob) > 73
    with pytest.raises(EdgePruneError):
        Frame.from_bytes(data[:length], frames.ASKS)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (FRAME.to_bytes(), "over the limit"),
        (b"EPF1\xff\xff\xff\xff{}", "cut short"),
        (b"EPF1\x02\x00\x00\x00{}", "cannot be read"),
        (b"EPF1\x02\x00\x00\x00[]", "cannot be read"),
        (Frame("done", "a", "b").to_bytes(), "not expected"),
        (Frame("work", 1, "b").to_bytes(), "wrong type"),  # type: ignore[arg-type]
        (b"EPF1\x40\x0d\x03\x00" + b"[" * 200000, "cut short"),
        (b"EPF1\xf0\xff\x00\x00" + b"[" * 65520, "cannot be read"),
    ],
)
def test_each_fault_has_its_sentence(data, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        Frame.from_bytes(data, ("work", "hello"), limit=100 if sentence == "over the limit" else frames.LIMIT)


def test_what_a_device_says_is_one_short_line():
    assert frames.shown("a\nb\x1b[31m\tc") == "a b [31m c"
    assert len(frames.shown("x" * 5000)) == 300


def test_a_socket_gives_whole_frames_and_believes_no_length():
    mine, other = socket.socketpair()
    with mine, other:
        big = bytes(range(256)) * 20000
        sender = threading.Thread(target=frames.send, args=(other, big))
        sender.start()
        assert frames.receive(mine) == big
        sender.join()
        other.sendall((1 << 60).to_bytes(8, "little"))
        with pytest.raises(EdgePruneError, match="over the limit"):
            frames.receive(mine)
        other.sendall((1 << 30).to_bytes(8, "little") + b"abc")
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(EdgePruneError, match="ended after 3 of"):
            frames.receive(mine)


def test_nobody_there_is_a_sentence(tmp_path):
    with pytest.raises(EdgePruneError, match="cannot be reached"):
        frames.ask(str(tmp_path / "none.sock"), b"", 1.0)
