"""An experiment as one TOML file: every key known, typed, and written back complete."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli_w

from edgeprune.algorithms import algorithm_class
from edgeprune.algorithms.adaptcl import AdaptCL
from edgeprune.algorithms.protocol import Algorithm
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.fleet import FleetConfig
from edgeprune.fleet.description import LATENCIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
ENGINES = ("local", "processes", "flower", "flare")
EXECUTORS = ("serial", "batched")
DEVICES = ("cpu", "cuda")
MOST_THREADS = 256
PARTITION_KEYS = {
    "sorted": ("share",),
    "shards": ("per_client",),
    "classes": ("per_client", "per_class"),
    "dirichlet": ("alpha",),
}


@dataclass(frozen=True)
class TaskConfig:
    """``name``: a built-in task, or ``"package.module:function"`` that returns one."""

    name: str = "digits"


@dataclass(frozen=True)
class DataConfig:
    """How the training data are split over the clients; ``samples`` limits them (0: all of them).

    ``share`` belongs to ``sorted``, ``per_client`` to ``shards`` and, with ``per_class``, to ``classes``, ``alpha`` to
    ``dirichlet``.
    """

    partition: str = "iid"
    share: float = 0.8
    per_client: int = 2
    per_class: int = 20
    alpha: float = 0.5
    samples: int = 0


@dataclass(frozen=True)
class RunConfig:
    """``patience``: a round waits for a missing answer this many times as long as for the slowest that came.
    ``threads``: one is fastest for networks of a few layers, and gives the same bits whatever the number of cores; 0
    leaves torch's own number. ``checkpoint_every`` is in rounds. ``engine``: "local" runs all devices in this process
    on a virtual clock; "processes" gives each a process here, and the real clock; "flower" and "flare" are for other
    machines. ``deadline_s``: the real clock waits no longer for any answer. ``executor``: "serial" trains the local
    engine's devices one after the other, "batched" many at once, which is for ``device`` "cuda" (engine/executor.py).
    On that global weights are judged as well."""

    rounds: int = 60
    seed: int = 0
    evaluate_every: int = 5
    checkpoint_every: int = 1
    engine: str = "local"
    executor: str = "serial"
    device: str = "cpu"
    threads: int = 1
    patience: float = 2.0
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        for key, least in (("rounds", 1), ("evaluate_every", 1), ("checkpoint_every", 1), ("threads", 0), ("seed", 0)):
            if getattr(self, key) < least:
                raise EdgePruneError(f"run.{key} is {getattr(self, key)}; give {least} or more")
        if self.threads > MOST_THREADS:
            raise EdgePruneError(f"run.threads is {self.threads}; give {MOST_THREADS} or less")
        if not self.patience >= 1:
            raise EdgePruneError(f"run.patience is {self.patience}; give 1 or more")
        if not self.deadline_s > 0:
            raise EdgePruneError(f"run.deadline_s is {self.deadline_s}; give more than 0")
        if self.engine not in ENGINES:
            raise EdgePruneError(f"run.engine: unknown engine {self.engine!r}{nearest(self.engine, ENGINES)}")
        for key, known in (("executor", EXECUTORS), ("device", DEVICES)):
            if getattr(self, key) not in known:
                raise EdgePruneError(f"run.{key} is {getattr(self, key)!r}{nearest(getattr(self, key), known)}")


@dataclass(frozen=True)
class Experiment:
    """The five sections. Its defaults are the built-in experiment."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: Algorithm = field(default_factory=AdaptCL)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Every key of every section."""
        algorithm = typing.cast(Any, self.algorithm)
        return {
            "task": asdict(self.task),
            "data": asdict(self.data),
            "algorithm": {"name": algorithm.name, **asdict(algorithm)},
            "fleet": {key: _plain(value) for key, value in asdict(self.fleet).items()},
            "run": asdict(self.run),
        }

    def identity(self) -> str:
        """16 hex digits over all that a run's numbers depend on but its length, and where times are looked up."""
        told = self.to_dict()
        told["fleet"].pop("latency")
        for key in ("rounds", "checkpoint_every", "engine"):
            told["run"].pop(key)
        return hashlib.sha256(json.dumps(_same(told), sort_keys=True).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The file that reruns this experiment."""
        return tomli_w.dumps(self.to_dict())


def load_experiment(path: Path | None, sets: Sequence[str] = ()) -> Experiment:
    """The experiment in ``path`` (built-in if None) with each ``key.path=value`` of ``sets`` put over it.

    Values of ``sets`` are TOML; a bare word counts as a string. Unknown keys are refused with the nearest known one.
    """
    return experiment_from(load_raw(path, sets), path.parent if path else Path())


def load_raw(path: Path | None, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The parsed document itself, overrides put over it, nothing checked yet."""
    raw = _read_toml(path) if path else {}
    for item in sets:
        _put(raw, item)
    return raw


def experiment_from(raw: Mapping[str, Any], folder: Path) -> Experiment:
    """The experiment in a parsed TOML document; files it names are looked for in ``folder``."""
    sections = {f.name for f in fields(Experiment)}
    for key, value in raw.items():
        if key not in sections:
            raise EdgePruneError(f"experiment: unknown section [{key}]{nearest(key, sections)}")
        if not isinstance(value, Mapping):
            raise EdgePruneError(f"experiment: [{key}] must be a table, got {value!r}")
    algorithm = dict(raw.get("algorithm", {}))
    name = algorithm.pop("name", AdaptCL.name)
    if not isinstance(name, str):
        raise EdgePruneError(f"algorithm.name must be a string, got {name!r}")
    return Experiment(
        task=_fill(TaskConfig, "task", raw.get("task", {})),
        data=_data(raw.get("data", {})),
        algorithm=_fill(algorithm_class(name), "algorithm", algorithm),
        fleet=_fleet(raw.get("fleet", {}), folder),
        run=_fill(RunConfig, "run", raw.get("run", {})),
    )


def _data(section: Mapping[str, Any]) -> DataConfig:
    """``[data]``. A key of a partition that was not asked for shows that one was meant."""
    config = _fill(DataConfig, "data", section)
    for key in section:
        readers = [repr(kind) for kind, keys in PARTITION_KEYS.items() if key in keys]
        if readers and "partition" not in section and repr(config.partition) not in readers:
            raise EdgePruneError(
                f"data.{key} has no effect with partition {config.partition!r}; leave it out, or set data.partition to "
                f"{' or '.join(readers)}"
            )
    return config


def _fleet(section: Mapping[str, Any], folder: Path) -> FleetConfig:
    """``[fleet]``, its ``file`` read in: values beside ``file`` win over those inside."""
    section = _found(section, folder)
    config = _fill(FleetConfig, "fleet", section)
    if config.file:
        path = folder / config.file
        inner = _read_toml(path)
        for key in inner:
            if key != "fleet":
                raise EdgePruneError(f"{config.file}: unknown section [{key}]; a fleet file holds only [fleet]")
        named = inner.get("fleet", {})
        if not isinstance(named, Mapping) or "file" in named:
            raise EdgePruneError(f"{config.file}: [fleet] must be a table that names no further file, got {named!r}")
        inside = {**_found(named, path.parent), **{k: v for k, v in section.items() if k != "file"}}
        config = replace(_fill(FleetConfig, f"{config.file}: fleet", inside), file="")
    return config


def _found(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A ``[fleet]`` whose files are looked for in ``folder``, where it stands."""
    found = dict(section)
    if isinstance(latency := found.get("latency"), str) and latency not in LATENCIES:
        found["latency"] = _path(latency, folder)
    if isinstance(devices := found.get("device"), list):
        found["device"] = [_with_profile(entry, folder) for entry in devices]
    return found


def _with_profile(entry: Any, folder: Path) -> Any:
    """A ``[[fleet.device]]`` with its profile's path made absolute."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("profile"), str) or not entry["profile"]:
        return entry
    return {**entry, "profile": _path(entry["profile"], folder)}


def _path(name: str, folder: Path) -> str:
    return name if "\0" in name else str((folder / name).resolve())  # refused with the other values


def _fill(cls: type[T], where: str, section: Mapping[str, Any]) -> T:
    """``cls`` from a table, each value checked against the field's type."""
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key not in known:
            raise EdgePruneError(f"{where}: unknown key {key!r}{nearest(key, known)}")
        values[key] = _checked(f"{where}.{key}", value, hints[key])
    for f in fields(cls):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise EdgePruneError(f"{where}.{f.name} is missing")
    return cls(**values)


def _checked(where: str, value: Any, hint: Any) -> Any:
    _refuse_boundless(where, value)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise EdgePruneError(f"{where} is {value!r}{nearest(str(value), [str(a) for a in get_args(hint)])}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise EdgePruneError(f"{where} must be a list, got {value!r}")
        return tuple(value)
    if origin in (typing.Union, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise EdgePruneError(f"{where} must be {_KIND.get(hint, hint.__name__)}, got {value!r}")
    return value


def _refuse_boundless(where: str, value: Any) -> None:
    """Nothing in an experiment may be infinite, no number at all, a whole number beyond TOML's 64 bits, or hold a
    character that ends a file's name."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse_boundless(where, item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_boundless(f"{where}.{key}", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise EdgePruneError(f"{where} is {value}, which is not a number to compute with; give a finite value")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise EdgePruneError(f"{where} is a whole number of more than 64 bits; give a smaller one")
    elif isinstance(value, str) and "\0" in value:
        raise EdgePruneError(f"{where} is {value!r}, which holds a NUL character; leave that out")


def _same(value: Any) -> Any:
    """``value`` as a file gives it back: 1.0 where 1 was meant is no other experiment, nor a tuple for a list."""
    if isinstance(value, Mapping):
        return {key: _same(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_same(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


_KIND = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _plain(value: Any) -> Any:
    return [dict(item) for item in value] if isinstance(value, tuple) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may begin it with a byte-order mark
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise EdgePruneError(f"{path}: not a TOML file ({error})") from None


def _put(raw: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) != 2 or not all(parts):
        raise EdgePruneError(f"--set {item!r}: write it as section.key=value, for example run.rounds=20")
    section = raw.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise EdgePruneError(f"--set {item!r}: [{parts[0]}] is not a table")
    try:
        section[parts[1]] = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        section[parts[1]] = text.strip()
    except ValueError:  # thousands of digits
        raise EdgePruneError(f"{key.strip()} is a whole number of more than 64 bits; give a smaller one") from None
