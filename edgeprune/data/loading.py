"""A data set by its name, from wherever it is on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.data.registry import source
from edgeprune.data.search import require, verdicts
from edgeprune.data.types import DataSet


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    """The data set ``name``, looked for in ``data_dir``, then $EDGEPRUNE_DATA, then the cache folder.

    Its ``note`` names the files that are not the published ones. Raises :class:`EdgePruneError` with one sentence where
    the data set is unknown, missing or damaged.
    """
    files = require(name, data_dir)
    data = _read(name, files)
    altered = [verdict.path.name for verdict in verdicts(source(name), files) if verdict.state == "differs"]
    return replace(data, note=f"not the published bytes: {', '.join(altered)}") if altered else data


def _read(name: str, files: dict[str, Path]) -> DataSet:
    if name == "digits":
        from edgeprune.data.digits import load_digits

        return load_digits()
    if name == "cifar-10":
        from edgeprune.data.cifar import load_cifar

        return load_cifar(files)
    if name == "uci-har":
        from edgeprune.data.har import load_har

        return load_har(files)
    if name == "tinyshakespeare":
        from edgeprune.data.text import load_text

        return load_text(name, files)
    from edgeprune.data.idx import load_idx

    return load_idx(name, files)
