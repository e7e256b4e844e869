"""The server's state on disk: one safetensors file, its JSON in the metadata, written beside and then renamed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from edgeprune.algorithms.protocol import State
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan

FILE = "checkpoint.safetensors"
VERSION = 1
SERVER, DEVICES = "server:", "device:"  # before the names of what is not the model; no parameter's name has a colon


@dataclass(frozen=True)
class Checkpoint:
    """``held`` is the plan each device was last sent; ``totals`` are the running sums of the run. ``devices``: tensors
    that the devices of this machine must not lose (what error feedback owes)."""

    state: State
    held: Mapping[str, SubmodelPlan]
    time_s: float
    totals: Mapping[str, Any]
    devices: Mapping[str, Tensor] = field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``: after a crash at any moment the file is the old one or the new one, never half of it."""
    plans = {plan.id: plan for plan in (*checkpoint.state.plans.values(), *checkpoint.held.values())}
    header = {
        "version": VERSION,
        "round": checkpoint.state.round,
        "memory": checkpoint.state.memory,
        "plans": {key: base64.b64encode(plan.kept_bytes()).decode() for key, plan in sorted(plans.items())},
        "assigned": {client: plan.id for client, plan in checkpoint.state.plans.items()},
        "held": {client: plan.id for client, plan in checkpoint.held.items()},
        "time_s": checkpoint.time_s,
        "totals": checkpoint.totals,
    }
    sections = {"": checkpoint.state.model, SERVER: checkpoint.state.tensors, DEVICES: checkpoint.devices}
    tensors = {prefix + name: t.contiguous() for prefix, part in sections.items() for name, t in part.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata={"edgeprune": json.dumps(header, allow_nan=False)}))


def load(path: Path, graph: ChannelGraph) -> Checkpoint:
    """The checkpoint in ``path``, its plans on ``graph``. Raises :class:`EdgePruneError` if it is not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["edgeprune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["version"] != VERSION:
            raise EdgePruneError(f"{path}: checkpoint version {header['version']}, this program reads {VERSION}")
        plans = {
            key: SubmodelPlan.from_kept_bytes(graph, base64.b64decode(text)) for key, text in header["plans"].items()
        }
        state = State(
            header["round"],
            {name: tensor for name, tensor in tensors.items() if not name.startswith((SERVER, DEVICES))},
            {client: plans[key] for client, key in header["assigned"].items()},
            header["memory"],
            _section(tensors, SERVER),
        )
        held = {client: plans[key] for client, key in header["held"].items()}
        return Checkpoint(state, held, header["time_s"], header["totals"], _section(tensors, DEVICES))
    except FileNotFoundError:
        raise EdgePruneError(
            f"{path}: there is no checkpoint; the run has not begun or this is not its folder"
        ) from None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EdgePruneError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from None


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_atomically(path: Path, blob: bytes) -> None:
    """``blob`` into ``path`` through a temporary file beside it, flushed to the disk before it takes the name."""
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
