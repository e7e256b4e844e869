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
    from edgeprune import ops, pruning
    from edgeprune.export import export_onnx
    from edgeprune.pruning import Submodel, merge, prune
    from edgeprune.wire import pack, unpack

# The public face: name -> module that defines it (None: the name is itself a module of this package).
_LAZY: dict[str, str | None] = {
    "Submodel": "edgeprune.pruning",
    "export_onnx": "edgeprune.export",
    "merge": "edgeprune.pruning",
    "ops": None,
    "pack": "edgeprune.wire",
    "prune": "edgeprune.pruning",
    "pruning": None,
    "unpack": "edgeprune.wire",
}

__all__ = [
    "EdgePruneError",
    "Submodel",
    "__version__",
    "export_onnx",
    "merge",
    "ops",
    "pack",
    "prune",
    "pruning",
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
