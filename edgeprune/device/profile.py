"""DeviceProfile: what one device was measured to need for one task, in one power mode; a JSON file.

The scheduler believes these figures only on the device they were measured on: the fingerprint names board, power mode,
clock limits, torch and threads; another power mode is another device. Nothing in it names a board's owner or serial.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from edgeprune.destination import write_text
from edgeprune.device import probe
from edgeprune.device.state import machine_state
from edgeprune.errors import EdgePruneError, shown

FORMAT = "edgeprune.profile/1"
VALID_DAYS = 30
SOURCES = ("measured", "emulated")
LEAST_MS, MOST_MS = 1e-6, 1e12  # a time in milliseconds: from a nanosecond to 30 years
MOST_WORK = 2**63  # of any count: multiply-adds, elements, bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Fingerprint:
    """What the figures depend on. ``clocks_khz``: upper limits; ``device``: where torch computed."""

    board: str
    architecture: str
    cores: int
    l4t: str | None
    mode: str | None
    clocks_khz: Mapping[str, int]
    torch: str
    threads: int
    device: str = "cpu"

    @property
    def id(self) -> str:
        """12 hexadecimal digits: equal fingerprints have equal ids."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, now: Fingerprint) -> list[str]:
        """What is another now, each as ``name: then -> now``."""
        pairs = ((f.name, getattr(self, f.name), getattr(now, f.name)) for f in fields(self))
        return [f"{name}: {then} -> {new}" for name, then, new in pairs if then != new]


def fingerprint(threads: int, device: str = "cpu", root: Path = Path("/")) -> Fingerprint:
    """This machine's, as it stands now."""
    facts, state = probe.beside_figures(), machine_state(root)
    return Fingerprint(
        board=facts["cpu"],
        architecture=facts["architecture"],
        cores=facts["cores"],
        l4t=probe.l4t(root),
        mode=state.mode,
        clocks_khz=dict(state.clocks_khz),
        torch=facts["torch"],
        threads=threads,
        device=device,
    )


@dataclass(frozen=True)
class ModelSize:
    """How much work one sample's forward pass is. ``*_8`` and ``*_16`` count as if channels were padded to such
    multiples, which is what vector code pays for. ``elements``: outputs of all layers. ``widths``: kept share of every
    group.
    """

    macs: int
    macs_8: int
    macs_16: int
    elements: int
    elements_8: int
    elements_16: int
    parameters: int
    widths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """One measured sub-model. Times are medians in milliseconds for a batch, of the least disturbed pass; ``spread``:
    the largest pass's median over the smallest's, less one. ``peak_memory`` is the process's, in bytes. Energies are
    net of idle, in joules for a batch; None where none was measured. ``flags`` say what disturbed it.
    """

    width: float
    depth: float
    density: float
    shape: str
    size: ModelSize
    step_ms: float
    inference_ms: float
    spread: float = 0.0
    peak_memory: int | None = None
    step_j: float | None = None
    inference_j: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceProfile:
    """``base_memory``: bytes the process holds before there is a model. ``error``: median and 90th percentile of the
    relative error of the fitted step time on ``checked`` sub-models that were left out of the fit, and their number.
    ``noise``: standard deviation of the logarithm of step times. ``power``: which rail, idle watts, or why none.
    ``temperatures_c``: the hottest that each sensor read while training.
    """

    task: str
    batch_size: int
    fingerprint: Fingerprint
    points: tuple[Point, ...]
    rebuild_ms: float
    created: str
    expires: str
    source: str = "measured"
    base_memory: int | None = None
    noise: float = 0.0
    error: Mapping[str, float] = field(default_factory=dict)
    power: Mapping[str, Any] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.points:
            raise EdgePruneError(f"profile of {self.task!r}: it holds no measured point; measure it again")
        if self.source not in SOURCES:
            raise EdgePruneError(f"profile of {self.task!r}: source is {self.source!r}; it is measured or emulated")
        times = (t for p in self.points for t in (p.step_ms, p.inference_ms))
        if not all(LEAST_MS <= t <= MOST_MS for t in (*times, self.rebuild_ms)):
            raise EdgePruneError(
                f"profile of {self.task!r}: every time must be a positive number of milliseconds, from {LEAST_MS:.0e} "
                f"to {MOST_MS:.0e}; measure it again"
            )
        memories = (self.base_memory, *(point.peak_memory for point in self.points))
        if not all(memory is None or 0 <= memory < MOST_WORK for memory in memories):
            raise EdgePruneError(f"profile of {self.task!r}: memory must be a number of bytes; measure it again")
        if self.batch_size < 1:
            raise EdgePruneError(f"profile of {self.task!r}: batch_size is {self.batch_size}; measure it again")

    def stale(self, now: Fingerprint | None, when: datetime.datetime | None = None) -> list[str]:
        """Why it should be measured again: each one sentence. None for a fingerprint that cannot be known here."""
        when = when or datetime.datetime.now(datetime.timezone.utc)
        reasons = []
        if when > _moment(self.expires, self.task):
            reasons.append(f"it expired on {self.expires[:10]}")
        if now is not None:
            reasons += [f"the device changed ({difference})" for difference in self.fingerprint.differences(now)]
        return reasons

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`from_json` reads back."""
        return {"format": FORMAT, "fingerprint_id": self.fingerprint.id, **asdict(self)}


def moments(days: int = VALID_DAYS) -> tuple[str, str]:
    """(now, now + days) as ISO dates in UTC."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return now.isoformat(), (now + datetime.timedelta(days=days)).isoformat()


