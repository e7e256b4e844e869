"""The drawings. Each fills one pair of axes, so that the page and the picture in the README show the same thing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgePruneError
from edgeprune.report import style, words
from edgeprune.report.labels import End, headroom, label_early_ends, label_ends
from edgeprune.report.series import Evaluation, Run, read_runs

WIDTH, HEIGHT = 464, 300  # of one figure, in CSS pixels; one pixel is drawn as 1/72 inch
_LEFT, _TOP, _BOTTOM = 42, 12, 46
LABELLED_DEVICES = 12
_WIDE = 8.0  # slowest over fastest from which a logarithmic axis shows more

Points = list[tuple[float, float]]


@contextmanager
def look() -> Iterator[None]:
    """Our settings while drawing, and no warning about a glyph that the measuring font lacks (the reader's has it)."""
    import matplotlib

    with matplotlib.rc_context(style.RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*")
        yield


def figure(right: float = 16) -> tuple[Any, Any]:
    """A figure of the standard size with one pair of axes that leaves ``right`` pixels for labels."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    axes = made.add_axes(
        (_LEFT / WIDTH, _BOTTOM / HEIGHT, (WIDTH - _LEFT - right) / WIDTH, (HEIGHT - _TOP - _BOTTOM) / HEIGHT)
    )
    return made, axes


def accuracy_against_time(axes: Any, runs: Sequence[Run]) -> None:
    """Accuracy of the global model over the time of the runs."""
    unit = style.time_unit(max(run.time_s for run in runs))
    _accuracy(axes, runs, lambda e: e.time_s / unit.per, f"{words.clock(runs)} ({unit.name})")


def accuracy_against_bytes(axes: Any, runs: Sequence[Run]) -> None:
    """Accuracy of the global model over all bytes sent so far, up and down."""
    unit = style.byte_unit(max(run.upload_bytes + run.download_bytes for run in runs))
    _accuracy(axes, runs, lambda e: e.sent_bytes / unit.per, f"bytes sent, up and down ({unit.name})")


def update_times(axes: Any, run: Run, runs: Sequence[Run], order: Sequence[str]) -> None:
    """Seconds from send to receipt of every device, over rounds; ``runs`` share the scale. Crosses are rejections."""
    values = _positive_times(runs)
    unit = update_unit(runs)
    ends = _devices(axes, {d: [(r, v / unit.per) for r, v in p] for d, p in run.times.items()}, order)
    out = {(round_, device) for round_, device, _ in run.rejected}
    crosses = [(r, v / unit.per) for device, points in run.times.items() for r, v in points if (r, device) in out]
    for hue, size in (("surface", 4.5), ("ink", 2.0)) if crosses else ():
        axes.plot(
            *zip(*crosses, strict=True), "x", color=style.colour(hue), markersize=7, markeredgewidth=size, zorder=5
        )
    if values and max(values) / min(values) > _WIDE:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / unit.per / 1.15, max(values) / unit.per * 1.15)
        _plain_log_ticks(axes)
    else:
        axes.set_ylim(0, max(values, default=1.0) / unit.per * 1.06)
    _rounds(axes, runs, ends)


def update_unit(runs: Sequence[Run]) -> style.Unit:
    """The unit of :func:`update_times`, which stands in the figure's caption."""
    return style.time_unit(max(_positive_times(runs), default=1.0))


def retention(axes: Any, run: Run, runs: Sequence[Run], order: Sequence[str]) -> None:
    """Share of the channels that every device keeps, over rounds."""
    ends = _devices(axes, {d: [(float(r), v) for r, v in p] for d, p in run.retention.items()}, order, steps=True)
    axes.set_ylim(0, 1.04)
    _percent(axes)
    _rounds(axes, runs, ends)


def device_order(runs: Sequence[Run]) -> list[str]:
    """All devices, fastest first by the first update time that the earliest run with them measured."""
    first: dict[str, float] = {}
    for run in runs:
        for device, points in run.times.items():
            first.setdefault(device, points[0][1])
        for device in run.retention:
            first.setdefault(device, math.inf)
    return sorted(first, key=lambda device: (first[device], _natural(device)))


def labelled(devices: Sequence[str]) -> list[str]:
    """The devices that get a name: all of a small fleet, the fastest, middle and slowest of a large one."""
    if len(devices) <= LABELLED_DEVICES:
        return list(devices)
    last = len(devices) - 1
    return [devices[round(last * k / 4)] for k in range(5)]


def overview(rundirs: Sequence[str | Path], path_png: str | Path, dpi: int = 144) -> None:
    """One picture of all of it, on white, for a README: accuracy, update times and retention of the runs.

    The device panels show the last run that prunes (or the last one). Raises EdgePruneError for a run directory that
    cannot be read or a path that cannot be written.
    """
    runs = read_runs(rundirs)
    shown = next((run for run in reversed(runs) if run.prunes), runs[-1])
    order = [device for device in device_order(runs) if device in shown.times or device in shown.retention]
    with look():
        from matplotlib.figure import Figure

        made = Figure(figsize=(1180 / 72, 330 / 72), dpi=dpi, facecolor="white")
        names, devices = headroom([run.label for run in runs]), headroom(labelled(order))
        times = f"Update time ({update_unit([shown]).name}), {shown.label}"
        panels: list[tuple[str, float, Callable[[Any], None]]] = [
            ("Accuracy", names, lambda axes: accuracy_against_time(axes, runs)),
            (times, devices, lambda axes: update_times(axes, shown, [shown], order)),
            (f"Channels kept, {shown.label}", devices, lambda axes: retention(axes, shown, [shown], order)),
        ]
        width = 1180 / len(panels)
        for k, (title, right, draw) in enumerate(panels):
            box = ((k * width + 56) / 1180, 48 / 330, (width - 56 - right) / 1180, (330 - 48 - 46) / 330)
            axes = made.add_axes(box)
            draw(axes)
            made.text(
                (k * width + 20) / 1180,
                1 - 24 / 330,
                title,
                fontsize=12.5,
                weight="bold",
                va="center",
                parse_math=False,
            )
        try:
            made.savefig(path_png, dpi=dpi, format="png", metadata={"Software": None})
        except OSError as error:
            raise EdgePruneError(f"report: cannot write {path_png}: {error.strerror}") from None


def _accuracy(axes: Any, runs: Sequence[Run], x_of: Callable[[Evaluation], float], x_name: str) -> None:
    if not any(run.evaluations for run in runs):
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=style.colour("muted"))
        return
    ends = []
    lowest = 1.0
    for index, run in enumerate(runs):
        if not run.evaluations:
            continue
        points = [(x_of(e), e.accuracy) for e in run.evaluations]
        hue = style.run_colour(index)
        axes.plot(*zip(*points, strict=True), color=hue, linestyle=style.run_line(index), linewidth=2.0, zorder=3)
        axes.plot(*points[-1], "o", color=hue, markersize=5.5, zorder=4, clip_on=False)
        ends.append(End(*points[-1], run.label, hue))
        lowest = min(lowest, *(y for _, y in points))
    highest = max(e.accuracy for run in runs for e in run.evaluations)
    furthest = max(end.x for end in ends) or 1.0
    early = [end for end in ends if end.x < 0.9 * furthest]
    curves = [(x_of(e), e.accuracy) for run in runs for e in run.evaluations]
    room = max(0.01, highest - lowest)
    axes.set_ylim(max(0.0, lowest - 0.05 * room), highest + (0.12 if early else 0.05) * room)
    axes.set_xlim(0, furthest)
    _percent(axes)
    axes.set_xlabel(x_name)
    above = [max(y for x, y in curves if abs(x - end.x) <= 0.12 * furthest) for end in early]
    label_early_ends(axes, [replace(end, y=y) for end, y in zip(early, above, strict=True)])
    label_ends(axes, [end for end in ends if end not in early])


def _devices(axes: Any, series: dict[str, Points], order: Sequence[str], steps: bool = False) -> list[End]:
    """One line a device, coloured by its place in ``order``; returns the ends that get a name."""
    few = len(series) <= LABELLED_DEVICES
    named = set(labelled([device for device in order if device in series]))
    ends = []
    for rank, device in enumerate(order):
        points = series.get(device)
        if not points:
            continue
        hue = style.device_colour(rank, len(order))
        width = 1.7 if few else 0.9
        axes.plot(
            *zip(*points, strict=True),
            color=hue,
            linewidth=width,
            alpha=1.0 if few else 0.75,
            drawstyle="steps-mid" if steps else "default",
            marker="o" if len(points) == 1 else None,
            zorder=3,
        )
        if device in named:
            ends.append(End(*points[-1], device, hue))
    return ends


def _rounds(axes: Any, runs: Sequence[Run], ends: Sequence[End]) -> None:
    """The x axis of a figure over rounds, and the names at the right: limits are final now."""
    from matplotlib.ticker import MaxNLocator

    last = max(run.rounds for run in runs)
    axes.set_xlim(1 if last > 1 else 0.5, last if last > 1 else 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")
    label_ends(axes, ends)


def _positive_times(runs: Sequence[Run]) -> list[float]:
    return [value for run in runs for points in run.times.values() for _, value in points if value > 0]


def _percent(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 1.0001)])
    axes.set_ylim(low, high)
    digits = 1 if high - low < 0.04 else 0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f}%"))


def _plain_log_ticks(axes: Any) -> None:
    """1, 2, 5 of every decade, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts device-2 before device-10."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for char in name + " ":
        if char.isdecimal():
            digits += char
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, char))
    return parts
