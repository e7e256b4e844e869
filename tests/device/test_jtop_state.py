"""What stands between us and jtop, with real sockets and without jtop."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.device import jtop_state as module
from edgeprune.device.jtop_state import jtop_state


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed_version", lambda: "4.3.2")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "jtop.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(1)
        yield path


def test_ready(installed: None, listening: Path) -> None:
    state = jtop_state(True, listening)
    assert state.ready and state.remedy == "" and state.version == "4.3.2"


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed_version", lambda: None)
    assert "edgeprune[jetson]" in jtop_state(True, tmp_path / "none").remedy
    assert "Jetson boards only" in jtop_state(False, tmp_path / "none").remedy
    assert not jtop_state(True, tmp_path / "none").ready


def test_no_service(installed: None, tmp_path: Path) -> None:
    state = jtop_state(True, tmp_path / "none")
    assert not state.socket and "systemctl start jtop" in state.remedy


def test_a_plain_file_is_no_socket(installed: None, tmp_path: Path) -> None:
    path = tmp_path / "jtop.sock"
    path.write_text("")
    assert not jtop_state(True, path).socket


def test_socket_left_behind(installed: None, tmp_path: Path) -> None:
    path = tmp_path / "jtop.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
    state = jtop_state(True, path)
    assert state.socket and not state.answering and "systemctl restart jtop" in state.remedy


def test_not_in_the_group(installed: None, listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    state = jtop_state(True, listening)
    assert not state.permitted and "usermod -aG jtop" in state.remedy


def test_a_service_that_hangs_does_not_hang_us(installed: None, listening: Path) -> None:
    """Nobody accepts: the queue of one fills up, and still the answer comes."""
    waiting = []
    for _ in range(3):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(0.05)
        with contextlib.suppress(OSError):
            client.connect(str(listening))
        waiting.append(client)
    try:
        assert jtop_state(True, listening).socket
    finally:
        for client in waiting:
            client.close()


def test_jtop_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jtop.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    state = jtop_state(True, tmp_path / "none")
    assert state.version == "unknown" and "jtop" not in sys.modules
