"""From coupled atoms to channel groups and axes: which classes form a group, and how dimensions are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.pruning.atoms import WHOLE, Atoms, Ids, Layout
from edgeprune.pruning.axes import Axis, Segment

Key = tuple[str, int]
"""A tensor's name and one of its dimensions."""


@dataclass
class Found:
    """One group: its root atoms in channel order, the dimensions they lie in, why it stays whole (None: prunable)."""

    roots: Ids
    keys: list[Key]
    reason: str | None


def find_groups(atoms: Atoms, layouts: Mapping[str, Layout]) -> list[Found]:
    """Classes that occur in the same dimensions, equally often, and share their reason for staying, form one group."""
    keys = [(name, d) for name, layout in layouts.items() for d, ids in enumerate(layout) if ids is not None]
    if not keys:
        return []
    roots = [atoms.find(_ids(layouts, key)) for key in keys]
    flat = np.concatenate(roots)
    order, at = np.unique(flat, return_index=True)
    pairs = flat * len(keys) + np.repeat(np.arange(len(keys)), [len(r) for r in roots])
    pair, count = np.unique(pairs, return_counts=True)
    owner, key_no = pair // len(keys), pair % len(keys)
    starts = np.searchsorted(owner, order)
    ends = np.append(starts[1:], len(owner))
    groups: dict[tuple[object, ...], list[int]] = {}
    signature_keys: dict[tuple[object, ...], list[Key]] = {}
    for i in np.argsort(at, kind="stable").tolist():
        root = int(order[i])
        if root == WHOLE:
            continue
        lo, hi = int(starts[i]), int(ends[i])
        sign = (key_no[lo:hi].tobytes(), count[lo:hi].tobytes(), atoms.reason(root))
        groups.setdefault(sign, []).append(root)
        if sign not in signature_keys:
            signature_keys[sign] = [keys[k] for k in key_no[lo:hi].tolist()]
    return [Found(np.array(r, np.int64), signature_keys[s], s[2]) for s, r in groups.items()]  # type: ignore[arg-type]


def _ids(layouts: Mapping[str, Layout], key: Key) -> Ids:
    ids = layouts[key[0]][key[1]]
    assert ids is not None
    return ids


class AxisMaker:
    """Writes dimensions as segments of the prunable groups; a dimension that cannot be written goes to ``refused``."""

    def __init__(self, atoms: Atoms, names: Sequence[str | None], groups: Sequence[Found]) -> None:
        """``names``: one per group, None for those that stay whole."""
        self._atoms = atoms
        self._sizes = [len(g.roots) for g in groups]
        self._names = names
        self._cache: dict[bytes, Axis | None] = {}
        top = max([0, *(int(g.roots.max()) for g in groups)]) + 1
        self._group = np.full(top, -1, np.int64)
        self._channel = np.zeros(top, np.int64)
        for k, g in enumerate(groups):
            if names[k] is not None:
                self._group[g.roots] = k
                self._channel[g.roots] = np.arange(len(g.roots))

    def axes(self, layout: Layout, shape: tuple[int, ...], refused: Callable[[Ids], None]) -> tuple[Axis, ...]:
        result: list[Axis] = []
        for ids, size in zip(layout, shape, strict=True):
            axis = ((Segment(None, size),) if size else ()) if ids is None else self._axis(ids)
            if axis is None:
                assert ids is not None
                refused(ids)
                axis = (Segment(None, size),)
            result.append(axis)
        return tuple(result)

    def _axis(self, ids: Ids) -> Axis | None:
        roots = self._atoms.find(ids)
        key = roots.tobytes()
        if key not in self._cache:
            self._cache[key] = self._segments(roots)
        return self._cache[key]

    def _segments(self, roots: Ids) -> Axis | None:
        known = roots < len(self._group)
        safe = np.where(known, roots, 0)
        group = np.where(known, self._group[safe], -1)
        channel = np.where(group >= 0, self._channel[safe], 0)
        change = np.flatnonzero((np.diff(group) != 0) | (np.diff(channel) != 0)) + 1
        bounds = np.concatenate([[0], change, [len(roots)]])
        runs = [(int(group[b]), int(channel[b]), int(e - b)) for b, e in zip(bounds[:-1], bounds[1:], strict=True)]
        segments: list[Segment] = []
        i = 0
        while i < len(runs):
            g, _, block = runs[i]
            if g < 0:
                segments.append(Segment(None, block))
                i += 1
                continue
            size = self._sizes[g]
            if runs[i : i + size] != [(g, ch, block) for ch in range(size)]:
                return None
            i += size
            last = segments[-1] if segments else None
            if last is not None and last.group == self._names[g] and last.block == block:
                segments[-1] = Segment(last.group, size, block, last.repeat + 1)
            else:
                segments.append(Segment(self._names[g], size, block))
        return tuple(segments)
