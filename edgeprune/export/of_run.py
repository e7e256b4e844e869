"""The model a run left behind, whole or one device's part of it, as a checked file with its figures."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.export import targets
from edgeprune.export.latency import median_latencies
from edgeprune.export.onnx import Exported, check_destination, export_onnx, staged
from edgeprune.export.parity import Parity, check_parity

PARITY_ROWS = 256
ACCURACY_ROWS = 2000


@dataclass(frozen=True)
class Side:
    """One model of the comparison. ``accuracy`` over ``accuracy_rows`` test rows, None where the data are not here."""

    parameters: int
    macs: int
    size_bytes: int
    latency_s: float
    accuracy: float | None


@dataclass(frozen=True)
class RunExport:
    """What was exported and how it compares. ``part`` is None when the whole model was exported."""

    file: Exported
    parity: Parity
    client: str | None
    whole: Side
    part: Side | None
    threads: int
    accuracy_rows: int
    data_note: str


def export_run(
    run_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    client: str | None = None,
    target: str = targets.DEFAULT_TARGET,
    data_dir: str | None = None,
    threads: int = 1,
    seconds: float = 0.5,
) -> RunExport:
    """Export the global model of ``run_dir``, or the sub-model that ``client`` ended with, to ``path``.

    The file must agree with torch (``check_parity``), on rows of the task's test set when they are on this machine,
    before it gets its name. ``threads`` and ``seconds`` (per model) are for the latency figures only.
    Raises EdgePruneError: not a run directory, unknown client, and all that ``export_onnx`` and ``check_parity`` raise.
    """
    targets.get(target)
    check_destination(Path(path))
    run = _open(run_dir)
    known = run.clients()
    if client is not None and client not in known:
        shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        close = nearest(client, known).split(";")[-1].strip() if known else ""
        hint = f"; {close}" if close.startswith("did") else ""
        raise EdgePruneError(f"export: the run has no client {client!r}; it has {shown or 'none'}{hint}")
    task = run.task()
    test = _test_set(task, data_dir)
    examples = task.example_inputs()

    whole, _ = run.model(None)
    model, plan = run.model(client) if client is not None else (whole, None)
    accuracy = _accuracy(model, task, test)
    details = _describe(run, plan, accuracy, test)
    destination = Path(path)
    with staged(destination) as draft, tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        file = export_onnx(model, examples, draft, target=target, metadata=details)
        if test.rows is None:
            parity = check_parity(model, draft, examples)
        else:
            parity = check_parity(model, draft, test.rows[:PARITY_ROWS], real=True)
        files = [draft]
        if client is not None:
            files.append(export_onnx(whole, examples, Path(scratch) / "whole.onnx", target=target).path)
        latencies = median_latencies(
            files, examples if test.rows is None else test.rows, threads=threads, seconds=seconds
        )
        sizes = [p.stat().st_size for p in files]
        os.replace(draft, destination)

    exported = _side(model, examples, sizes[0], latencies[0], accuracy)
    part = None
    if client is not None:
        part = exported
        exported = _side(whole, examples, sizes[1], latencies[1], _accuracy(whole, task, test))
    return RunExport(
        file=Exported(**{**vars(file), "path": destination}),
        parity=parity,
        client=client,
        whole=exported,
        part=part,
        threads=threads,
        accuracy_rows=0 if test.rows is None else len(test.rows),
        data_note=test.note,
    )


def _open(run_dir: str | os.PathLike[str]) -> Any:
    from edgeprune.engine.rundir import RunDir

    return RunDir(Path(run_dir))


@dataclass(frozen=True)
class _TestSet:
    """float32 [N, ...], int64 [N]; both None when the data are not on this machine, and ``note`` says why."""

    rows: Tensor | None
    labels: Tensor | None
    classes: tuple[str, ...]
    note: str


def _test_set(task: Any, data_dir: str | None) -> _TestSet:
    from edgeprune import data

    try:
        dataset = data.load(task.dataset, data_dir)
    except EdgePruneError as error:
        return _TestSet(None, None, (), str(error))
    rows = dataset.normalise(dataset.test.x[:ACCURACY_ROWS])
    return _TestSet(rows, dataset.test.y[:ACCURACY_ROWS], tuple(dataset.classes), f"the test set of {dataset.name}")


def _accuracy(model: nn.Module, task: Any, test: _TestSet) -> float | None:
    """Share of correct answers in eval mode; the model's training flags are put back."""
    rows, labels = test.rows, test.labels
    if rows is None or labels is None:
        return None
    return in_eval(model, lambda: _share_correct(model, task.correct, rows, labels))


def in_eval(model: nn.Module, work: Callable[[], Any]) -> Any:
    """The result of ``work`` with every module of ``model`` in eval mode while it runs."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return work()
    finally:
        for module, flag in flags:
            module.training = flag


def _share_correct(model: nn.Module, correct: Callable[[Tensor, Tensor], int], rows: Tensor, labels: Tensor) -> float:
    hits = sum(int(correct(model(x), y)) for x, y in zip(rows.split(256), labels.split(256), strict=True))
    return hits / max(1, labels.numel())


def _side(model: nn.Module, examples: tuple[Tensor, ...], size: int, latency: float, accuracy: float | None) -> Side:
    from edgeprune.pruning import cost

    macs = in_eval(model, lambda: cost.macs(model, examples))
    return Side(sum(p.numel() for p in model.parameters()), int(macs), size, latency, accuracy)


def _describe(run: Any, plan: Any, accuracy: float | None, test: _TestSet) -> Mapping[str, object]:
    """The file's own account of itself. The device's name stays out: it may be a person's."""
    config = run.config
    details: dict[str, object] = {
        "method": config["algorithm"]["name"],
        "task": config["task"]["name"],
        "precision": "fp32",
    }
    if test.classes:
        details["classes"] = list(test.classes)
    if plan is not None:
        details["retention"] = round(float(plan.retention), 6)
        details["plan"] = plan.id
        details["kept_channels"] = {group: len(kept) for group, kept in plan.kept.items()}
    if accuracy is not None and math.isfinite(accuracy):
        details["accuracy"] = round(accuracy, 6)
    return details
