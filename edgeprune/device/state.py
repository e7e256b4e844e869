"""The state that figures depend on, read before and after a measurement: power mode, clock limits, throttling, heat.

From the kernel's files alone, so that it is there without jtop and costs nothing while nobody asks.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path("/")
# A Jetson's *-throttle-alert, the kernel's frequency and ACPI processor cooling.
_SLOWS = re.compile(r"throttle|cpufreq|devfreq|^Processor$", re.IGNORECASE)


@dataclass(frozen=True)
class MachineState:
    """``clocks_khz``: upper limits by name; ``governor`` of the first core; ``throttled``: events since boot;
    ``cooling``: what is slowed down now because it is hot, with the level.
    """

    mode: str | None = None
    governor: str | None = None
    clocks_khz: Mapping[str, int] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    throttled: Mapping[str, int] = field(default_factory=dict)
    cooling: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}


def machine_state(root: Path = ROOT) -> MachineState:
    """The state now; what the machine does not show is absent."""
    cpu = root / "sys/devices/system/cpu"
    clocks: dict[str, int] = {}
    limits = [_integer(path) for path in cpu.glob("cpu[0-9]*/cpufreq/scaling_max_freq")]
    known = [limit for limit in limits if limit is not None]
    if known:
        clocks["CPU clock"] = max(known)
    for path in sorted((root / "sys/class/devfreq").glob("*gpu*")) + sorted(
        (root / "sys/class/devfreq").glob("*gp[cu]?*")
    ):
        hertz = _integer(path / "max_freq")
        if hertz is not None:
            clocks["GPU clock"] = max(hertz // 1000, clocks.get("GPU clock", 0))
    return MachineState(
        power_mode(root),
        _text(cpu / "cpu0/cpufreq/scaling_governor"),
        clocks,
        temperatures(root / "sys"),
        _throttled(root),
        _cooling(root),
    )


def changes(before: MachineState, after: MachineState) -> list[str]:
    """What changed between two looks, each one sentence that belongs beside the figures."""
    found = []
    if before.mode != after.mode:
        found.append(f"the power mode changed during the measurement: {before.mode} -> {after.mode}")
    if before.governor != after.governor:
        found.append(f"the CPU governor changed during the measurement: {before.governor} -> {after.governor}")
    for name in sorted(set(before.clocks_khz) & set(after.clocks_khz)):
        old, new = before.clocks_khz[name], after.clocks_khz[name]
        if old != new:
            found.append(f"the {name} limit changed during the measurement: {old // 1000} -> {new // 1000} MHz")
    for name in sorted(after.throttled):
        events = after.throttled[name] - before.throttled.get(name, 0)
        if events > 0:
            found.append(f"throttled during the measurement: {events} {name} events")
    for name in sorted({*before.cooling, *after.cooling}):
        when = "before" if name not in after.cooling else "after" if name not in before.cooling else "before and after"
        found.append(f"slowed down by heat, as seen {when} the measurement: {name}")
    return found


def power_mode(root: Path = ROOT) -> str | None:
    """The name of nvpmodel's present mode, else its number as ``mode 2``; None off a Jetson."""
    status = _text(root / "var/lib/nvpmodel/status") or ""
    number = re.search(r"pmode:0*(\d+)", status)
    if number is None:
        return None
    table = _text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number[1]}\s+NAME=(\S+)\s*>", table)
    return name[1] if name else f"mode {number[1]}"


def temperatures(sys: Path) -> dict[str, float]:
    """Degrees Celsius of every thermal zone that can be read (an unpowered one refuses); of one name, the hottest."""
    found: dict[str, float] = {}
    for zone in sorted((sys / "class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _integer(zone / "temp")
        if name and value is not None and value > -100_000:
            short = name.removesuffix("-thermal")
            found[short] = max(value / 1000, found.get(short, -math.inf))
    return found


def gpu_name() -> str | None:
    """The first GPU as nvidia-smi names it, without loading CUDA; None where there is none."""
    try:
        shown = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = shown.stdout.strip().splitlines()
    return lines[0] if shown.returncode == 0 and lines else None


def _throttled(root: Path) -> dict[str, int]:
    """Events since boot: a Jetson's over-current alarms, an x86 core's thermal throttling."""
    found: dict[str, int] = {}
    for path in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"):
        count = _integer(path)
        if count is not None:
            found["over-current"] = found.get("over-current", 0) + count
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        count = _integer(path)
        if count is not None:
            found["thermal"] = found.get("thermal", 0) + count
    return found


def _cooling(root: Path) -> dict[str, int]:
    """Cooling devices that slow a processor down and are at work; fans are not among them."""
    found: dict[str, int] = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, level = _text(device / "type") or "", _integer(device / "cur_state")
        if level is not None and level > 0 and _SLOWS.search(name):
            found[name] = max(level, found.get(name, 0))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip() or None
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None
