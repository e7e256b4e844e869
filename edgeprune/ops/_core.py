"""The compiled core, or one sentence that says why it cannot be loaded."""

from __future__ import annotations

from edgeprune.errors import EdgePruneError

try:
    import edgeprune._core as core
except ImportError as error:
    raise EdgePruneError(
        f"the compiled core of edgeprune cannot be loaded ({error}): install the package again with 'pip install .' "
        "on this machine and for this Python"
    ) from error

__all__ = ["core"]
