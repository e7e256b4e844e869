"""``edgeprune doctor``: exit status, JSON, and a sentence for each fault."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeprune.cli import checkup, doctor

INFO = {
    "compiled": ["avx2", "scalar"],
    "present": ["avx2", "scalar"],
    "chosen": "avx2",
    "cuda_built": False,
    "cuda": "nvcc was not found",
    "compiler": "gcc 12",
    "self_test": {"gather": "ok"},
}


def answering(monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, stderr: str = "") -> None:
    """The child process that asks the kernels, played."""

    def run(args: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if args[-1] == "--version":
            return subprocess.CompletedProcess(args, 0, "Cuda compilation tools, release 12.6, V12.6.68\n", "")
        return subprocess.CompletedProcess(args, code, stdout, stderr)

    monkeypatch.setattr(checkup.subprocess, "run", run)


def test_working_kernels_end_with_status_0(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 0, "a line some library printed\n" + json.dumps({"info": INFO}))
    shown = CliRunner().invoke(doctor.command, [])
    assert shown.exit_code == 0, shown.output
    assert "avx2 chosen" in shown.output and "gather right" in shown.output
    assert "no kernels: nvcc was not found" in shown.output


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "words"),
    [
        (0, json.dumps({"info": {**INFO, "self_test": {"gather": "wrong result"}}}), "", "gather: wrong result"),
        (0, json.dumps({"reason": "the core cannot be loaded (no such file): install again"}), "", "cannot be loaded"),
        (-4, "", "", "died of SIGILL"),
        (1, "", "Traceback\nMemoryError: x", "MemoryError: x"),
        (0, "[]", "", "gave no answer"),
    ],
)
def test_broken_kernels_end_with_status_1_and_say_why(
    code: int, stdout: str, stderr: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, code, stdout, stderr)
    shown = CliRunner().invoke(doctor.command, ["--json"])
    assert shown.exit_code == 1
    kernels = json.loads(shown.output)["kernels"]
    assert words in kernels["reason"] and kernels["ok"] is False
    assert "install" in kernels["reason"] + kernels["remedy"]
    plain = CliRunner(env={"COLUMNS": "300"}).invoke(doctor.command, [])
    assert plain.exit_code == 1 and words in plain.output


def test_kernels_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(args, 1)

    monkeypatch.setattr(checkup.subprocess, "run", run)
    assert "did not answer" in checkup._kernels()["reason"]


def test_json_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 0, json.dumps({"info": INFO}))
    shown = CliRunner().invoke(doctor.command, ["--json"])
    found = json.loads(shown.output)
    assert set(found) == {
        "edgeprune",
        "ok",
        "machine",
        "torch",
        "kernels",
        "cuda_toolkit",
        "jtop",
        "onnx",
        "data",
        "power",
    }
    assert found["torch"]["threads"] >= 1


def test_the_users_folder_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    answering(monkeypatch, 0, json.dumps({"info": {**INFO, "cuda": f"nvcc not in {tmp_path}/anna/cuda"}}))
    monkeypatch.setattr(checkup, "_data", lambda _: {"mnist": f"{tmp_path}/anna/data"})
    found = checkup.checkup()
    assert "anna" not in json.dumps(found) and found["data"] == {"mnist": "~/data"}
    assert found["kernels"]["info"]["cuda"] == "nvcc not in ~/cuda"


def test_data_sets(tmp_path: Path) -> None:
    found = checkup._data(str(tmp_path))
    assert found["digits"] == "built in" and "cifar-10" in found and "reason" not in found


def a_jetson() -> dict[str, Any]:
    return {
        "edgeprune": "0.1.0",
        "machine": {
            "board": "NVIDIA Jetson Orin Nano [bold]x[/bold]",
            "l4t": "36.4.3",
            "export_target": "jetpack6",
            "cpu": "Cortex-A78AE",
            "architecture": "aarch64",
            "simd": ["asimd"],
            "cores": 6,
            "cores_usable": 6,
            "memory_total": 8 << 30,
            "memory_free": None,
            "system": "Linux",
            "python": "3.10.12",
        },
        "torch": {
            "version": "2.5.0",
            "threads": 6,
            "cuda": "12.4",
            "path": "somewhere",
            "gpu": {"name": "Orin", "capability": "8.7", "torch_built_for": ["sm_80"]},
            "reason": "torch carries no code made for sm_87",
            "remedy": "install another",
        },
        "kernels": {"ok": True, "reason": "", "remedy": "", "info": {**INFO, "cuda_built": True, "cuda": "87"}},
        "cuda_toolkit": {"nvcc": None, "version": None},
        "jtop": {"ready": False, "version": "4.3.2", "remedy": "start the service"},
        "power": {
            "source": "hwmon INA3221",
            "rail": "VDD_IN",
            "watts": 6.04,
            "reason": "",
            "instead_of": "no jtop service runs here",
            "mode": "15W",
            "clocks_khz": {"GPU clock": 612_000},
            "temperatures_c": {"cpu": 51.0, "tj": 52.4},
            "cooling": {"gpu-throttle-alert": 1},
        },
        "onnx": {"onnx": None, "onnxruntime": None, "providers": [], "remedy": "pip install 'edgeprune[onnx]'"},
        "data": {"digits": "built in", "mnist": ""},
    }


def test_lines_of_a_jetson() -> None:
    lines = {name: (mark, text) for name, mark, text in doctor.rows(a_jetson()) if name}
    assert lines["board"][1].endswith("Jetson Linux 36.4.3 (export target jetpack6)")
    assert lines["torch CUDA"][0] == "bad" and "no code made for sm_87; install another" in lines["torch CUDA"][1]
    assert lines["jtop"] == ("bad", "jetson-stats 4.3.2: start the service")
    assert lines["CUDA"] == ("ok", "kernels built for 87")
    assert lines["ONNX"] == ("", "not installed; pip install 'edgeprune[onnx]'")
    assert lines["data"][1] == "found: digits"
    assert lines["state"] == (
        "bad", "power mode 15W, GPU clock up to 612 MHz, tj 52 C, slowed down by heat (gpu-throttle-alert)"
    )  # fmt: skip
    assert lines["power"][0] == "ok" and lines["power"][1].startswith("6.04 W on VDD_IN through hwmon INA3221; not a")


def test_power_that_cannot_be_measured() -> None:
    """A fault on a Jetson, a fact on any other machine."""
    power = {**a_jetson()["power"], "watts": None, "reason": "no jtop service runs here", "cooling": {}}
    assert doctor._power_rows(power, True)[1] == ("power", "bad", "not measured: no jtop service runs here")
    bare = {**power, "mode": None, "clocks_khz": {}, "temperatures_c": {}}
    assert doctor._power_rows(bare, False) == [("power", "", "not measured: no jtop service runs here")]


def test_power_of_this_machine_is_tried() -> None:
    found = checkup._power()
    assert (found["watts"] is None) == bool(found["reason"]), found


def test_names_are_not_markup() -> None:
    from rich.console import Console

    console = Console(width=200, file=None)
    with console.capture() as capture:
        console.print(doctor._table(a_jetson()))
    assert "[bold]x[/bold]" in capture.get()


def test_no_torch_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    found = checkup._torch()
    assert found["version"] is None and found["remedy"]
    assert doctor._torch_rows(found)[0][1] == "bad"


def test_the_real_kernels_of_this_installation() -> None:
    found = checkup._kernels()
    assert found["ok"], found
    assert found["info"]["chosen"] in found["info"]["compiled"]
