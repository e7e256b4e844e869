"""Data sets on disk, and who holds which samples."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.data.digits import load_digits
from edgeprune.data.idx import load_idx
from edgeprune.data.partitions import partition
from edgeprune.data.types import DataSet, Split
from edgeprune.errors import EdgePruneError

__all__ = ["DataSet", "Split", "load", "partition"]


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    if name == "digits":
        return load_digits()
    folder = Path(data_dir or os.environ.get("EDGEPRUNE_DATA", ".")) / name
    files = {p.name.removesuffix(".gz"): p for p in folder.glob("*.gz")}
    if not files:
        raise EdgePruneError(f"{name} not found in {folder}; edgeprune data fetch {name}")
    return load_idx(name, files)
