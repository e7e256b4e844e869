"""Channel arithmetic of view, reshape, flatten: where the channels of one shape lie in another."""

from __future__ import annotations

import math

import numpy as np

from edgeprune.pruning.atoms import Ids, Layout
from edgeprune.pruning.coupling import Call, Coupling, Shape
from edgeprune.pruning.heads import makes_heads


def reshape(c: Coupling, call: Call, layout: Layout, old: Shape, new: Shape) -> Layout:
    """The layout after a row-major reshape from ``old`` to ``new``.

    Dimensions are matched in runs of equal product. Within a run one prunable dimension may be merged with whole ones
    (each channel becomes a block, as in flatten; of several prunable ones all but one become whole) or be cut into
    several (an existing block is undone; otherwise all outer parts must lose the same inner positions, as in a channel
    shuffle; where they are heads of attention, whole parts go instead). What does not fit stays whole.
    """
    result: list[Ids | None] = [None] * len(new)
    if 0 in old or 0 in new:
        return tuple(result)
    for olds, news in runs(old, new):
        tracked = [d for d in olds if c.atoms.prunable(layout[d])]
        if len(tracked) > 1:  # copies of one position (repeated keys and values) stay as many as they are
            for d in [d for d in tracked if c.is_spread(layout[d])]:
                c.whole(call, layout[d], "copies of one position")
            tracked = [d for d in tracked if c.atoms.prunable(layout[d])]
        if len(tracked) > 1:  # the outer ones are heads, the inner one what all heads share of a value
            one = tracked[0 if c.heads else -1]
            c.whole_dims(call, layout, [d for d in tracked if d != one], "merged with another prunable dimension")
            tracked = [one] if c.atoms.prunable(layout[one]) else []
        if not tracked:
            continue
        d = tracked[0]
        ids = layout[d]
        assert ids is not None
        inner = math.prod(old[e] for e in olds if e > d)
        outer = math.prod(old[e] for e in olds if e < d)
        flat = np.tile(np.repeat(ids, inner), outer)
        sized = [e for e in news if new[e] > 1]
        if len(sized) == 1:
            result[sized[0]] = flat
        elif sized:
            at, part = _cut(c, call, flat, [new[e] for e in sized])
            result[sized[at]] = part
    return tuple(result)


def runs(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Cut both shapes into the shortest runs of dimensions with equal products."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds: list[int] = []
        news: list[int] = []
        have = want = 1
        while not (olds or news) or have != want:
            if (have <= want and i < len(old)) or j >= len(new):
                have *= old[i]
                olds.append(i)
                i += 1
            else:
                want *= new[j]
                news.append(j)
                j += 1
        result.append((olds, news))
    return result


def _cut(c: Coupling, call: Call, flat: Ids, sizes: list[int]) -> tuple[int, Ids]:
    """Which of the new dimensions carries the channels, and their ids along it."""
    table = c.atoms.find(flat).reshape(sizes)
    for d in range(len(sizes)):
        first = np.take(np.moveaxis(table, d, 0).reshape(sizes[d], -1), [0], axis=1)
        if (np.moveaxis(table, d, 0).reshape(sizes[d], -1) == first).all():
            return d, first[:, 0].copy()
    d = len(sizes) - (2 if c.heads and makes_heads(call.node) else 1)
    columns = np.moveaxis(flat.reshape(sizes), d, 0).reshape(sizes[d], -1)
    for column in range(1, columns.shape[1]):
        c.couple(call, columns[:, 0], columns[:, column])
    return d, columns[:, 0].copy()
