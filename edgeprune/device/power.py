"""One face for every source of power figures, and the choice between them."""

from __future__ import annotations

import importlib.util
import sys as _sys
from pathlib import Path
from typing import Protocol

from edgeprune.device import hwmon, nvml
from edgeprune.device.jtop import JtopSampler
from edgeprune.device.jtop_state import SOCKET
from edgeprune.device.polling import NoSampler
from edgeprune.device.probe import board
from edgeprune.device.samples import Recording
from edgeprune.errors import EdgePruneError, nearest

SOURCES = ("auto", "jtop", "hwmon", "nvml", "none")


class Sampler(Protocol):
    """``start`` never raises and returns within its deadline; a fault is a sentence in the recording. ``forget`` drops
    samples older than ``before_s`` (seconds since boot) but the last of them, at which a window then can begin."""

    def start(self) -> Sampler: ...

    def recording(self) -> Recording: ...

    def forget(self, before_s: float) -> None: ...

    def stop(self) -> Recording: ...


def open_sampler(
    source: str = "auto",
    interval_s: float = 0.5,
    root: Path = Path("/"),
    python: str = _sys.executable,
    deadline_s: float = 15.0,
) -> Sampler:
    """A started sampler. ``auto``: jtop where there is a Jetson or its service, the board's own sensors where that
    fails, a GPU's through NVML, else none. What stood in the way of the better ones is in the recording:
    ``instead_of``, or ``fault`` when nothing is left.
    """
    if source not in SOURCES:
        raise EdgePruneError(f"power source: unknown {source!r}{nearest(source, SOURCES)}")
    if not 0.1 <= interval_s <= 60:
        raise EdgePruneError(f"power interval is {interval_s} s; give 0.1 to 60")
    if source == "none":
        return NoSampler("power: not measured: it was not asked for")
    said: list[str] = []
    if source == "jtop" or (source == "auto" and _jtop_is_expected(root)):
        sampler: Sampler = JtopSampler(interval_s, deadline_s, python=python).start()
        fault = sampler.recording().fault
        if fault is None or source == "jtop":
            return sampler
        sampler.stop()
        said.append(fault.removeprefix("power: not measured: "))
    if source in ("auto", "hwmon"):
        direct = hwmon.sampler(interval_s, root / "sys")
        if direct is not None:
            direct.instead_of = "; ".join(said) or None
            return direct.start()
        if source == "hwmon" or board(root) is not None:
            said.append("no INA3221 sensor under /sys/bus/i2c/drivers can be read")
    if source in ("auto", "nvml"):
        gpu = nvml.sampler(interval_s)
        if not isinstance(gpu, str):
            gpu.instead_of = "; ".join(said) or None
            return gpu.start()
        said.append(gpu)
    return NoSampler("power: not measured: " + "; ".join(said))


def _jtop_is_expected(root: Path) -> bool:
    return board(root) is not None or SOCKET.exists() or importlib.util.find_spec("jtop") is not None
