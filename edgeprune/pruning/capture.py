"""Capturing a model as the ATen graph of torch.export, in both modes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgeprune.errors import EdgePruneError
from edgeprune.pruning.atoms import Layout
from edgeprune.pruning.axes import Axis


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
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise EdgePruneError(
        f"torch.export cannot capture {type(model).__name__} in {mode} mode: {first.rstrip('.')}; "
        "write its forward without control flow that depends on values"
    ) from error


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


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def batch_size(inputs: tuple[Any, ...]) -> int:
    sizes = [x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim()]
    return max(1, sizes[0]) if sizes else 1
