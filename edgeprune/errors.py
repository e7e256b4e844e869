"""The one base of every error that edgeprune raises on bad input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgePruneError(Exception):
    """Bad input. The message is one sentence: what was wrong, where, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to ``name`` as ``"; did you mean 'x'?"``, else the list of all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""
