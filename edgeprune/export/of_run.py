"""The model a run left behind, whole or one device's part of it, as a checked file with its figures."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.data.normalise import Standardise
from edgeprune.destination import check_destination, staged
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.export import targets
from edgeprune.export.as_model import FileModel
from edgeprune.export.latency import median_latencies
from edgeprune.export.onnx import Exported, annotate, export_onnx
from edgeprune.export.parity import Parity, check_parity
from edgeprune.export.precision import check_precision
from edgeprune.export.recalibrate import has_statistics, recalibrated
from edgeprune.tasks.task import examples_of

PARITY_ROWS = 256
CALIBRATION_ROWS = 256
RECALIBRATION_ROWS, RECALIBRATION_BATCH = 5000, 100


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
    """What was exported and how it compares. ``part`` is None when the whole model was exported. ``file_accuracy``:
    that of the file itself where it is not fp32."""

    file: Exported
    parity: Parity
    client: str | None
    whole: Side
    part: Side | None
    threads: int
    accuracy_rows: int
    data_note: str
    recalibrated: bool
    has_statistics: bool
    precision: str = "fp32"
    file_accuracy: float | None = None


def export_run(
    run_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    client: str | None = None,
    target: str = targets.DEFAULT_TARGET,
    precision: str = "fp32",
    recalibrate: bool = False,
    batch: int | None = None,
    data_dir: str | None = None,
    threads: int = 1,
    seconds: float = 0.5,
) -> RunExport:
    """Export the global model of ``run_dir``, or the sub-model that ``client`` ended with, to ``path``.

    The file must agree with torch (``check_parity``), on rows of the task's test set when they are on this machine,
    before it gets its name. ``recalibrate``: batch-norm statistics are estimated anew on the task's training data,
    which must be here; agreement and accuracy are then those of the recalibrated model.
    ``precision`` int8 needs the task's data too, CALIBRATION_ROWS of its training split; the accuracy in the metadata
    is then the file's own. ``batch``: the file takes exactly so many rows. ``threads`` and ``seconds`` (per model) are
    for the latency figures only.
    Raises EdgePruneError: not a run directory, unknown client, and all that ``export_onnx`` and ``check_parity`` raise.
    """
    targets.get(target)
    check_precision(precision)
    destination = check_destination(path, "export")
    run = _open(run_dir)
    known = _clients(run)
    if client is not None and client not in known:
        shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        close = nearest(client, known).split(";")[-1].strip() if known else ""
        hint = f"; {close}" if close.startswith("did") else ""
        raise EdgePruneError(f"export: the run has no client {client!r}; it has {shown or 'none'}{hint}")
    task = run.task()
    dataset, data_note = _load(task, data_dir)
    rows = None if dataset is None else dataset.normalise(dataset.test.x[:PARITY_ROWS].clone())
    examples = examples_of(task)

    whole, _ = run.model(None)
    model, plan = run.model(client) if client is not None else (whole, None)
    if recalibrate:
        if dataset is None:
            raise EdgePruneError(f"export: --recalibrate needs the task's training data: {data_note}")
        model = recalibrated(model, _training_batches(dataset))
        whole = recalibrated(whole, _training_batches(dataset)) if client is not None else model
    calibration = _calibration(dataset, data_note) if precision == "int8" else None
    accuracy = _accuracy(model, task, dataset)
    details = {**_describe(run, plan, accuracy, dataset), "recalibrated": recalibrate}
    with staged(destination, "export") as draft, tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
        form: dict[str, Any] = {"target": target, "precision": precision, "calibration": calibration, "batch": batch}
        file = export_onnx(model, examples, draft, metadata=details, **form)
        if rows is None:
            parity = check_parity(model, draft, examples, precision=precision)
        else:
            parity = check_parity(model, draft, rows, real=True, precision=precision)
        file_accuracy = None
        if precision != "fp32" and dataset is not None:
            like = in_eval(model, lambda: model(dataset.normalise(dataset.test.x[:1].clone())))
            file_accuracy = _accuracy(FileModel(draft, like), task, dataset)
            file = annotate(file, {"accuracy": round(file_accuracy or 0.0, 6)})
        files = [draft]
        if client is not None:
            files.append(export_onnx(whole, examples, Path(scratch) / "whole.onnx", **form).path)
        latencies = median_latencies(files, examples if rows is None else rows, threads=threads, seconds=seconds)
        sizes = [p.stat().st_size for p in files]

    exported = _side(model, examples, sizes[0], latencies[0], accuracy)
    part = None
    if client is not None:
        part = exported
        exported = _side(whole, examples, sizes[1], latencies[1], _accuracy(whole, task, dataset))
    return RunExport(
        file=Exported(**{**vars(file), "path": destination}),
        parity=parity,
        client=client,
        whole=exported,
        part=part,
        threads=threads,
        accuracy_rows=0 if dataset is None else len(dataset.test),
        data_note=data_note,
        recalibrated=recalibrate,
        has_statistics=has_statistics(model),
        precision=precision,
        file_accuracy=file_accuracy,
    )


def _open(run_dir: str | os.PathLike[str]) -> Any:
    from edgeprune.engine.rundir import RunDir

    return RunDir(Path(run_dir))


def _clients(run: Any) -> list[str]:
    try:
        known: list[str] = run.clients()
    except EdgePruneError as error:
        if str(error).startswith(str(run.path)):
            raise
        raise EdgePruneError(
            f"{run.path}: its checkpoint does not fit the task {run.config['task']['name']!r} of its config.toml "
            f"({error}); put back the config.toml that the run began with"
        ) from None
    return known


def _load(task: Any, data_dir: str | None) -> tuple[Any, str]:
    """(the task's data, where the rows are from), or (None, why they are not on this machine)."""
    try:
        dataset = task.load_data(data_dir)
    except EdgePruneError as error:
        return None, str(error)
    return dataset, f"the test set of {dataset.name}"


def _calibration(dataset: Any, data_note: str) -> Tensor:
    if dataset is None:
        raise EdgePruneError(f"export: int8 is calibrated on the task's training data: {data_note}")
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:CALIBRATION_ROWS]
    return dataset.normalise(dataset.train.x[order])


