"""edgeprune: collaborative training on edge devices of unequal strength, each on a pruned part of one model.

Names are loaded on first use, so that ``edgeprune.errors``, ``edgeprune._core`` and the command line's help
do not pay for (or need) torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeprune._version import __version__
from edgeprune.errors import EdgePruneError

if TYPE_CHECKING:
    from edgeprune import nn, ops, pruning
    from edgeprune.export import export_onnx
    from edgeprune.nn import densify, sparsify
    from edgeprune.ops import SparsityPattern
    from edgeprune.pruning import Submodel, load, merge, prune, save
    from edgeprune.wire import pack, unpack

# The public face: name -> module that defines it (None: the name is itself a module of this package).
_LAZY: dict[str, str | None] = {
    "SparsityPattern": "edgeprune.ops",
    "Submodel": "edgeprune.pruning",
    "densify": "edgeprune.nn",
    "export_onnx": "edgeprune.export",
    "load": "edgeprune.pruning",
    "merge": "edgeprune.pruning",
    "nn": None,
    "ops": None,
    "pack": "edgeprune.wire",
    "prune": "edgeprune.pruning",
    "pruning": None,
    "save": "edgeprune.pruning",
    "sparsify": "edgeprune.nn",
    "unpack": "edgeprune.wire",
}

__all__ = [
    "EdgePruneError",
    "SparsityPattern",
    "Submodel",
    "__version__",
    "densify",
    "export_onnx",
    "load",
    "merge",
    "nn",
    "ops",
    "pack",
    "prune",
    "pruning",
    "save",
    "sparsify",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    home = _LAZY[name]
    module = importlib.import_module(home or f"edgeprune.{name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
