"""Data sets on disk, and who holds which samples.

Names are loaded on first use: listing, fetching and verifying need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.data.loading import load
    from edgeprune.data.partitions import partition
    from edgeprune.data.search import places
    from edgeprune.data.types import DataSet, Split

__all__ = ["DataSet", "Split", "load", "partition", "places"]

_HOME = {"DataSet": "types", "Split": "types", "load": "loading", "partition": "partitions", "places": "search"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgeprune.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgeprune.data.{_HOME[name]}"), name)
    globals()[name] = value
    return value
