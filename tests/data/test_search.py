"""Where data are looked for, and what is said of what is there. And the facts in the registry."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil

import pytest

from edgeprune import data
from edgeprune.data import search
from edgeprune.data.registry import IDX_FILES, SOURCES, source
from edgeprune.errors import EdgePruneError


def test_order_is_option_then_environment_then_cache(alone, tmp_path, monkeypatch):
    assert search.roots() == [alone]
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path / "env"))
    assert search.roots("given") == [search.Path("given"), tmp_path / "env", alone]


def test_a_user_without_a_home_has_no_cache(idx_folder, alone, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "~")  # what expanduser gives a user who is in no list
    assert search.roots() == [] and search.roots("given") == [search.Path("given")]
    assert search.find("mnist", idx_folder) and search.places()["mnist"] is None
    with pytest.raises(EdgePruneError, match="this user has no home; .* say where it is with --data"):
        data.load("mnist")


def test_the_first_root_that_has_everything_wins(idx_folder, alone, tmp_path, monkeypatch):
    env, given = tmp_path / "env", tmp_path / "given"
    monkeypatch.setenv("EDGEPRUNE_DATA", str(env))
    shutil.copytree(idx_folder, alone / "mnist")
    assert search.find("mnist", given)[IDX_FILES[0]].parent == alone / "mnist"
    shutil.copytree(idx_folder, env / "mnist")
    assert search.find("mnist", given)[IDX_FILES[0]].parent == env / "mnist"
    shutil.copytree(idx_folder, given)
    assert search.find("mnist", given)[IDX_FILES[0]].parent == given
    (given / IDX_FILES[2]).unlink()
    assert search.find("mnist", given)[IDX_FILES[0]].parent == env / "mnist"


def test_unpacked_files_count_as_well(idx_folder, alone):
    packed = idx_folder / IDX_FILES[0]
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert search.find("mnist", idx_folder)[IDX_FILES[0]] == packed.with_suffix("")
    assert len(data.load("mnist", idx_folder).train) == 6


def test_missing_says_where_it_looked_and_what_to_do(alone, tmp_path):
    with pytest.raises(EdgePruneError) as caught:
        data.load("fashion-mnist", tmp_path)
    sentence = str(caught.value)
    assert f"not found in {tmp_path / 'fashion-mnist'}, {alone / 'fashion-mnist'}" in sentence
    assert "'edgeprune data fetch fashion-mnist'" in sentence and "\n" not in sentence


def test_incomplete_says_what_lacks(idx_folder, alone, tmp_path):
    shutil.move(idx_folder, tmp_path / "mnist")
    (tmp_path / "mnist" / IDX_FILES[1]).unlink()
    with pytest.raises(EdgePruneError, match=f"lacks {IDX_FILES[1]}; 'edgeprune data fetch mnist'"):
        data.load("mnist", tmp_path)


def test_a_folder_that_may_not_be_entered_counts_as_empty(idx_folder, alone, tmp_path):
    shutil.copytree(idx_folder, tmp_path / "mnist")
    os.chmod(tmp_path / "mnist", 0)
    try:
        if os.access(tmp_path / "mnist", os.X_OK):
            pytest.skip("this user may enter every folder")
        assert search.find("mnist", tmp_path) is None
    finally:
        os.chmod(tmp_path / "mnist", 0o700)


def test_unknown_name(alone):
    with pytest.raises(EdgePruneError, match="unknown data set 'fashon-mnist'; did you mean 'fashion-mnist'"):
        data.load("fashon-mnist")


def test_verify_compares_checksums(idx_folder, alone, real):
    verdicts = search.verify("mnist", idx_folder)
    assert [v.state for v in verdicts] == ["differs"] * 4
    shutil.copy(real / "mnist" / IDX_FILES[1], idx_folder)
    (idx_folder / IDX_FILES[2]).with_suffix("").write_bytes(gzip.decompress((idx_folder / IDX_FILES[2]).read_bytes()))
    (idx_folder / IDX_FILES[2]).unlink()
    assert [v.state for v in search.verify("mnist", idx_folder)] == ["differs", "ok", "unknown", "differs"]


def test_files_of_the_twin_in_a_folder_without_a_name(alone, real):
    """MNIST and Fashion-MNIST use the same file names: pointed at one's folder, the other is not found there."""
    assert search.find("fashion-mnist", real / "fashion-mnist")
    assert search.find("mnist", real / "fashion-mnist") is None


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "tinyshakespeare"])
def test_published_checksums_are_those_of_the_real_files(real, name):
    for file, spec in source(name).published.items():
        raw = (real / name / file).read_bytes()
        assert len(raw) == spec.size
        assert hashlib.sha256(raw).hexdigest() == spec.sha256
        assert not spec.md5 or hashlib.md5(raw).hexdigest() == spec.md5


def test_every_source_is_complete():
    for known in SOURCES.values():
        assert known.what and known.licence and known.cite
        if known.layouts:
            assert all(name in known.published for name in known.layouts[-1])
        for download in known.downloads:
            assert all(url.split(":")[0] in ("http", "https") for url in download.urls)
            specs = [download.file, *(spec for _, spec in download.members)]
            assert all(len(spec.sha256) == 64 and int(spec.sha256, 16) for spec in specs)
            assert all("/" not in spec.name and spec.size > 0 for spec in specs)


def test_a_folder_that_is_given_and_is_not_there_is_said(tmp_path, monkeypatch):
    """Not passed over for the data that another place has."""
    monkeypatch.setenv("EDGEPRUNE_DATA", str(tmp_path))
    with pytest.raises(EdgePruneError, match="mnist: there is no folder .*typo; give --data one that holds data sets"):
        search.require("mnist", tmp_path / "typo")
    assert search.require("digits", tmp_path / "typo") == {}, "needs no file"
