"""The fleet as a user writes it: a few numbers, or every device by name, in TOML.

[fleet]
devices = 10            # that many, from strongest to weakest
heterogeneity = 5.0     # slowest / fastest unpruned update time
noise = 0.05

[[fleet.device]]        # or each by name; what is absent keeps the fleet's value
name = "orin-nano-2"
slowdown = 3.0
memory_mib = 900        # limits that the scheduler keeps; also energy_j (a round's joules) and hottest_c (degrees)
profile = "nano.json"   # what "edgeprune profile" wrote there, in place of slowdown times this machine's; the link
                        # stays so many times slower

[[fleet.event]]         # in the middle of the run
device = "device-3"
round = 40
slowdown = 2.0

[[fleet.fault]]
device = "device-7"
kind = "nan"
first = 5
last = 5
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.fleet.device import LEAST, MOST, Device, Fault, Slowdown
from edgeprune.fleet.link import Link

_POSITIVE = ("slowdown", "share", "download_mbps", "upload_mbps")
_LIMITS = ("memory_mib", "energy_j", "hottest_c", "temperature_c")
_AT_LEAST_ZERO = ("latency_ms", "noise", *_LIMITS)
MAX_DEVICES = 100_000
MOST_NOISE = 10.0  # e^10: a day for what takes seconds
NAME_CHARACTERS, NAME_BYTES = 64, 80  # a file of a device bears its name, each byte as %XX, and has 255 bytes at most
LATENCIES = ("builtin", "profile", "measure")


@dataclass(frozen=True)
class FleetConfig:
    """The ``[fleet]`` section.

    ``heterogeneity`` is sigma: the slowest device's unpruned update time over the fastest's; compute and link are
    slowed alike, and the devices between are spaced evenly in time. ``latency`` is ``"builtin"`` (the table shipped
    for a built-in task, measured on the machine it names; measured here if there is none), ``"profile"`` (the device
    profile shipped for it, which the scheduler needs), ``"measure"``, or a file: a table, or what ``edgeprune profile``
    wrote. ``profile_noise``: how far a virtual device's profile is off, as the
    standard deviation of its logarithm.
    """

    devices: int = 10
    heterogeneity: float = 5.0
    profile_noise: float = 0.03
    noise: float = 0.05
    download_mbps: float = 100.0
    upload_mbps: float = 100.0
    latency_ms: float = 1.0
    latency: str = "builtin"
    file: str = ""
    device: tuple[Mapping[str, Any], ...] = ()
    event: tuple[Mapping[str, Any], ...] = ()
    fault: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Fleet:
    """The devices of a run, in the fixed order in which their updates are merged."""

    devices: tuple[Device, ...]

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if not names:
            raise EdgePruneError("fleet: there is no device; set fleet.devices or write a [[fleet.device]]")
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise EdgePruneError(f"fleet: two devices are called {twice[0]!r}; give each its own name")

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(device.name for device in self.devices)

    def __getitem__(self, name: str) -> Device:
        for device in self.devices:
            if device.name == name:
                return device
        raise EdgePruneError(f"fleet: unknown device {name!r}{nearest(name, self.names)}")


def build_fleet(config: FleetConfig) -> Fleet:
    """The devices that ``config`` describes. Raises :class:`EdgePruneError` on a value that makes no sense."""
    defaults = {
        "noise": config.noise,
        "download_mbps": config.download_mbps,
        "upload_mbps": config.upload_mbps,
        "latency_ms": config.latency_ms,
    }
    if not (math.isfinite(config.heterogeneity) and config.heterogeneity >= 1):
        raise EdgePruneError(
            f"fleet.heterogeneity is {config.heterogeneity}; it is slowest over fastest, so at least 1"
        )
    if config.heterogeneity > MOST:
        raise EdgePruneError(f"fleet.heterogeneity is {config.heterogeneity}; give {MOST:.0e} or less")
    if not 0 <= config.profile_noise <= MOST_NOISE:
        raise EdgePruneError(f"fleet.profile_noise is {config.profile_noise}; give 0 to {MOST_NOISE:.0f}")
    if config.device:
        devices = [_device(entry, defaults) for entry in config.device]
    else:
        if not 1 <= config.devices <= MAX_DEVICES:
            raise EdgePruneError(f"fleet.devices is {config.devices}; give a number from 1 to {MAX_DEVICES}")
        devices = [
            _device({"name": f"device-{i}", "slowdown": factor}, defaults)
            for i, factor in enumerate(_spread(config.devices, config.heterogeneity))
        ]
    fleet = Fleet(tuple(devices))
    return _with_events(fleet, config.event, config.fault)


def _spread(count: int, sigma: float) -> list[float]:
    """Factors from 1 to ``sigma``, evenly spaced."""
    if count == 1:
        return [1.0]
    return [1.0 + (sigma - 1.0) * i / (count - 1) for i in range(count)]


def _device(entry: Mapping[str, Any], defaults: Mapping[str, float]) -> Device:
    known = {"name", "slowdown", "share", "profile", *_LIMITS, *defaults}
    _refuse_unknown("fleet.device", entry, known)
    name = _name(entry.get("name"))
    profile = entry.get("profile", "")
    if not isinstance(profile, str):
        raise EdgePruneError(f"fleet.device {name!r}: profile must be a file's name, got {profile!r}")
    numbers = {key: value for key, value in entry.items() if key not in ("name", "profile")}
    values = {key: _number(f"fleet.device {name!r}: {key}", value) for key, value in numbers.items()}
    values = {**defaults, "slowdown": 1.0, "share": 1.0, **dict.fromkeys(_LIMITS, 0.0), **values}
    for key in _POSITIVE:
        if not values[key] > 0:
            raise EdgePruneError(f"fleet.device {name!r}: {key} is {values[key]}; it must be greater than 0")
        if not LEAST <= values[key] <= MOST:
            raise EdgePruneError(f"fleet.device {name!r}: {key} is {values[key]}; give {LEAST:.0e} to {MOST:.0e}")
    for key in _AT_LEAST_ZERO:
        if not values[key] >= 0:
            raise EdgePruneError(f"fleet.device {name!r}: {key} is {values[key]}; it must be 0 or more")
        if values[key] > MOST:
            raise EdgePruneError(f"fleet.device {name!r}: {key} is {values[key]}; give {MOST:.0e} or less")
    if values["noise"] > MOST_NOISE:
        raise EdgePruneError(f"fleet.device {name!r}: noise is {values['noise']}; give 0 to {MOST_NOISE:.0f}")
    # A weaker device sits behind a weaker link: compute and transport are slowed by the same factor, so that the
    # ratio of unpruned update times is the ratio of the factors.
    slow = values["slowdown"]
    link = Link(values["download_mbps"] / slow, values["upload_mbps"] / slow, values["latency_ms"] * slow)
    return Device(
        name,
        slow,
        link,
        values["share"],
        values["noise"],
        profile=profile,
        memory_mib=values["memory_mib"],
        energy_j=values["energy_j"],
        hottest_c=values["hottest_c"],
        temperature_c=values["temperature_c"],
    )


def _name(name: Any) -> str:
    """A device's name, if folders and files can be called after it."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable() or "/" in name:
        raise EdgePruneError(
            f"fleet.device: name {name!r} must be 1 to {NAME_CHARACTERS} printable characters without '/'"
        )
    if name in (".", ".."):
        raise EdgePruneError(f"fleet.device: name {name!r} means a folder to every system; choose another name")
    if len(name.encode()) > NAME_BYTES:
        raise EdgePruneError(
            f"fleet.device: name {name!r} has {len(name.encode())} bytes in UTF-8; give at most {NAME_BYTES}"
        )
    return name


