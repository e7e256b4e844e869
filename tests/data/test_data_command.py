"""``edgeprune data``."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from edgeprune.cli.data import command
from edgeprune.data import registry
from edgeprune.data.registry import SOURCES, Download, FileSpec
from edgeprune.errors import EdgePruneError


def invoke(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=True, env={"COLUMNS": "200"})


def test_list_names_every_data_set_and_where_it_was_looked_for(alone, idx_folder):
    done = invoke("list", "--data", idx_folder)
    assert done.exit_code == 0
    assert all(name in done.output for name in SOURCES)
    rows = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    assert str(idx_folder)[:40] in rows["mnist"] and "a fetch brings 170 MB" in rows["cifar-10"]
    assert "comes with scikit-learn" in rows["digits"]
    assert str(alone) in done.output.replace("\n", "")


def test_a_folder_whose_name_looks_like_markup_is_shown_whole(alone, idx_folder, tmp_path):
    shutil.copytree(idx_folder, tmp_path / "data [old]" / "mnist")
    listed = invoke("list", "--data", tmp_path / "data [old]").output
    assert "data[old]/mnist" in "".join(listed.split())  # the table breaks long paths
    assert "[old]" in invoke("verify", "mnist", "--data", tmp_path / "data [old]").output


def test_without_a_home_fetch_asks_for_a_place(alone, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "~")  # what expanduser gives a user who is in no list
    assert "say where with --data" in str(invoke("fetch", "tinyshakespeare").exception)
    assert "looked in no folder" in invoke("list").output


def test_verify_of_the_real_files(alone, real):
    done = invoke("verify", "fashion-mnist", "--data", real)
    assert done.exit_code == 0 and done.output.count(" ok") == 4


def test_verify_of_other_files_fails_with_a_sentence(alone, idx_folder):
    done = invoke("verify", "mnist", "--data", idx_folder)
    assert done.exit_code == 1 and isinstance(done.exception, EdgePruneError)
    assert "4 of 4 files differ" in str(done.exception)


def test_verify_with_nothing_there(alone):
    assert "nothing to verify" in invoke("verify").output
    assert "needs no file" in invoke("verify", "digits").output
    assert "not found in" in str(invoke("verify", "mnist").exception)


def test_fetch_goes_to_the_first_place_that_is_looked_in(alone, tmp_path, monkeypatch):
    body = tmp_path / "served.txt"
    body.write_bytes(b"some text")
    spec = FileSpec("input.txt", 9, hashlib.sha256(b"some text").hexdigest())
    local = replace(SOURCES["tinyshakespeare"], downloads=(Download(spec, (body.as_uri(),)),))
    monkeypatch.setitem(registry.SOURCES, "tinyshakespeare", local)
    done = invoke("fetch", "tinyshakespeare")
    assert done.exit_code == 0 and "1 file in" in done.output
    assert (alone / "tinyshakespeare" / "input.txt").read_bytes() == b"some text"
    assert "already in" in invoke("fetch", "tinyshakespeare").output
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path / "env"))
    invoke("fetch", "tinyshakespeare")
    assert (tmp_path / "env" / "tinyshakespeare" / "input.txt").is_file()
    invoke("fetch", "tinyshakespeare", "--data", tmp_path / "given")
    assert (tmp_path / "given" / "tinyshakespeare" / "input.txt").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["fetch", "cifar10"], "did you mean 'cifar-10'"), (["verify", "mnst"], "did you mean 'mnist'")],
)
def test_an_unknown_name_is_one_sentence(alone, arguments, sentence):
    assert sentence in str(invoke(*arguments).exception)


def test_fetch_of_digits_needs_nothing(alone):
    assert "comes with scikit-learn" in invoke("fetch", "digits").output


def test_the_command_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from edgeprune.cli.data import command; command(['list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
