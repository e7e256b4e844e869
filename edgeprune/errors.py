"""The one base of every error that edgeprune raises on bad input."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class EdgePruneError(Exception):
    """Bad input. The message is one sentence: what was wrong, where, and what to do."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name closest to ``name`` as ``"; did you mean 'x'?"``, else the list of all known names."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if isinstance(name, str) else []
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def is_number(value: Any) -> bool:
    """Whether a user gave a number where one is due (Python's or numpy's), so that it can be compared."""
    return isinstance(value, numbers.Real)


def is_whole(value: Any) -> bool:
    """The same for a whole number."""
    return isinstance(value, numbers.Integral)


def raised(error: Exception) -> str:
    """What somebody else's code raised, within a sentence: its type and the first line of its words."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def shown(value: object) -> str:
    """``value`` within a sentence: short and on one line, whatever a user gave."""
    if value is None or isinstance(value, numbers.Real | str):
        try:
            text = repr(value)
        except ValueError:  # a whole number with thousands of digits
            return "an enormous number"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"
