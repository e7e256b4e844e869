"""``python -m edgeprune.wire FILE``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgeprune
from edgeprune import wire
from edgeprune.wire.__main__ import main

HERE = Path(__file__).resolve().parent


def test_it_shows_what_a_message_holds(capsys):
    assert main([str(HERE / "golden" / "assignment.bin")]) == 0
    out = capsys.readouterr().out
    for part in ("assignment, version 2", "round: 3", "client: device-1", "0123456789abcdef", "2 bytes", '"seed":5'):
        assert part in out
    assert main([str(HERE / "golden" / "gaps.bin")]) == 0
    out = capsys.readouterr().out
    assert "gaps 3 B" in out and "float32" in out and "4.69%" in out


def test_long_names_are_shown_to_their_end(tmp_path, capsys):
    names = [f"encoder.layers.encoder_layer_{i}.self_attention.out_proj.weight" for i in (10, 11)]
    path = tmp_path / "message.bin"
    path.write_bytes(edgeprune.pack({name: torch.randn(768, 768) for name in names}, density=0.01, dtype="int8"))
    assert main([str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = "".join(row[0] for row in rows if "tensor" not in row)
    assert all(name in shown for name in names) and "…" not in shown
    assert [row[1] for row in rows if "float32" in row] == ["768x768"] * 2


@pytest.mark.parametrize("name", sorted(path.stem for path in (HERE / "golden").glob("*.bin")))
def test_every_golden_file_can_be_shown(name, capsys):
    assert main([str(HERE / "golden" / f"{name}.bin")]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sentence"), [("cut", "it was truncated"), ("checksum", "checksum"), ("name-utf8", "not UTF-8")]
)
def test_a_bad_file_is_one_sentence(name, sentence, capsys):
    path = str(HERE / "attacks" / f"{name}.bin")
    assert main([path]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(path) and sentence in said.err


def test_a_missing_file_and_a_wrong_call(tmp_path, capsys):
    assert main([str(tmp_path / "none.bin")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert main([]) == 2 and "usage" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "usage" in capsys.readouterr().out


def test_names_cannot_talk_to_the_terminal(tmp_path, capsys):
    message = wire.Message("update", 1, "\x1b[2J", "", {}, {"note": "[red]\u202e"})
    (tmp_path / "x.bin").write_bytes(wire.encode(message))
    assert main([str(tmp_path / "x.bin")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J" in out and "[red]" in out and "no tensors" in out


def test_as_a_module():
    command = [sys.executable, "-m", "edgeprune.wire", str(HERE / "golden" / "state.bin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "2 tensors of 16 bytes" in done.stdout