def _with_events(fleet: Fleet, events: Iterable[Mapping[str, Any]], faults: Iterable[Mapping[str, Any]]) -> Fleet:
    by_name = {device.name: device for device in fleet.devices}
    for entry in events:
        _refuse_unknown("fleet.event", entry, {"device", "round", "slowdown"})
        device = fleet[_required("fleet.event", entry, "device", str)]
        event = Slowdown(
            _required("fleet.event", entry, "round", int), _number("fleet.event: slowdown", entry.get("slowdown"))
        )
        by_name[device.name] = replace(by_name[device.name], slowdowns=(*by_name[device.name].slowdowns, event))
    for entry in faults:
        _refuse_unknown("fleet.fault", entry, {"device", "kind", "first", "last"})
        device = fleet[_required("fleet.fault", entry, "device", str)]
        span = {key: _required("fleet.fault", entry, key, int) for key in ("first", "last") if key in entry}
        fault = Fault(_required("fleet.fault", entry, "kind", str), **span)
        by_name[device.name] = replace(by_name[device.name], faults=(*by_name[device.name].faults, fault))
    return Fleet(tuple(by_name[name] for name in fleet.names))


def _refuse_unknown(where: str, entry: Any, known: set[str]) -> None:
    if not isinstance(entry, Mapping):
        raise EdgePruneError(f"{where}: expected a table, got {entry!r}; write [[{where}]]")
    for key in entry:
        if key not in known:
            raise EdgePruneError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _required(where: str, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        raise EdgePruneError(f"{where}: {key} must be given as {kind.__name__}, got {value!r}")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise EdgePruneError(f"{where} must be a finite number, got {value!r}")
    return float(value)
