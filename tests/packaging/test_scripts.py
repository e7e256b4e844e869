"""The scripts of the repository, in a copy of it whose environment and command only say what they were asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts in a folder whose name has a space."""
    shutil.copytree(ROOT / "scripts", tmp_path / "a copy" / "scripts")
    return tmp_path / "a copy"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_quickstart_takes_its_folder_from_where_it_is_called(copy: Path, tmp_path: Path) -> None:
    program(copy / "scripts" / "setup", "true")
    program(copy / ".venv" / "bin" / "edgeprune", 'echo "$1: $*"')
    for folder in (tmp_path / "elsewhere" / "mine", copy / "mine"):
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
    said = subprocess.run(
        [copy / "scripts" / "quickstart", "mine"],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines()[0] == f"run: run --out {tmp_path / 'elsewhere' / 'mine'}"
    assert not (tmp_path / "elsewhere" / "mine").exists() and (copy / "mine" / "config.toml").exists()


def test_setup_goes_on_with_an_environment_that_was_left_without_pip(copy: Path) -> None:
    """As ``python3 -m venv`` leaves it on a Debian without python3-venv."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", copy / ".venv"], check=True)
    (copy / "pyproject.toml").write_text("not TOML")  # the end of what is tried here: nothing is downloaded
    subprocess.run(
        [copy / "scripts" / "setup"],
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PYTHON": sys.executable},
        capture_output=True,
    )
    subprocess.run([copy / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=True, capture_output=True)
