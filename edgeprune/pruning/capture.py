"""Capturing a model as the ATen graph of torch.export, in both modes."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgeprune.errors import EdgePruneError
from edgeprune.pruning.atoms import Layout
from edgeprune.pruning.axes import Axis

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)


def export(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> tuple[Any, tuple[Any, ...]]:
    """The exported program and the inputs it was exported with (doubled where one sample is too few)."""
    model.train(training)
    error: Exception | None = None
    for args in (inputs, _doubled(inputs)):  # batch norm cannot train on one value per channel
        try:
            with torch.no_grad(), quiet():
                return torch.export.export(model, args, strict=False), args
        except Exception as e:
            error = error or e
    mode = "training" if training else "evaluation"
    name = type(model).__name__
    try:
        with torch.no_grad():
            model(*cloned(inputs))
    except Exception as e:
        raise EdgePruneError(
            f"the forward pass of {name} fails on the example inputs in {mode} mode: {sentence(e)}; give a tuple of "
            "the inputs that it takes, of any batch size"
        ) from error
    assert error is not None
    if isinstance(error, OSError):  # the machine's, not the model's
        raise EdgePruneError(
            f"torch.export cannot work here: {sentence(error)}; it needs a folder for temporary files (TMPDIR)"
        ) from error
    raise EdgePruneError(
        f"torch.export cannot capture {name} in {mode} mode: {sentence(error)}; write its forward without control flow "
        "that depends on values"
    ) from error


def sentence(error: Exception) -> str:
    """The first line of the error and the user's own line that raised it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.rstrip(" .:;").removesuffix(", but expected one of")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, _HERE)):
            return f"{text} ({Path(frame.filename).name}:{frame.lineno})"
    return text


@dataclass
class Walk:
    """One exported program and what its walk found: ``normed`` are norms that take statistics over channels that may
    go, with the layout and shape of their input; ``axes`` the same as axes; ``random``: it draws random numbers."""

    program: Any
    normed: dict[Node, tuple[Layout, tuple[int, ...]]]
    random: bool
    axes: dict[Node, tuple[Axis, ...]] = field(default_factory=dict)


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Without torch's fused evaluation path of nn.TransformerEncoderLayer, one operation that hides a whole layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log and no dump of torch's tracer: what matters of a failure is in its exception, and stderr is the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _doubled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() else x for x in inputs)


def cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs for a forward that may change them in place."""
    return tuple(pytree.tree_map_only(Tensor, torch.clone, x) for x in inputs)


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def batch_size(inputs: tuple[Any, ...]) -> int:
    """The first dimension of the first tensor that is more than a row of numbers, else of the first tensor."""
    found = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    batched = [x for x in found if x.dim() > 1] or found
    return max(1, batched[0].shape[0]) if batched else 1
