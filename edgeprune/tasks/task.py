"""What is learnt: a model's factory, its data set, its loss, and how it is trained; found by name."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from edgeprune.data import DataSet
from edgeprune.errors import EdgePruneError, is_number, is_whole, nearest, raised, shown


def correct_top1(output: Tensor, target: Tensor) -> int:
    """How many rows of ``output`` [N, classes] have their maximum at ``target`` [N]."""
    return int((output.argmax(dim=1) == target).sum())


@dataclass(frozen=True)
class Task:
    """Everything the engine needs to know of a learning problem.

    ``make_model()`` draws initial weights from torch's global generator; ``example_inputs()`` are arguments of one
    forward pass with a batch of 2. ``dataset`` is a name that :func:`edgeprune.data.load` knows, or a function that
    returns a :class:`DataSet`; where it asks for an argument it is given the folder of ``--data``, or None.
    ``loss(output, target)`` is a scalar, the batch's mean. ``correct(output, target)`` counts right answers.
    """

    name: str
    dataset: str | Callable[..., DataSet]
    make_model: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Tensor, ...]]
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    correct: Callable[[Tensor, Tensor], int] = correct_top1

    def __post_init__(self) -> None:
        if not is_whole(self.batch_size) or self.batch_size < 1:
            raise EdgePruneError(f"task {self.name!r}: batch_size is {shown(self.batch_size)}; give 1 or more")
        for key, least in (("lr", "more than 0"), ("momentum", "0 or more"), ("weight_decay", "0 or more")):
            value = getattr(self, key)
            if not (is_number(value) and math.isfinite(value) and (value > 0 or (value == 0 and key != "lr"))):
                raise EdgePruneError(f"task {self.name!r}: {key} is {shown(value)}; give {least}")

    def load_data(self, data_dir: str | Path | None = None) -> DataSet:
        """The task's data, looked for in ``data_dir`` first."""
        from edgeprune import data

        if isinstance(self.dataset, str):
            return data.load(self.dataset, data_dir)
        try:
            folder = None if data_dir is None else Path(data_dir)
            loaded = self.dataset(folder) if _takes_folder(self.dataset) else self.dataset()
        except EdgePruneError:
            raise
        except Exception as error:
            raise EdgePruneError(f"task {self.name!r}: its data cannot be loaded ({raised(error)})") from error
        if not isinstance(loaded, DataSet):
            raise EdgePruneError(f"task {self.name!r}: dataset returned {type(loaded).__name__}, not a DataSet")
        return loaded


def _takes_folder(function: Callable[..., Any]) -> bool:
    """Whether ``function`` cannot be called without an argument."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # one of another language
        pass
    return False


def get(name: str) -> Task:
    """The built-in task ``name``, or what ``"package.module:function"`` returns.

    A user's module is imported with the working directory on the path. Raises :class:`EdgePruneError`.
    """
    from edgeprune.tasks.builtin import TASKS

    if ":" in name:
        return _users(name)
    if name not in TASKS:
        raise EdgePruneError(
            f"task.name: unknown task {name!r}{nearest(name, TASKS)}; your own is written 'package.module:function'"
        )
    return TASKS[name]()


def _users(name: str) -> Task:
    """The task that a user's ``"package.module:function"`` returns; whatever goes wrong there is one sentence."""
    task = call(name, "task.name")
    if not isinstance(task, Task):
        raise EdgePruneError(f"task.name {name!r}: it returned {type(task).__name__}, not an edgeprune.tasks.Task")
    return task


def call(name: str, what: str) -> Any:
    """What a user's ``"package.module:function"`` returns; ``what`` names the setting in the sentence of an error.

    The module is imported with the working directory on the path.
    """
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise EdgePruneError(f"{what} {name!r}: write it as 'package.module:function', dots and no slashes")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise EdgePruneError(
            f"{what} {name!r}: cannot import {module_name!r} ({error}); run beside it, or install it"
        ) from None
    except Exception as error:
        raise EdgePruneError(f"{what} {name!r}: importing it failed ({type(error).__name__}: {error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module_name
        ]
        raise EdgePruneError(
            f"{what} {name!r}: {module_name} has no function {function_name!r}{nearest(function_name, functions)}"
        )
    try:
        return function()
    except EdgePruneError:
        raise
    except Exception as error:
        raise EdgePruneError(f"{what} {name!r}: it raised {type(error).__name__}: {error}") from error


def right_answers(task: Task, output: Any, target: Tensor) -> int:
    """What the task's ``correct`` counts; EdgePruneError where that is no count of right answers."""
    counted: Any = task.correct(output, target)
    count = counted.item() if isinstance(counted, Tensor) and counted.numel() == 1 else counted
    if not is_number(count) or not 0 <= count <= target.numel() or count != int(count):
        raise EdgePruneError(
            f"task {task.name!r}: correct gave {shown(count)} for {target.numel()} targets; return how many of them "
            "are answered right, not a share"
        )
    return int(count)


def made(task: Task) -> nn.Module:
    """A fresh model of ``task``; EdgePruneError where there is none."""
    model = _called(task, "model", task.make_model)
    if not isinstance(model, nn.Module):
        raise EdgePruneError(f"task {task.name!r}: make_model returned {type(model).__name__}, not a torch.nn.Module")
    return model


def initial_model(task: Task, seed: int) -> nn.Module:
    """The model that every node of a run begins with, and that a run's judge and reader fill."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made(task)


def examples_of(task: Task) -> tuple[Tensor, ...]:
    """The task's example inputs; EdgePruneError where there are none."""
    inputs = _called(task, "example inputs", task.example_inputs)
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def _called(task: Task, what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except EdgePruneError:
        raise
    except Exception as error:
        raise EdgePruneError(f"task {task.name!r}: its {what} cannot be made ({raised(error)})") from error


def evaluate(model: nn.Module, data: DataSet, task: Task, batch: int = 500) -> tuple[float, float]:
    """(accuracy, mean loss) of ``model`` on the test split, on the device it is on. The model is left in eval mode.

    Accuracy is right answers over targets: for text every character is one.
    """
    return evaluate_by_class(model, data, task, batch)[:2]


@torch.inference_mode()
def evaluate_by_class(
    model: nn.Module, data: DataSet, task: Task, batch: int = 500
) -> tuple[float, float, list[float] | None]:
    """As :func:`evaluate`, and the accuracy on each class's test samples (nan for a class without any); None where a
    sample has more than one target."""
    model.eval()
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    right, loss, total = 0, 0.0, len(data.test)
    classes = len(data.classes) if data.test.y.dim() == 1 else 0
    found = [0] * classes
    for start in range(0, total, batch):
        # A copy: what normalises or computes in place would change the test data themselves.
        x = data.normalise(data.test.x[start : start + batch].to(device, copy=True))
        y = data.test.y[start : start + batch].to(device)
        output = model(x)
        right += right_answers(task, output, y)
        loss += float(task.loss(output, y)) * len(y)
        for label in range(classes):
            inside = y == label
            if bool(inside.any()):
                found[label] += right_answers(task, _of_samples(output, inside), y[inside])
    count = torch.bincount(data.test.y, minlength=classes).tolist() if classes else []
    by_class = [each / n if n else math.nan for each, n in zip(found, count, strict=True)] if classes else None
    return right / data.test.y.numel(), loss / total, by_class


def _of_samples(output: Any, chosen: Tensor) -> Any:
    """The part of a batch's output, a tensor or a structure of them, that belongs to the ``chosen`` samples."""
    return pytree.tree_map_only(Tensor, lambda t: t[chosen] if t.shape[:1] == chosen.shape else t, output)