def _training_batches(dataset: Any) -> Iterator[Tensor]:
    """Inputs in an order drawn once, so that a file sorted by label does not give batches of one class."""
    size = min(RECALIBRATION_BATCH, len(dataset.train))
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    for start in range(0, min(len(order), RECALIBRATION_ROWS) - size + 1, size):
        yield dataset.normalise(dataset.train.x[order[start : start + size]])


def _accuracy(model: nn.Module, task: Any, dataset: Any) -> float | None:
    """Share of correct answers on the whole test set, None without data."""
    if dataset is None:
        return None
    from edgeprune.tasks import evaluate

    return float(in_eval(model, lambda: evaluate(model, dataset, task))[0])


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


def _side(model: nn.Module, examples: tuple[Tensor, ...], size: int, latency: float, accuracy: float | None) -> Side:
    from edgeprune.pruning import cost

    macs = in_eval(model, lambda: cost.macs(model, examples))
    return Side(sum(p.numel() for p in model.parameters()), int(macs), size, latency, accuracy)


def _describe(run: Any, plan: Any, accuracy: float | None, dataset: Any) -> Mapping[str, object]:
    """The file's own account of itself. The device's name stays out: it may be a person's."""
    config = run.config
    details: dict[str, object] = {
        "method": config["algorithm"]["name"],
        "task": config["task"]["name"],
    }
    if dataset is not None:
        details["dataset"] = dataset.name
        details["classes"] = list(dataset.classes)
        if type(dataset.normalise) is Standardise:  # plain numbers: input = (stored value / unit - mean) / std
            details["normalisation"] = asdict(dataset.normalise)
    if plan is not None:
        details["retention"] = round(float(plan.retention), 6)
        details["plan"] = plan.id
        details["kept_channels"] = {group: len(kept) for group, kept in plan.kept.items()}
    if accuracy is not None and math.isfinite(accuracy):
        details["accuracy"] = round(accuracy, 6)
    return details
