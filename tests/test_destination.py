"""Where a file is written: what may stand there, and that nothing is left when it does not come about."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeprune.destination import check_destination, staged, write_text
from edgeprune.errors import EdgePruneError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "is a folder"),
        ("pipe", "is a device or a pipe"),
        ("to-pipe", "is a device or a pipe"),
        ("missing/x", "does not exist"),
        ("file/x", "is not a folder"),
        ("a\0b", "cannot name a file"),
        ("a" * 300, "cannot name a file"),
    ],
    ids=range(7),
)
def test_what_no_file_can_replace_is_refused_and_stays(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("older")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    before = {entry.name: entry.lstat().st_mode for entry in tmp_path.iterdir()}
    with pytest.raises(EdgePruneError, match=f"^op: .*{words}") as caught:
        write_text(tmp_path / name, "new", "op")
    assert "\n" not in str(caught.value)
    assert {entry.name: entry.lstat().st_mode for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("path", [None, b"x", 3])
def test_a_path_is_text(path: object) -> None:
    with pytest.raises(EdgePruneError, match="give its path as text"):
        check_destination(path, "op")  # type: ignore[arg-type]


def test_written_in_one_step_even_under_the_longest_name(tmp_path: Path) -> None:
    place = tmp_path / ("n" * 255)
    write_text(place, "first", "op")
    write_text(place, "sécond", "op")
    assert place.read_text(encoding="utf-8") == "sécond" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_and_an_error_leave_the_older_file(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("older")
    with (
        pytest.raises(EdgePruneError, match="cannot be written \\(No space left on device\\)"),
        staged(place, "op") as at,
    ):
        at.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), staged(place, "op") as at:
        at.write_text("half")
        raise ZeroDivisionError
    assert place.read_text() == "older" and len(list(tmp_path.iterdir())) == 1
