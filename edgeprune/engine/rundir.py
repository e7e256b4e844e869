"""A run's folder: config.toml, latency.json, metrics.jsonl, checkpoint.safetensors, summary.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.engine.locks import alone
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import extract, extract_state, load_local
from edgeprune.tasks import Task
from edgeprune.tasks import get as get_task
from edgeprune.tasks.task import examples_of, initial_model

CONFIG, LATENCY, METRICS, SUMMARY = "config.toml", "latency.json", "metrics.jsonl", "summary.json"
DEVICES = "devices.json"  # the times of devices with profiles of their own


class RunDir:
    """Reads what a run has written. Raises :class:`EdgePruneError` where ``path`` is not a run's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_run(self.path):
            raise EdgePruneError(f"{self.path}: not a run directory (no {CONFIG}); make one with 'edgeprune run'")
        self.experiment: Experiment = load_experiment(self.path / CONFIG)

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration as nested dicts."""
        return self.experiment.to_dict()

    def metrics(self) -> list[dict[str, Any]]:
        """One dict a round, oldest first; a last line cut off by a crash is left out."""
        return read_metrics(self.path / METRICS)

    def summary(self) -> dict[str, Any]:
        """The end of the run; empty while it has not ended."""
        checkpoints.regular(self.path / SUMMARY)
        try:
            value = json.loads((self.path / SUMMARY).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise EdgePruneError(f"{self.path / SUMMARY}: cannot be read ({error})") from None
        if not isinstance(value, dict):
            raise EdgePruneError(f"{self.path / SUMMARY}: not a JSON object")
        return value

    def task(self) -> Task:
        """The task that the run trained."""
        return get_task(self.experiment.task.name)

    def clients(self) -> list[str]:
        """Names of the devices, as the checkpoint knows them."""
        return list(self._load()[0].state.plans)

    def model(self, client: str | None = None) -> tuple[nn.Module, SubmodelPlan | None]:
        """The trained global model, or ``client``'s physically smaller sub-model of it with its plan."""
        checkpoint, full = self._load()
        if client is None:
            full.load_state_dict(checkpoint.state.model)
            return full, None
        if client not in checkpoint.state.plans:
            raise EdgePruneError(f"{self.path}: unknown client {client!r}{nearest(client, checkpoint.state.plans)}")
        plan = checkpoint.state.plans[client]
        small = extract(full, plan)
        load_local(small, extract_state(checkpoint.state.model, plan))
        return small, plan

    def _load(self) -> tuple[checkpoints.Checkpoint, nn.Module]:
        task = self.task()
        full = initial_model(task, self.experiment.run.seed)  # with what no state dictionary holds
        graph = ChannelGraph.trace(full, examples_of(task))
        path = self.path / checkpoints.FILE
        checkpoint = checkpoints.load(path, graph)
        checkpoints.check_model(path, checkpoint.state.model, full.state_dict())
        return checkpoint, full


def is_run(path: Path) -> bool:
    """Whether a run was begun in ``path``."""
    return os.path.isfile(path / CONFIG)  # False for a name that cannot be one, too


def refuse_present(path: Path) -> None:
    """Refuse the folder of a new run that is there already, or cannot be."""
    try:
        present = path.exists()
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be made a folder ({error.strerror}); choose another --out") from None
    if present:
        raise EdgePruneError(f"{path}: already there; choose another --out, or --resume that run")


def beside(path: Path, ending: str) -> Path:
    """The folder that lies beside the run's ``path``, absolute, of the same name and ``ending``."""
    whole = Path(os.path.abspath(path))
    if not whole.name:
        raise EdgePruneError(f"{path}: a run needs a folder of its own; choose another --out")
    return whole.with_name(f"{whole.name}.{ending}")


@contextmanager
def created(
    path: Path, experiment: Experiment, latency: Mapping[str, Any], devices: Mapping[str, Any]
) -> Iterator[None]:
    """Make the folder of a new run and have it for oneself (:func:`occupied`). One that holds anything is refused; one
    that cannot be filled is left as it was found."""
    with ExitStack() as held:
        try:
            made = not path.exists()
            os.makedirs(path, exist_ok=True)
            held.enter_context(occupied(path))
            taken = any(path.iterdir())
        except (OSError, ValueError) as error:
            raise EdgePruneError(f"{path}: cannot be made a folder ({error}); choose another --out") from None
        if taken:
            raise EdgePruneError(f"{path}: already there and not empty; choose another --out, or --resume that run")
        try:
            checkpoints.write_atomically(path / LATENCY, json.dumps(latency, indent=1).encode())
            if devices:
                checkpoints.write_atomically(path / DEVICES, json.dumps(devices, indent=1).encode())
            checkpoints.write_atomically(path / CONFIG, experiment.to_toml().encode())
        except BaseException:  # without its config.toml it would be neither a run nor a free place
            for name in (CONFIG, DEVICES, LATENCY):
                (path / name).unlink(missing_ok=True)
            if made:
                path.rmdir()
            raise
        yield


def occupied(path: Path) -> AbstractContextManager[None]:
    """Keep every other process from leading the run in ``path``. The kernel gives it free when this one dies."""
    return alone(path, f"{path}: another process leads this run; wait for its end, or stop it and use --resume")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl; none if there is no such file yet."""
    checkpoints.regular(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise EdgePruneError(f"{path}: cannot be read ({error})") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise EdgePruneError(f"{path}: line {number} is not JSON; the file was damaged") from None
        if not isinstance(record, dict):
            raise EdgePruneError(f"{path}: line {number} is not a JSON object; the file was damaged")
        if type(record.get("round")) is not int:
            raise EdgePruneError(f"{path}: line {number} does not say its round; the file was damaged")
        records.append(record)
    return records


def truncate_metrics(path: Path, last_round: int) -> None:
    """Drop the records after ``last_round``: a crash between record and checkpoint repeats that round.

    Raises :class:`EdgePruneError` where one of an earlier round is missing.
    """
    kept = [record for record in read_metrics(path) if record["round"] <= last_round]
    if [record["round"] for record in kept] != list(range(1, last_round + 1)):
        raise EdgePruneError(
            f"{path}: damaged, it does not hold the rounds 1 to {last_round} that the checkpoint has made; put it "
            "back, or start a new run"
        )
    checkpoints.write_atomically(path, "".join(map(line_of, kept)).encode())


def append_metrics(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record and see it to the disk."""
    checkpoints.regular(path)
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line_of(record))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EdgePruneError(
            f"{path}: cannot be written ({error.strerror}); make room, then go on with --resume"
        ) from None


def line_of(record: Mapping[str, Any]) -> str:
    """One record as its line; a number that is not finite, of a run that diverged, becomes null."""
    return json.dumps(_finite(record), allow_nan=False, separators=(",", ":")) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
