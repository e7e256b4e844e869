"""A run directory as the numbers that the page draws, checked: a damaged file is one sentence, never a broken page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in [0, 1] after ``round``, ``time_s`` seconds and ``sent_bytes`` (up and down) into the run, both with
    the calibration that the judged model had."""

    round: int
    time_s: float
    sent_bytes: int
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One run. ``times`` and ``retention``: device -> [(round, value)], seconds and share of channels kept.

    ``energy_j``: device -> joules of its training, where it measured them itself.
    ``label`` names it among the others; ``rejected`` is (round, device, reason); ``ends`` the time on the run's
    clock at the end of every round. The one calibration that the model in use needs is among the bytes, and takes
    ``calibration_s``.
    """

    label: str
    task: str
    algorithm: str
    config: dict[str, Any]
    summary: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    ends: tuple[tuple[int, float], ...]
    times: dict[str, list[tuple[int, float]]]
    retention: dict[str, list[tuple[int, float]]]
    rejected: tuple[tuple[int, str, str], ...]
    upload_bytes: int
    download_bytes: int
    energy_j: dict[str, float]
    calibration_s: float = 0.0

    @property
    def rounds(self) -> int:
        """The last finished round."""
        return self.ends[-1][0]

    @property
    def time_s(self) -> float:
        """Seconds of the whole run."""
        return self.ends[-1][1] + self.calibration_s

    @property
    def virtual(self) -> bool:
        """Its seconds are computed; those of devices that are processes or machines of their own were clocked."""
        return bool(self.config["run"].get("engine", "local") == "local")

    @property
    def ended(self) -> bool:
        """It has made its last round."""
        return bool(self.summary)

    @property
    def final(self) -> Evaluation | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def best(self) -> Evaluation | None:
        """The first evaluation with the highest accuracy."""
        return max(self.evaluations, key=lambda e: e.accuracy, default=None)

    @property
    def prunes(self) -> bool:
        """Some device kept less than the whole model in some round."""
        return any(value < 1 for points in self.retention.values() for _, value in points)

    def time_at(self, round_: int) -> float | None:
        """Seconds of the run, had it ended with ``round_``."""
        return next((time + self.calibration_s for number, time in self.ends if number == round_), None)

    def first_at(self, accuracy: float) -> Evaluation | None:
        """The first evaluation that reached ``accuracy``."""
        return next((e for e in self.evaluations if e.accuracy >= accuracy), None)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in ``paths``, in that order, with labels that tell them apart. EdgePruneError for the first bad one."""
    from edgeprune.engine.rundir import RunDir

    if not paths:
        raise EdgePruneError("report: no run directory given; name at least one")
    opened = [RunDir(Path(path)) for path in paths]
    configs = [_without_folders(run.config) for run in opened]
    labels = _labels([Path(path) for path in paths], [str(config["algorithm"]["name"]) for config in configs])
    return [
        read(run.path, label, config, run.summary(), run.metrics())
        for run, label, config in zip(opened, labels, configs, strict=True)
    ]


def read(
    path: Path, label: str, config: dict[str, Any], summary: dict[str, Any], records: Sequence[Mapping[str, Any]]
) -> Run:
    """Check ``records`` (metrics.jsonl) line by line and turn them into series."""
    if not records:
        raise EdgePruneError(f"{path}: no round has finished yet; run it first with 'edgeprune run'")
    evaluations: list[Evaluation] = []
    ends: list[tuple[int, float]] = []
    times: dict[str, list[tuple[int, float]]] = {}
    retention: dict[str, list[tuple[int, float]]] = {}
    rejected: list[tuple[int, str, str]] = []
    energy: dict[str, float] = {}
    upload = download = 0
    once = _Calibration()
    for number, record in enumerate(records, start=1):
        where = f"{path}: metrics.jsonl line {number}"
        round_ = int(_number(where, record, "round"))
        time_s = _number(where, record, "time_s")
        if ends and (round_ <= ends[-1][0] or time_s < ends[-1][1]):
            raise EdgePruneError(f"{where}: round {round_} comes after round {ends[-1][0]}; the file was damaged")
        ends.append((round_, time_s))
        upload += int(_number(where, record, "upload_bytes"))
        download += int(_number(where, record, "download_bytes"))
        if record.get("accuracy") is not None:
            once = _calibration(where, record)
            sent = upload + download + once.upload_bytes + once.download_bytes
            evaluations.append(Evaluation(round_, time_s + once.time_s, sent, _number(where, record, "accuracy")))
        for key, series in (("update_time_s", times), ("retention", retention)):
            for device, value in _table(where, record, key).items():
                series.setdefault(printable(device), []).append(
                    (round_, _as_number(where, f"{key} of a device", value))
                )
        for device, value in _table(where, _table(where, record, "transport"), "energy_j").items():
            joules = _as_number(where, "energy_j of a device", value)
            energy[printable(device)] = energy.get(printable(device), 0.0) + joules
        for device, reason in _table(where, record, "rejected").items():
            rejected.append((round_, printable(device), printable(reason)))
    return Run(
        label=label,
        task=printable(config["task"]["name"]),
        algorithm=printable(config["algorithm"]["name"]),
        config=config,
        summary=summary,
        evaluations=tuple(evaluations),
        ends=tuple(ends),
        times=times,
        retention=retention,
        rejected=tuple(rejected),
        upload_bytes=upload + once.upload_bytes,
        download_bytes=download + once.download_bytes,
        energy_j=energy,
        calibration_s=once.time_s,
    )


@dataclass(frozen=True)
class _Calibration:
    time_s: float = 0.0
    upload_bytes: int = 0
    download_bytes: int = 0


def _calibration(where: str, record: Mapping[str, Any]) -> _Calibration:
    """What the batch-norm statistics of the judged model cost, which the record's own figures leave out."""
    cost = _table(where, record, "calibration")
    if not cost:
        return _Calibration()
    up, down = (int(_number(where, cost, key)) for key in ("upload_bytes", "download_bytes"))
    return _Calibration(_number(where, cost, "time_s"), up, down)


def printable(value: object) -> str:
    """A user's text without control characters, which neither SVG nor a terminal should get."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def _without_folders(value: Any) -> Any:
    """The configuration with every absolute path cut to its last part: a page is passed on, the folders are private."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def _labels(paths: Sequence[Path], algorithms: Sequence[str]) -> list[str]:
    """The algorithm where it tells the runs apart, else the folder's name, else that and a number."""
    folders = [path.resolve().name for path in paths]
    for names in (algorithms, folders):
        if len(set(names)) == len(names):
            return [printable(name) for name in names]
    return [f"{printable(name)} ({i})" for i, name in enumerate(folders, start=1)]


def _table(where: str, record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EdgePruneError(f"{where}: {key} is not a table of devices; the file was damaged")
    return value


def _number(where: str, record: Mapping[str, Any], key: str) -> float:
    if key not in record:
        raise EdgePruneError(f"{where}: {key} is missing; the file was damaged")
    return _as_number(where, key, record[key])


def _as_number(where: str, key: str, value: object) -> float:
    """A finite number that is not negative: rounds, seconds, bytes and shares all are."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # a whole number with hundreds of digits
        number = math.inf
    if not 0 <= number < math.inf:
        raise EdgePruneError(f"{where}: {key} is not a finite number of at least 0; the file was damaged")
    return number
