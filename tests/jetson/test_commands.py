"""The commands as a user of a board meets them: with jtop's service, and with one of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jtop_service
import pytest
from emulated_board import EmulatedBoard
from jtop_service import Service
from versions import ENVIRONMENTS


def edgeprune(board: EmulatedBoard, *arguments: str, with_version: str | None = None) -> str:
    """Standard output of ``edgeprune ARGUMENTS`` on ``board``, in this Python, to which jetson-stats is added."""
    places = [str(jtop_service.ROOT)]
    if with_version is not None:
        places += map(str, ENVIRONMENTS[with_version].glob("lib/python3*/site-packages"))
    command = jtop_service.command_on_board(board, [sys.executable, "-m", "edgeprune", *arguments])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONWARNINGS": "ignore", "COLUMNS": "300"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=board.root)
    assert shown.returncode == 0, shown.stderr + shown.stdout
    return shown.stdout


def doctor(board: EmulatedBoard, with_version: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(edgeprune(board, "doctor", "--json", with_version=with_version))
    assert found["machine"]["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    return found


def test_the_doctor_samples_power_through_jtop(service: Service, version: str) -> None:
    service.board.set_power("VDD_IN", 7.5)
    found = doctor(service.board, version)
    assert found["jtop"]["ready"] and found["jtop"]["version"].startswith(version)
    power = found["power"]
    assert (power["source"], power["rail"], power["reason"]) == ("jtop", "VDD_IN", "")
    assert power["watts"] == pytest.approx(7.5)


def test_the_doctor_finds_out_that_versions_differ(service: Service, version: str) -> None:
    """Package, socket, permission and a listener are all there; only talking to it shows that it cannot be used."""
    others = [other for other in ENVIRONMENTS if other != version]
    if not others:
        pytest.skip("needs both jetson-stats 4.3 and 7.2 (scripts/jtop)")
    found = doctor(service.board, others[0])
    assert found["jtop"]["ready"]
    power = found["power"]
    assert power["source"] == "hwmon INA3221" and power["watts"] == pytest.approx(6.0)
    assert f"jetson-stats=={version}." in power["instead_of"]
