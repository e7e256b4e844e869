"""A sub-model as two files: ``model.safetensors`` (its weights, nothing else) and ``plan.json`` (what it keeps).

No pickle, and nothing in them is executed: who loads them brings the model's class, as for any state dict. The full
model is built by its own factory, cut by the plan and filled; importance, data and the graph are not needed again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from edgeprune.digest import digest_of
from edgeprune.errors import EdgePruneError, shown
from edgeprune.pruning.codec import MAX_TEXT
from edgeprune.pruning.submodel import SubmodelPlan
from edgeprune.pruning.surgery import extract, load_local

WEIGHTS, PLAN = "model.safetensors", "plan.json"
FORMAT = "edgeprune.submodel/2"
MAX_HEADER = 1 << 26


def save(
    model: nn.Module, plan: SubmodelPlan, folder: str | os.PathLike[str], about: Mapping[str, Any] | None = None
) -> Path:
    """Write a sub-model (``sub.model``, ``sub.plan``) to a new folder, which appears complete or not at all.

    ``about``: what else should be known of it, JSON-able (returned by ``describe``). Raises EdgePruneError when the
    folder exists or cannot be written, or when the model is not that of the plan.
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, SubmodelPlan):
        raise EdgePruneError(f"save: give sub.model and sub.plan, not {shown(model)} and {shown(plan)}")
    if about is not None and not isinstance(about, Mapping):
        raise EdgePruneError(f"save: about is {shown(about)}; give a dict of what should be known of the sub-model")
    folder = _folder("save", folder)
    state = {name: t.detach().cpu() for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    plan.check_local(state)
    if os.path.lexists(folder):
        raise EdgePruneError(f"{folder}: is there already; name a new folder")
    if not folder.parent.is_dir():
        raise EdgePruneError(f"{folder}: the folder {folder.parent} does not exist; create it first")
    header = {"format": FORMAT, "plan": plan.id, "sha256": digest_of(state), "about": dict(about or {})}
    try:
        beside = Path(tempfile.mkdtemp(prefix=".edgeprune-", dir=folder.parent))
        try:
            inner = beside / folder.name
            inner.mkdir()
            (inner / PLAN).write_text(plan.to_json(), encoding="utf-8")
            held = {name: t.clone().contiguous() for name, t in state.items()}  # tied tensors apart
            data = safetensors.torch.save(held, metadata={"edgeprune": json.dumps(header, allow_nan=False)})
            (inner / WEIGHTS).write_bytes(data)
            os.replace(inner, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise EdgePruneError(f"{folder}: cannot be written ({error.strerror}); choose another place") from None
    except (TypeError, ValueError) as error:
        raise EdgePruneError(f"{folder}: this cannot be stored ({error})") from None
    return folder


def load(
    folder: str | os.PathLike[str], make_model: Callable[[], nn.Module] | nn.Module
) -> tuple[nn.Module, SubmodelPlan]:
    """The sub-model in ``folder``, in evaluation mode, and its plan.

    ``make_model``: the full model, or what makes it; its weights do not matter and it is not changed. Raises
    EdgePruneError (one sentence) on anything that is not such a folder, on weights that are not the plan's, and on a
    plan of another model; what the files promise is compared with the model before it is believed.
    """
    folder = _folder("load", folder)
    if not callable(make_model):  # as modules are
        raise EdgePruneError(
            f"load: make_model is {shown(make_model)}; give the full model, or a function that makes it"
        )
    plan, header = _read_plan(folder), _header(folder)
    if header["plan"] != plan.id:
        raise EdgePruneError(f"{folder}: {PLAN} and {WEIGHTS} are of two different sub-models; keep them together")
    full = make_model if isinstance(make_model, nn.Module) else make_model()
    if not isinstance(full, nn.Module):
        raise EdgePruneError(f"{folder}: what makes the model returned {type(full).__name__}, not a torch.nn.Module")
    own = [n for n, t in full.state_dict().items() if isinstance(t, Tensor)]
    if missing := sorted(set(own) - set(plan.axes)):
        raise EdgePruneError(f"{folder}: the plan does not know {missing[0]!r} of this model; it is another model's")
    small = extract(full, plan)
    state = _read_weights(folder, {n: t for n, t in small.state_dict().items() if isinstance(t, Tensor)})
    plan.check_local(state)
    if header["sha256"] != digest_of(state):
        raise EdgePruneError(f"{folder / WEIGHTS}: its weights are not those that were written; copy the folder again")
    return load_local(small, state).eval(), plan


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``save`` was told ``about`` the sub-model."""
    return dict(_header(Path(folder))["about"])


def _folder(op: str, folder: object) -> Path:
    if not isinstance(folder, str | os.PathLike) or not isinstance(path := os.fspath(folder), str):
        raise EdgePruneError(f"{op}: folder is {shown(folder)}; give its path")
    return Path(path)


def _read_plan(folder: Path) -> SubmodelPlan:
    path = folder / PLAN
    try:
        if path.stat().st_size > MAX_TEXT:
            raise EdgePruneError(f"{path}: {path.stat().st_size} bytes are too many for a plan")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); name a folder that prune wrote") from None
    except UnicodeDecodeError:
        raise EdgePruneError(f"{path}: is not text; name a folder that prune wrote") from None
    try:
        return SubmodelPlan.from_json(text)
    except EdgePruneError as error:
        raise EdgePruneError(f"{path}: {error}") from None


def _header(folder: Path) -> dict[str, Any]:
    path = folder / WEIGHTS
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, path.stat().st_size):
            raise EdgePruneError(f"{path}: promises a header of {length} bytes; the file is damaged")
        with safetensors.safe_open(path, framework="pt") as tensors:
            header = json.loads((tensors.metadata() or {})["edgeprune"])
        if header["format"] != FORMAT or not isinstance(header["about"], dict):
            raise ValueError
        return {key: header[key] for key in ("plan", "sha256", "about")}
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); name a folder that prune wrote") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        raise EdgePruneError(f"{path}: is not a sub-model's weights; name a folder that prune wrote") from None


def _read_weights(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each of the type and shape of ``wanted`` before one byte of it is read."""
    path = folder / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt") as tensors:
            names = set(tensors.keys())
            if other := sorted(names ^ set(wanted)):
                lacks = "lacks" if other[0] in wanted else "holds an unknown"
                raise EdgePruneError(f"{path}: {lacks} {other[0][:80]!r}; it is another model's")
            for name, t in wanted.items():
                shape = tuple(tensors.get_slice(name).get_shape())
                if shape != tuple(t.shape):
                    raise EdgePruneError(f"{path}: {name!r} has shape {shape}, its plan says {tuple(t.shape)}")
            state = {name: tensors.get_tensor(name) for name in wanted}
    except (OSError, safetensors.SafetensorError) as error:
        raise EdgePruneError(f"{path}: cannot be read ({error}); the file is damaged") from None
    for name, t in wanted.items():
        if state[name].dtype != t.dtype:
            raise EdgePruneError(f"{path}: {name!r} is {state[name].dtype}, this model's is {t.dtype}; convert one")
    return state
