"""Colours, type and units: one source for the page, its figures and the picture in the README.

A figure is drawn with the light theme's colours; in the page each of them becomes a CSS variable, so that the same
drawing follows the reader's theme. Run colours are told apart by people who see no red or no green; device colours are
a ramp of one steadily rising lightness, from the fastest device to the slowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# role: (light theme, dark theme). Each light value occurs once: it is what a drawing's colour is recognised by.
ROLES: dict[str, tuple[str, str]] = {
    "ink": ("#1a1f26", "#e8eaed"),
    "muted": ("#5c6670", "#9aa4ae"),
    "grid": ("#e3e6ea", "#2b3138"),
    "axis": ("#b4bbc3", "#4a525b"),
    "surface": ("#fefefe", "#15191e"),
    "run-0": ("#0b63b5", "#63b0f7"),
    "run-1": ("#c24c06", "#ff9a56"),
    "run-2": ("#067a61", "#3fcfa6"),
    "run-3": ("#a8408f", "#e88fd2"),
    "run-4": ("#8a6d00", "#e3bf3a"),
    "run-5": ("#4b5563", "#b5bdc8"),
}
RUN_COLOURS = 6

# Fastest to slowest device: stops of the ramp in each theme.
_RAMP_LIGHT = ("#c8761c", "#c4524a", "#9f3477", "#6a2485", "#2a1a5e")
_RAMP_DARK = ("#ffc680", "#fb9a5f", "#ec6f80", "#b877d9", "#7f8cf5")
DEVICE_STEPS = 16


def _mix(stops: tuple[str, ...], share: float) -> str:
    """The colour at ``share`` in [0, 1] along ``stops``, linear in between."""
    at = share * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    part = at - low
    channels = []
    for i in (1, 3, 5):
        a, b = int(stops[low][i : i + 2], 16), int(stops[low + 1][i : i + 2], 16)
        channels.append(round(a + (b - a) * part))
    return "#{:02x}{:02x}{:02x}".format(*channels)


for _step in range(DEVICE_STEPS):
    _share = _step / (DEVICE_STEPS - 1)
    ROLES[f"device-{_step}"] = (_mix(_RAMP_LIGHT, _share), _mix(_RAMP_DARK, _share))


def colour(role: str) -> str:
    """The light theme's colour of ``role``."""
    return ROLES[role][0]


def run_colour(index: int) -> str:
    """Of the run in place ``index``; they repeat after six, with another line style (:func:`run_line`)."""
    return colour(f"run-{index % RUN_COLOURS}")


def run_line(index: int) -> Any:
    """Line style of the run in place ``index``: solid, then dashes for those whose colour is taken."""
    return ("-", (0, (5, 2)), (0, (1.5, 1.5)))[min(index // RUN_COLOURS, 2)]


def device_colour(rank: int, count: int) -> str:
    """Of the device in place ``rank`` of ``count``, fastest first."""
    step = round((DEVICE_STEPS - 1) * rank / (count - 1)) if count > 1 else DEVICE_STEPS // 2
    return colour(f"device-{step}")


RC: Any = {  # a dict[str, Any]; matplotlib's newest stubs want each key spelt out
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "axes.titlesize": 12.5,
    "axes.labelsize": 11.5,
    "axes.labelcolor": colour("muted"),
    "axes.edgecolor": colour("axis"),
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "grid.color": colour("grid"),
    "grid.linewidth": 1.0,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "text.color": colour("ink"),
    "xtick.color": colour("axis"),
    "xtick.labelcolor": colour("muted"),
    "xtick.labelsize": 11,
    "ytick.color": colour("axis"),
    "ytick.labelcolor": colour("muted"),
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 4,
    "svg.fonttype": "none",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Unit:
    """``value / per`` is shown with ``name``."""

    per: float
    name: str


def time_unit(longest_s: float) -> Unit:
    """The unit in which ``longest_s`` seconds read as a number of one to three digits."""
    if longest_s >= 3 * 3600:
        return Unit(3600.0, "h")
    if longest_s >= 3 * 60:
        return Unit(60.0, "min")
    return Unit(1.0, "s") if longest_s >= 0.5 else Unit(1e-3, "ms")


def byte_unit(most: float) -> Unit:
    """Decimal units, as in network rates."""
    for per, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= 0.5 * per:
            return Unit(per, name)
    return Unit(1.0, "B")


def significant(value: float) -> str:
    """Three significant digits without an exponent: ``0.0123``, ``4.56``, ``78.9``, ``1,234``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # first, so that 9.999 becomes 10.0 and not 10.00
    size = abs(rounded)
    if size >= 100:
        return f"{value:,.0f}"
    digits = 1
    while size < 10 and digits < 6:
        size *= 10
        digits += 1
    return f"{rounded:.{digits}f}"


def shown_time(seconds: float) -> str:
    """Seconds with their unit."""
    unit = time_unit(seconds)
    return f"{significant(seconds / unit.per)} {unit.name}"


def shown_bytes(count: float) -> str:
    """Bytes with their unit."""
    unit = byte_unit(count)
    return f"{significant(count / unit.per)} {unit.name}"
