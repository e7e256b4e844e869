"""Union-find over channel positions, with the reasons why some of them stay whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Layout = tuple["Ids | None", ...]
"""One entry per tensor dimension: the atom of every position, or None where nothing can be removed."""

WHOLE = 0
"""The atom of a position that is never removed (a network input, a kernel tap, padding)."""


class Atoms:
    """Atoms are channel positions; a class of coupled atoms is one channel, kept or removed as one.

    The smallest atom of a class is its root, so results do not depend on the order of unions.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._pins: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        """``count`` fresh atoms, each its own class."""
        start = len(self._parent)
        ids = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def find(self, ids: Ids) -> Ids:
        """The root of every atom (WHOLE stays WHOLE)."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def union(self, a: Ids, b: Ids, why: str) -> None:
        """Couple ``a[i]`` with ``b[i]``; where one side is WHOLE the other is pinned with the reason ``why``."""
        ra, rb = self.find(a), self.find(b)
        self.pin(np.concatenate([ra[rb == WHOLE], rb[ra == WHOLE]]), why)
        open_ = (ra != rb) & (ra != WHOLE) & (rb != WHOLE)
        for x, y in zip(ra[open_].tolist(), rb[open_].tolist(), strict=True):
            x, y = self._root(x), self._root(y)
            if x == y:
                continue
            x, y = min(x, y), max(x, y)
            self._parent[y] = x
            reason = self._pins.pop(y, None)
            if reason is not None:
                self._pins.setdefault(x, reason)

    def pin(self, ids: Ids, why: str) -> None:
        """Never remove these; the first reason given for a class is the one that is told."""
        for root in np.unique(self.find(ids)).tolist():
            if root != WHOLE:
                self._pins.setdefault(root, why)

    def prunable(self, ids: Ids | None) -> bool:
        """Whether any of these positions may still be removed."""
        return ids is not None and any(r != WHOLE and r not in self._pins for r in np.unique(self.find(ids)).tolist())

    def reason(self, root: int) -> str | None:
        """Why the class of this root stays whole, or None if it may be pruned."""
        return self._pins.get(root)

    def _root(self, x: int) -> int:
        parent = self._parent
        while parent[x] != x:
            x = int(parent[x])
        return x
