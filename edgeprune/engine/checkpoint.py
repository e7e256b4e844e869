"""The server's state on disk: one safetensors file, its JSON in the metadata, written beside and then renamed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from edgeprune.algorithms.protocol import Assignment, Job, Recipe, State
from edgeprune.destination import write_bytes
from edgeprune.digest import digest_of
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan

FILE = "checkpoint.safetensors"
VERSION = 3
SERVER, DEVICES, FLIGHT = (
    "server:",
    "device:",
    "flight:",
)  # before the names of what is not the model; no parameter's name has a colon


@dataclass(frozen=True)
class Sent:
    """What one device is at: the assignment with the weights as they were sent, in which round, when, in how many
    bytes."""

    asked: Assignment
    round: int
    at_s: float
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """``held`` is the plan each device was last sent; ``totals`` are the running sums of the run. ``devices``: tensors
    that the devices of this machine must not lose (what error feedback owes, answers that are still on their way).
    ``flight``: who was at work when the round ended. ``experiment``: whose this is (Experiment.identity)."""

    state: State
    held: Mapping[str, SubmodelPlan]
    time_s: float
    totals: Mapping[str, Any]
    devices: Mapping[str, Tensor] = field(default_factory=dict)
    flight: Mapping[str, Sent] = field(default_factory=dict)
    experiment: str = ""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``: after a crash at any moment the file is the old one or the new one, never half of it."""
    under_way = [sent.asked.plan for sent in checkpoint.flight.values()]
    plans = {plan.id: plan for plan in (*checkpoint.state.plans.values(), *checkpoint.held.values(), *under_way)}
    flight, snapshots = _flight_out(checkpoint.flight)
    header = {
        "version": VERSION,
        "experiment": checkpoint.experiment,
        "round": checkpoint.state.round,
        "memory": checkpoint.state.memory,
        "plans": {key: base64.b64encode(plan.kept_bytes()).decode() for key, plan in sorted(plans.items())},
        "assigned": {client: plan.id for client, plan in checkpoint.state.plans.items()},
        "held": {client: plan.id for client, plan in checkpoint.held.items()},
        "time_s": checkpoint.time_s,
        "totals": checkpoint.totals,
        "flight": flight,
    }
    state = checkpoint.state
    sections = {"": state.model, SERVER: state.tensors, DEVICES: checkpoint.devices, FLIGHT: snapshots}
    tensors = {prefix + name: t.contiguous() for prefix, part in sections.items() for name, t in part.items()}
    text = json.dumps(header, allow_nan=False)
    metadata = {"edgeprune": text, "sha256": digest_of(tensors, text)}
    write_atomically(path, safetensors.torch.save(tensors, metadata=metadata))


def load(path: Path, graph: ChannelGraph, experiment: str = "") -> Checkpoint:
    """The checkpoint in ``path``, its plans on ``graph``; of the ``experiment`` of that identity, if one is given.

    Raises :class:`EdgePruneError` if it is not one, or was changed since it was written.
    """
    regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            header = json.loads(metadata["edgeprune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["version"] != VERSION:
            raise EdgePruneError(f"{path}: checkpoint version {header['version']}, this program reads {VERSION}")
        # All that follows believes the header.
        if metadata.get("sha256") != digest_of(tensors, metadata["edgeprune"]):
            raise EdgePruneError(f"{path}: damaged checkpoint (header or tensors are not those that were written)")
        if experiment and header["experiment"] != experiment:
            raise EdgePruneError(
                f"{path}: of another experiment than the config.toml beside it; put back the config.toml that the run "
                "began with (only run.rounds may change), or start a new run"
            )
        plans = {
            key: SubmodelPlan.from_kept_bytes(graph, base64.b64decode(text)) for key, text in header["plans"].items()
        }
        state = State(
            header["round"],
            {name: tensor for name, tensor in tensors.items() if not name.startswith((SERVER, DEVICES, FLIGHT))},
            {client: plans[key] for client, key in header["assigned"].items()},
            header["memory"],
            _section(tensors, SERVER),
        )
        held = {client: plans[key] for client, key in header["held"].items()}
        flight = _flight_in(header.get("flight", {}), plans, _section(tensors, FLIGHT))
        devices = _section(tensors, DEVICES)
        return Checkpoint(state, held, header["time_s"], header["totals"], devices, flight, header["experiment"])
    except FileNotFoundError:
        raise EdgePruneError(
            f"{path}: there is no checkpoint; the run has not begun or this is not its folder"
        ) from None
    except (
        OSError,
        safetensors.SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise EdgePruneError(
            f"{path}: damaged checkpoint, not a readable checkpoint file ({type(error).__name__}: {error})"
        ) from None


def check_model(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises :class:`EdgePruneError` where the weights ``found`` in ``path`` cannot be those of the task's model."""
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name), expected.get(name)
        if here is None or there is None or here.shape != there.shape or here.dtype != there.dtype:
            raise EdgePruneError(f"{path}: damaged checkpoint (tensor {name!r} is not that of the task's model)")


def _flight_out(flight: Mapping[str, Sent]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON, tensors) of what is under way; clients that were sent the same tensors share them there too."""
    numbers: dict[int, int] = {}
    header, tensors = {}, {}
    for client, sent in flight.items():
        asked = sent.asked
        for part in (asked.state, asked.masks):
            if id(part) not in numbers:
                numbers[id(part)] = len(numbers)
                # Copies: two parts may share a tensor, which the file's format does not allow.
                tensors.update({f"{numbers[id(part)]}/{name}": t.clone() for name, t in part.items()})
        header[client] = {
            "plan": asked.plan.id,
            "recipe": asdict(asked.recipe),
            "job": asdict(asked.job),
            "state": numbers[id(asked.state)],
            "masks": numbers[id(asked.masks)],
            "round": sent.round,
            "at_s": sent.at_s,
            "nbytes": sent.nbytes,
        }
    return header, tensors


def _flight_in(
    header: Mapping[str, Any], plans: Mapping[str, SubmodelPlan], tensors: Mapping[str, Tensor]
) -> dict[str, Sent]:
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        parts.setdefault(int(number), {})[name] = tensor
    flight = {}
    for client, was in header.items():
        state, masks = (parts.setdefault(was[key], {}) for key in ("state", "masks"))
        recipe, job = Recipe(**was["recipe"]), Job(**was["job"])
        asked = Assignment(client, plans[was["plan"]], state, recipe, masks, job)
        flight[client] = Sent(asked, was["round"], was["at_s"], was["nbytes"])
    return flight


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_atomically(path: Path, blob: bytes) -> None:
    """A file of a run. Raises :class:`EdgePruneError`, and leaves what was there, where it cannot be written."""
    regular(path)
    write_bytes(path, blob, "run", "make room or choose another folder; a run goes on with --resume")


def regular(path: Path) -> None:
    """Refuse what is there and is no file: a folder, a pipe, a device. Raises :class:`EdgePruneError`."""
    if path.exists() and not path.is_file():
        raise EdgePruneError(f"{path}: not a file; move it out of the way")
