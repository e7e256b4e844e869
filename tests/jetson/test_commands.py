"""The commands as a user of a board meets them: with jtop's service, and with one of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jtop_service
import pytest
from emulated_board import EmulatedBoard
from jtop_service import Service
from versions import ENVIRONMENTS

from edgeprune.engine import RunDir, federation, load_experiment
from edgeprune.engine.children import Child, Children, wait_for
from edgeprune.engine.sockets import SocketCarrier


def on_board_with(version: str | None) -> dict[str, str]:
    """Variables with which a Python finds this package, and jetson-stats of ``version``."""
    places = [str(jtop_service.ROOT)]
    if version is not None:
        places += map(str, ENVIRONMENTS[version].glob("lib/python3*/site-packages"))
    return {"PYTHONPATH": os.pathsep.join(places), "PYTHONWARNINGS": "ignore"}


def edgeprune(board: EmulatedBoard, *arguments: str, with_version: str | None = None) -> str:
    """Standard output of ``edgeprune ARGUMENTS`` on ``board``, in this Python, to which jetson-stats is added."""
    command = jtop_service.command_on_board(board, [sys.executable, "-m", "edgeprune", *arguments])
    environment = {**os.environ, **on_board_with(with_version), "COLUMNS": "300"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=board.root)
    assert shown.returncode == 0, shown.stderr + shown.stdout
    return shown.stdout


def test_a_worker_measures_the_energy_of_its_training(service: Service, version: str, tmp_path: Path) -> None:
    """Through jtop's service in a process of its own, as 'edgeprune join' starts it; the record has it."""
    service.board.set_power("VDD_IN", 9.0)
    sets = ["algorithm.name=fedavg", "algorithm.epochs=60", "fleet.devices=1", "run.rounds=1", "run.engine=processes"]
    described = load_experiment(None, sets)
    (tmp_path / "experiment.toml").write_text(described.to_toml())
    path = tmp_path / "w.sock"
    command = [sys.executable, "-m", "edgeprune.engine.resident", "--power=jtop", "--client=device-0"]
    command += [f"--experiment={tmp_path}/experiment.toml", f"--socket={path}", f"--state={tmp_path}"]
    command = jtop_service.command_on_board(service.board, command)
    said: list[str] = []
    with Children() as children:
        worker = children.start(Child("worker", command, tmp_path / "log", on_board_with(version)))
        assert wait_for(path.is_socket, 60, worker)
        federation.lead(
            described, SocketCarrier({"device-0": path}), tmp_path / "run", None, wait_s=60, say=said.append
        )
    assert "power through jtop, rail VDD_IN" in said[0]
    (record,) = RunDir(tmp_path / "run").metrics()
    told = record["transport"]
    assert told["energy_j"]["device-0"] == pytest.approx(9.0 * told["device_s"]["device-0"], rel=0.02)


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