def from_json(value: Any, where: str = "profile") -> DeviceProfile:
    """The profile in a JSON object; ``where`` names it in the error."""
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, not {FORMAT!r}")
        known = {f.name for f in fields(DeviceProfile)}
        plain = {key: item for key, item in value.items() if key in known}
        plain["fingerprint"] = Fingerprint(**value["fingerprint"])
        plain["points"] = tuple(_point(item) for item in value["points"])
        plain["notes"] = tuple(map(str, value.get("notes", ())))
        profile = _typed(DeviceProfile(**plain))
        _typed(profile.fingerprint)
        _moment(profile.expires, profile.task)
        return profile
    except EdgePruneError as error:
        raise EdgePruneError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EdgePruneError(
            f"{where}: not a device profile ({type(error).__name__}: {error}); write one with 'edgeprune profile TASK'"
        ) from None


def read_profile(path: Path) -> DeviceProfile:
    """The profile in a file. Raises :class:`EdgePruneError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgePruneError(f"profile {path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise EdgePruneError(f"profile {path}: not JSON; write one with 'edgeprune profile TASK -o FILE'") from None
    return from_json(value, f"profile {path}")


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Written, then renamed."""
    write_text(path, json.dumps(profile.to_json(), indent=1, allow_nan=False) + "\n", "profile")


def _point(item: Mapping[str, Any]) -> Point:
    size = {**item["size"], "widths": tuple(float(w) for w in item["size"]["widths"])}
    for f in fields(ModelSize):
        if f.name != "widths" and (type(size[f.name]) is not int or not 0 <= size[f.name] < MOST_WORK):
            raise ValueError(f"size.{f.name} is {shown(size[f.name])}")
    if not all(0 <= width <= 1 for width in size["widths"]):
        raise ValueError("size.widths holds what is no share from 0 to 1")
    return _typed(Point(**{**item, "size": ModelSize(**size), "flags": tuple(map(str, item.get("flags", ())))}))


def _typed(made: T) -> T:
    """``made``, if what a file gave for its fields is what they are declared to be, and every number is finite."""
    for name, hint in get_type_hints(type(made)).items():
        value = getattr(made, name)
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        if int not in kinds and float in kinds:
            kinds.append(int)
        known = isinstance(value, tuple(kinds)) and not isinstance(value, bool)
        if not known:
            raise ValueError(f"{name} is {shown(value)}")
        numbers = list(value.values()) if hint == Mapping[str, float] else [value] * isinstance(value, (int, float))
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{name} holds no finite number")
    return made


def _moment(text: str, task: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise EdgePruneError(f"profile of {task!r}: {text!r} is no date; measure it again") from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)
