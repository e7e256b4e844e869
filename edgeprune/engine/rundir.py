"""A run's folder: config.toml, latency.json, metrics.jsonl, checkpoint.safetensors, summary.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import extract, extract_state, load_local
from edgeprune.tasks import Task
from edgeprune.tasks import get as get_task

CONFIG, LATENCY, METRICS, SUMMARY = "config.toml", "latency.json", "metrics.jsonl", "summary.json"


class RunDir:
    """Reads what a run has written. Raises :class:`EdgePruneError` where ``path`` is not a run's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
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
        try:
            value = json.loads((self.path / SUMMARY).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
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
        full = task.make_model()
        graph = ChannelGraph.trace(full, task.example_inputs())
        return checkpoints.load(self.path / checkpoints.FILE, graph), full


def create(path: Path, experiment: Experiment, latency: Mapping[str, Any]) -> None:
    """Make the folder of a new run. One that holds anything already is refused."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise EdgePruneError(f"{path}: already there and not empty; choose another --out, or --resume that run")
    try:
        path.mkdir(parents=True, exist_ok=True)
        checkpoints.write_atomically(path / LATENCY, json.dumps(latency, indent=1).encode())
        checkpoints.write_atomically(path / CONFIG, experiment.to_toml().encode())
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl; none if there is no such file yet."""
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
        except ValueError:
            raise EdgePruneError(f"{path}: line {number} is not JSON; the file was damaged") from None
        if not isinstance(record, dict):
            raise EdgePruneError(f"{path}: line {number} is not a JSON object; the file was damaged")
        records.append(record)
    return records


def truncate_metrics(path: Path, last_round: int) -> None:
    """Drop the records after ``last_round``: a crash between record and checkpoint repeats that round."""
    kept = [record for record in read_metrics(path) if record["round"] <= last_round]
    checkpoints.write_atomically(path, "".join(map(line_of, kept)).encode())


def append_metrics(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record and see it to the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line_of(record))
        file.flush()
        os.fsync(file.fileno())


def line_of(record: Mapping[str, Any]) -> str:
    """One record as its line."""
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
