"""Mistakes in the command line that must show before the work: where results go, and numbers that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def edgeprune(*arguments: str, cwd: Path, path: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", "edgeprune", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, *(p for p in sys.path if p)])},
    )


@pytest.mark.parametrize(
    ("output", "command"),
    [
        ("pipe", ("report", "run")),
        ("pipe", ("export", "run")),
        ("folder", ("infer", "m.onnx", "--data", "digits")),
        ("folder", ("profile", "digits")),
        ("pipe", ("bench", "onnx", "m.onnx")),
        ("folder", ("bench", "kernels")),
    ],
    ids=range(6),
)
def test_a_place_for_no_file_is_refused_at_once(output: str, command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = {entry.name: entry.lstat().st_mode for entry in tmp_path.iterdir()}
    done = edgeprune(*command, "-o", output, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert ("is a folder" if output == "folder" else "is a device or a pipe") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {entry.name: entry.lstat().st_mode for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "digits", "--seconds", "nan"),
        ("prune", "digits", "-o", "small", "--keep", "nan"),
        ("prune", "digits", "-o", "small", "--min-keep", "nan"),
        ("plan", "fleet.toml", "--deadline", "nan"),
        ("join", "kit", "--idle", "nan"),
        ("serve", "fed.toml", "--out", "fed", "--wait", "nan"),
        ("bench", "model", "digits", "--width", "nan"),
        ("bench", "onnx", "m.onnx", "--idle", "nan"),
    ],
    ids=" ".join,
)
def test_what_is_no_number_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    done = edgeprune(*command, cwd=tmp_path)
    assert done.returncode == 2 and "nan is not a finite number" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "option", "bounds"), [("prune", "--keep", "0<x<=1"), ("plan", "--deadline", "x>0")]
)
def test_bounds_are_said_and_kept(command: str, option: str, bounds: str, tmp_path: Path) -> None:
    told = edgeprune(command, "--help", cwd=tmp_path).stdout
    assert f"[{bounds}]" in told and "None" not in told
    done = edgeprune(command, "digits", option, "0", cwd=tmp_path)
    assert done.returncode == 2 and f"'{option}': 0.0 is not in the range {bounds}" in done.stderr


def test_prune_looks_at_its_folder_before_it_measures(tmp_path: Path) -> None:
    for output, words in (("none/small", "does not exist"), ("link", "is there already")):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("nowhere")
        done = edgeprune("prune", "digits", "--budget", "ms=1", "--latency", "t.json", "-o", output, cwd=tmp_path)
        assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
        assert os.listdir(tmp_path) == ["link"] and done.stdout == ""


def test_an_order_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); from edgeprune.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, "prune", "digits", "-o", "small", "--order", "order.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 1 and "order.json: cannot be written (File too large)" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("group", [(), ("data",), ("bench",)], ids=["edgeprune", "data", "bench"])
def test_a_group_alone_shows_its_help_in_lines(group: tuple[str, ...], tmp_path: Path) -> None:
    alone, asked = edgeprune(*group, cwd=tmp_path), edgeprune(*group, "--help", cwd=tmp_path)
    shown = alone.stdout + alone.stderr  # click before 8.2 prints it to the standard output
    assert shown.strip() == asked.stdout.strip() and len(shown.splitlines()) > 8


@pytest.mark.parametrize(("command", "words"), [("export", ["jetpack6", "int8"]), ("bench", ["kernels", "onnx"])])
def test_help_does_not_need_torch(command: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    done = edgeprune(command, "--help", cwd=tmp_path, path=(str(tmp_path),))
    assert done.returncode == 0 and all(word in done.stdout for word in words)
