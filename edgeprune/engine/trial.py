"""A task tried on a few of its own samples before a run begins: whether data, model and loss fit one another."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeprune.algorithms.training import LocalData
from edgeprune.data import DataSet, Split
from edgeprune.errors import EdgePruneError, raised
from edgeprune.nn.copying import copied
from edgeprune.tasks import Task
from edgeprune.tasks.task import right_answers


def try_task(task: Task, model: nn.Module, data: DataSet) -> None:
    """EdgePruneError where ``data`` cannot be trained and evaluated with; ``model`` stays as it is."""
    for what, split in (("training", data.train), ("test", data.test)):
        try_split(task, model, data, split, what)


def try_split(task: Task, model: nn.Module, data: DataSet, split: Split, what: str) -> None:
    """The same for one split, called ``what``: its labels, and the samples with the smallest and the largest."""
    if not len(split):
        raise EdgePruneError(f"task {task.name!r}: its data set has no {what} samples; give it some")
    flat, classes = split.y.flatten(1) if split.y.dim() > 1 else split.y[:, None], len(data.classes)
    if classes and split.y.dim() == 1 and not 0 <= int(flat.min()) <= int(flat.max()) < classes:
        raise EdgePruneError(
            f"task {task.name!r}: its {what} labels go from {int(flat.min())} to {int(flat.max())}, and its "
            f"{classes} classes from 0 to {classes - 1}; name every class, or mend the labels"
        )
    rows = torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()])
    x, y = split.x[rows], split.y[rows]
    tried = copied(f"task {task.name!r}", model).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output = tried(data.normalise(x))
            float(task.loss(output, y))
            right_answers(task, output, y)
            if what == "training":
                with torch.enable_grad():
                    task.loss(tried(data.normalise(x)), y).backward()
        except EdgePruneError:
            raise
        except Exception as error:
            raise EdgePruneError(
                f"task {task.name!r}: model, loss or right answers do not fit its {what} samples ({raised(error)})"
            ) from error
        spoiled = _not_finite(split.x)
        if spoiled is not None and not _finite_loss(task, tried, data, split, spoiled):
            raise EdgePruneError(
                f"task {task.name!r}: its {what} sample {spoiled} holds NaN or infinity, and so does the loss on it; "
                "leave such samples out, or replace those values"
            )


def _not_finite(x: Tensor) -> int | None:
    """The first sample that holds NaN or infinity."""
    start = 0
    for part in x.split(1024) if x.is_floating_point() else ():
        finite = part.reshape(len(part), -1).isfinite().all(1)
        if not bool(finite.all()):
            return start + int(finite.logical_not().nonzero()[0])
        start += len(part)
    return None


def _finite_loss(task: Task, model: nn.Module, data: DataSet, split: Split, sample: int) -> bool:
    rows = torch.tensor([sample])
    return math.isfinite(float(task.loss(model(data.normalise(split.x[rows])), split.y[rows])))


def try_alone(model: nn.Module, local: Mapping[str, LocalData], batch_size: int = 0) -> None:
    """EdgePruneError where a device has one sample only, or batches are of one, and ``model`` cannot be trained on that
    (batch-norm of vectors has no variance there)."""
    alone = next((client for client, part in local.items() if batch_size == 1 or len(part) == 1), None)
    if alone is None:
        return
    tried, part = copied(alone, model).train(), local[alone]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            tried(part.normalise(part.x[:1]))
        except Exception as error:
            what, remedy = ("it has one training sample", "give each device two or more")
            if batch_size == 1:
                what, remedy = "its batches are of one sample", "set algorithm.batch_size to 2 or more"
            raise EdgePruneError(
                f"{alone}: {what}, with which the model cannot be trained ({raised(error)}); {remedy}"
            ) from error
