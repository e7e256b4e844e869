"""A Jetson's INA3221 power sensors straight from sysfs: no service, no root, no jtop.

Each chip has three channels: ``inN_label`` names the rail, ``inN_input`` is its voltage in mV, ``currN_input`` its
current in mA. A rail that feeds the module counts as its input; without one the sum of all is given, and named so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.device.polling import PollingSampler
from edgeprune.device.samples import Sample, now
from edgeprune.device.state import power_mode, temperatures

SYS = Path("/sys")
INPUT_RAILS = ("VIN", "POM_5V_IN", "VDD_IN")


@dataclass(frozen=True)
class Channel:
    """One rail: its label and the two files it is read from."""

    label: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Voltage times current, now."""
        return int(self.millivolts.read_text()) * int(self.milliamperes.read_text()) * 1e-6


def channels(sys: Path = SYS) -> list[Channel]:
    """Every channel that has a label, a voltage and a current; unconnected ones and sums of shunts are left out."""
    found: dict[str, Channel] = {}
    for folder in sorted(sys.glob("bus/i2c/drivers/ina3221*/*/hwmon/hwmon*")):
        for label in sorted(folder.glob("in?_label")):
            number = label.name[2]
            name = _text(label)
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            if name and name != "NC" and "shunt" not in name and volts.exists() and amperes.exists():
                found.setdefault(name, Channel(name, volts, amperes))
    return list(found.values())


def rail_name(labels: list[str]) -> str:
    """The rail that stands for the module's input, else what is summed."""
    for name in INPUT_RAILS:
        if name in labels:
            return name
    return "sum of " + " + ".join(labels)


def read(found: list[Channel], sys: Path = SYS) -> Sample:
    """All rails now. ``power_w`` is the input rail's, or the sum."""
    rails = {channel.label: channel.watts() for channel in found}
    name = rail_name(list(rails))
    total = rails.pop(name) if name in rails else sum(rails.values())
    return Sample(now(), total, rails, temperatures(sys), power_mode(sys.parent))


def sampler(interval_s: float = 0.5, sys: Path = SYS) -> PollingSampler | None:
    """A sampler of this board's sensors; None where there are none, or where they cannot be read."""
    found = channels(sys)
    try:
        if not found or read(found, sys).power_w is None:
            return None
    except (OSError, ValueError):
        return None
    return PollingSampler("hwmon INA3221", rail_name([c.label for c in found]), lambda: read(found, sys), interval_s)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()
    except OSError:
        return ""
