"""Names written beside the ends of lines, kept apart: a reader should not have to look up a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 22


@dataclass(frozen=True)
class End:
    """The end of a line in data coordinates, the text for it, and its colour."""

    x: float
    y: float
    text: str
    colour: str


def shortened(text: str, longest: int = LONGEST) -> str:
    """At most ``longest`` characters, the middle left out: names tend to differ at their ends."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near to ``wanted`` as they can be, ``gap`` apart and within [low, high]; the order is kept.

    Neighbours that collide are merged into blocks centred on the mean of what they wanted. When all of them do not
    fit, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1)) if len(wanted) > 1 else gap
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[tuple[float, int]] = []  # (first position, members)

    def clamp(start: float, members: int) -> float:
        return max(low, min(start, high - gap * (members - 1)))

    for i in order:
        start, members = clamp(wanted[i], 1), 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] > start:
            before, count = blocks.pop()
            # The mean of the starts that each part would choose alone, weighted by its members.
            start = (before * count + (start - gap * count) * members) / (count + members)
            members += count
            start = clamp(start, members)
        blocks.append((start, members))
    places = [start + gap * k for start, members in blocks for k in range(members)]
    result = [0.0] * len(wanted)
    for place, i in zip(places, order, strict=True):
        result[i] = place
    return result


def label_ends(axes: Any, ends: Sequence[End], size: float = 11, gap_px: float = 14) -> None:
    """Write each end's text to the right of the axes, at its height where there is room; a thin line leads there.

    To be called when the limits are final. One pixel is 1/72 inch here, as in the figures' sizes.
    """
    if not ends:
        return
    box = axes.get_position()
    height = box.height * axes.figure.get_figheight() * 72
    width = box.width * axes.figure.get_figwidth() * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((end.x, end.y))[1]) * height for end in ends]
    starts = [float(to_axes.transform((end.x, end.y))[0]) for end in ends]
    places = spread(heights, gap_px, 0.0, height)
    for end, start, own, place in zip(ends, starts, heights, places, strict=True):
        near, far = 1 + 5 / width, 1 + 15 / width
        axes.plot(
            [start, near, far - 2 / width] if abs(place - own) > 1 else [start, far - 2 / width],
            [own / height, own / height, place / height] if abs(place - own) > 1 else [own / height, place / height],
            transform=axes.transAxes,
            color=end.colour,
            linewidth=0.7,
            alpha=0.55,
            clip_on=False,
            zorder=1,
        )
        _write(axes, end, far, place / height, size, ha="left")


def label_early_ends(axes: Any, ends: Sequence[End], size: float = 11) -> None:
    """Write each text above the end of its line, for lines that stop inside the axes; one higher where two collide."""
    box = axes.get_position()
    width = box.width * axes.figure.get_figwidth() * 72
    height = box.height * axes.figure.get_figheight() * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float, float]] = []  # (left, right, middle) in pixels
    for end in sorted(ends, key=lambda end: (end.y, end.x)):
        x, y = (float(v) for v in to_axes.transform((end.x, end.y)))
        half = len(shortened(end.text)) * size * 0.3
        middle = min(max(x * width, half), width - half)
        place = y * height + size
        while any(middle - half < right and left < middle + half and abs(place - at) < 13 for left, right, at in taken):
            place += 2
        taken.append((middle - half, middle + half, place))
        _write(axes, end, middle / width, place / height, size, ha="center", zorder=5)


def headroom(texts: Sequence[str], size: float = 11) -> float:
    """Pixels to leave at the right for such labels, a little more than DejaVu Sans takes."""
    longest = max((len(shortened(text)) for text in texts), default=0)
    return 24 + longest * size * 0.6


__all__ = ["End", "headroom", "label_early_ends", "label_ends", "shortened", "spread"]


def _write(axes: Any, end: End, x: float, y: float, size: float, **how: Any) -> None:
    """The text of one end at (x, y) of the axes, in its line's colour, never read as mathematics."""
    axes.text(
        x,
        y,
        shortened(end.text),
        transform=axes.transAxes,
        color=end.colour,
        fontsize=size,
        va="center_baseline",
        parse_math=False,
        clip_on=False,
        **how,
    )
