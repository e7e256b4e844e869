"""Small data files in the published formats, and the real ones where they are."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_bytes

from edgeprune.data.registry import IDX_FILES

REAL = os.environ.get("EDGEPRUNE_DATA")  # before any test takes it away


@pytest.fixture
def idx_folder(tmp_path):
    """A folder with four IDX files of 6 training and 4 test images, as published: gzipped."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, count in zip(IDX_FILES, (6, 6, 4, 4), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        (folder / name).write_bytes(gzip.compress(idx_bytes(rng.integers(0, 10, shape)), mtime=0))
    return folder


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No data set is found outside of what the test makes; the cache folder is an empty one."""
    cache = tmp_path / "cache"
    monkeypatch.delenv("EDGEPRUNE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "edgeprune"


@pytest.fixture
def real():
    """The folder of real data sets."""
    if not REAL:
        pytest.skip("EDGEPRUNE_DATA does not say where real data sets are")
    return Path(REAL)
