"""A batch of random samples for a task: the time of dense layers does not depend on values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError, raised
from edgeprune.tasks import Task
from edgeprune.tasks.task import examples_of, made


def made_up(task: Task, size: int, what: str, remedy: str) -> tuple[Tensor, Tensor]:
    """(inputs, class numbers); EdgePruneError, which begins with ``what``, where the task is of another kind."""
    example = examples_of(task)
    if len(example) != 1 or not example[0].is_floating_point():
        raise EdgePruneError(f"{what}: the inputs of {task.name!r} cannot be made up; {remedy}")
    x = torch.randn(size, *example[0].shape[1:], generator=torch.Generator().manual_seed(0)).to(example[0].dtype)
    model = made(task).eval()
    try:
        with torch.no_grad():
            y = torch.arange(size) % model(x).shape[-1]
            float(task.loss(model(x), y))
    except Exception as error:
        raise EdgePruneError(
            f"{what}: the answers of {task.name!r} cannot be made up ({raised(error)}); {remedy}"
        ) from error
    return x, y


def check_batch(task: Task, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """EdgePruneError where the task's own samples do not fit its model or loss."""
    try:
        with torch.no_grad():
            float(task.loss(model.eval()(x), y))
    except Exception as error:
        raise EdgePruneError(
            f"task {task.name!r}: model or loss do not fit its training samples ({raised(error)})"
        ) from error
