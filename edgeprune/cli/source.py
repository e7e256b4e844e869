"""A model named on the command line: a user's ``module:function``, a built-in task, or the folder of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgeprune import tasks
from edgeprune.errors import EdgePruneError
from edgeprune.ops.memory import MOST_ELEMENTS
from edgeprune.tasks import Task
from edgeprune.tasks.task import examples_of, made


@dataclass(frozen=True)
class Source:
    """``make`` builds the full model with random weights; ``model`` holds the weights that were asked for.

    ``inputs``: example inputs; ``task``: None for a plain module. ``trained``: the weights are somebody's.
    """

    name: str
    make: Callable[[], nn.Module]
    model: nn.Module
    inputs: tuple[Tensor, ...]
    task: Task | None
    trained: bool


def open_source(text: str, shapes: tuple[str, ...] = (), weights: Path | None = None) -> Source:
    """The model that ``text`` names.

    A user's function returns a module (then ``shapes`` say its inputs: "2,3,224,224" or "2,128:int64"), a pair (module,
    example inputs), or a Task. ``weights``: a safetensors file with the model's state dict. Raises EdgePruneError.
    """
    given = tuple(_made_up(shape) for shape in shapes)
    if os.path.isdir(text):
        if weights is not None:
            raise EdgePruneError(f"{text}: a run has its own weights; leave out --weights")
        return _of_run(text, given)
    found: Any = tasks.call(text, "MODEL") if ":" in text else tasks.get(text)
    if isinstance(found, Task):
        source = Source(text, found.make_model, made(found), given or examples_of(found), found, False)
    else:
        model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, ())
        if not isinstance(model, nn.Module):
            raise EdgePruneError(
                f"MODEL {text!r}: it returned {type(found).__name__}; return a torch.nn.Module, a pair of it and its "
                "example inputs, or an edgeprune.tasks.Task"
            )
        inputs = given or (inputs if isinstance(inputs, tuple) else (inputs,))
        if not inputs or not all(isinstance(x, Tensor) for x in inputs):
            raise EdgePruneError(
                f"MODEL {text!r}: its inputs are not known; add --input 2,3,224,224, or return (model, inputs)"
            )
        source = Source(text, lambda: model, model, inputs, None, True)  # what its own function loaded is trained
    if weights is not None:
        _load(source.model, weights)
        source = Source(source.name, source.make, source.model, source.inputs, source.task, True)
    return source


def _of_run(text: str, given: tuple[Tensor, ...]) -> Source:
    from edgeprune.engine.rundir import RunDir

    run = RunDir(text)
    task = run.task()
    return Source(text, task.make_model, run.model(None)[0], given or examples_of(task), task, True)


def _made_up(text: str) -> Tensor:
    """A random input of the shape in ``text``; zeros for integers, which are legal as indices of anything."""
    shape, _, kind = text.partition(":")
    try:
        sizes = [int(part) for part in shape.split(",")]
        dtype = {"": torch.float32, "float32": torch.float32, "int64": torch.int64}[kind]
    except (ValueError, KeyError):
        raise EdgePruneError(f"--input {text!r}: write a shape such as 2,3,224,224, or 2,128:int64") from None
    if min(sizes) < 1 or math.prod(sizes) > MOST_ELEMENTS:
        raise EdgePruneError(f"--input {text!r}: every size is at least 1, and all together a batch that fits memory")
    generator = torch.Generator().manual_seed(0)
    return torch.zeros(sizes, dtype=dtype) if kind == "int64" else torch.randn(sizes, generator=generator)


def _load(model: nn.Module, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except OSError as error:
        raise EdgePruneError(f"--weights {path}: cannot be read ({error.strerror or error}); check the path") from None
    except safetensors.SafetensorError:
        raise EdgePruneError(
            f"--weights {path}: is not a safetensors file; write one with safetensors.torch.save_file"
        ) from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise EdgePruneError(f"--weights {path}: {lines[min(1, len(lines) - 1)]}") from None
