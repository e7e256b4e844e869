"""``edgeprune prune``: a model cut down to a budget, as a folder that loads without pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.bench.options import Finite
from edgeprune.bench.tables import show
from edgeprune.destination import check_destination, write_text
from edgeprune.errors import EdgePruneError

if TYPE_CHECKING:
    from edgeprune.cli.source import Source
    from edgeprune.pruning import ChannelGraph, Costs, Submodel

TAYLOR_BATCHES = 8


@click.command(name="prune")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--keep", type=Finite(0, 1, min_open=True), help="Share of the channels to keep; 0.5 when there is no --budget."
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="UNIT=LIMIT",
    help="channels, macs, parameters or bytes (up to 1: a share), or ms. One for each unit; all must hold.",
)
@click.option(
    "--latency",
    type=click.Path(path_type=Path),
    help="Measured times for ms: a device's profile or a table of layers; measured here and written if not there.",
)
@click.option(
    "--importance", default="l2", show_default=True, metavar="l1|l2|bn|taylor", help="What a channel is worth."
)
@click.option("--scope", default="layer", show_default=True, metavar="layer|global|cost", help="How widths are found.")
@click.option("--price", metavar="UNIT", help="With --scope cost: what widths should save; the budget's first unit.")
@click.option("--order", type=click.Path(path_type=Path), help="A frozen ranking: nested plans. Written if not there.")
@click.option("--round-to", type=click.IntRange(1), default=1, show_default=True, help="Widths in such multiples.")
@click.option("--min-channels", type=click.IntRange(1), default=1, show_default=True, help="In every group.")
@click.option("--min-keep", type=Finite(0, 1), default=0.0, help="Share of every group's channels.")
@click.option("--protect", multiple=True, metavar="NAME", help="A layer, or a pattern such as 'head.*', left whole.")
@click.option(
    "--input", "shapes", multiple=True, metavar="SHAPE", help="Of a plain module: 2,3,224,224 or 2,128:int64."
)
@click.option("--weights", type=click.Path(path_type=Path), help="The full model's state dict as safetensors.")
@click.option("--data", "data_dir", metavar="DIR", help="Where a task's data are, for taylor and accuracy.")
def command(model: str, output: Path, **options: Any) -> None:
    """Write a physically smaller MODEL to a new folder.

    MODEL is a user's module:function (which returns a module, a pair of it and its inputs, or a task), a built-in task,
    or the folder of a run. The folder holds model.safetensors and plan.json; edgeprune.load reads it.
    """
    from edgeprune.cli.source import open_source
    from edgeprune.pruning import Costs, files

    try:
        output.lstat()
    except (FileNotFoundError, NotADirectoryError):
        check_destination(output, "prune")
    except OSError as error:
        raise EdgePruneError(f"-o {str(output)!r}: cannot name a folder ({error.strerror}); choose another") from None
    else:
        raise EdgePruneError(f"{output}: is there already; name a new folder")
    source = open_source(model, options["shapes"], options["weights"])
    graph, costs, sub = _prune(source, **options)
    units = ["channels", "parameters", "macs", "bytes", *(["ms"] if costs.latency else [])]
    figures = {u: (costs(u, graph.map.groups), costs(u, sub.plan.counts)) for u in units}
    about = {"importance": options["importance"], "scope": options["scope"], "kept": sub.plan.counts}
    data = _data(source, options["data_dir"])
    accuracies = [_accuracy(m, source, data) for m in (source.model, sub.model)] if data is not None else []
    if accuracies:
        about["accuracy"] = accuracies[1]
    files.save(sub.model, sub.plan, output, {**about, **{u: small for u, (_, small) in figures.items() if u != "ms"}})
    assert isinstance(costs, Costs)
    _show(output, source, graph, figures, accuracies)


def _prune(
    source: Source,
    *,
    keep: float | None,
    budgets: tuple[str, ...],
    latency: Path | None,
    importance: str,
    order: Path | None,
    protect: tuple[str, ...],
    data_dir: str | None,
    shapes: tuple[str, ...],
    weights: Path | None,
    **choice: Any,
) -> tuple[ChannelGraph, Costs, Submodel]:
    from torch.nn import functional

    from edgeprune.pruning import ChannelGraph, Costs, Ranking, prune, ranking, scores

    if keep is not None and budgets:
        raise EdgePruneError("prune: --keep and --budget are two ways to say it; give one")
    names = [name for name, _ in source.model.named_modules() if name]
    whole = [f"{name}.*" if name in names else name for name in protect]
    graph = ChannelGraph.trace(source.model, source.inputs, whole=whole)
    times = None if latency is None else _times(latency, source, graph)
    batches = _batches(source, data_dir) if importance == "taylor" else None
    loss = functional.cross_entropy if source.task is None else source.task.loss
    frozen: Ranking | None = None
    if order is not None:
        frozen = _order(order, graph, lambda: ranking(graph, scores(source.model, graph, importance, batches, loss)))
    sub = prune(
        source.model,
        source.inputs,
        0.5 if keep is None else keep,
        importance,
        budget=_limits(budgets),
        latency=times,
        order=frozen,
        batches=batches,
        graph=graph,
        loss=loss,
        **choice,
    )
    return graph, Costs(source.model, graph, times), sub


def _limits(budgets: tuple[str, ...]) -> dict[str, float] | None:
    limits: dict[str, float] = {}
    for text in budgets:
        unit, _, limit = text.partition("=")
        if unit in limits:
            raise EdgePruneError(f"--budget {text!r}: {unit} has a limit already; give one for each unit")
        try:
            limits[unit] = float(limit)
        except ValueError:
            raise EdgePruneError(f"--budget {text!r}: write UNIT=LIMIT, such as macs=0.5 or ms=8") from None
    return limits or None


def _times(path: Path, source: Source, graph: ChannelGraph) -> Any:
    """Milliseconds by the file; where there is none, by a table of layers measured now, which is written there."""
    from rich.console import Console

    from edgeprune.export.layer_clock import measure_layers
    from edgeprune.export.layer_times import read_latency

    if os.path.exists(path):
        return read_latency(path, graph)
    check_destination(path, "--latency")
    console = Console(highlight=False)
    table = measure_layers(source.model, graph, source.inputs, say=lambda text: console.print(text, style="dim"))
    write_text(path, table.to_json(), "--latency")
    return table.latency(graph)


def _order(path: Path, graph: ChannelGraph, rank: Any) -> Any:
    from edgeprune.pruning import Ranking

    try:
        text = path.read_text(encoding="utf-8") if path.exists() else None
        if text is None:
            check_destination(path, "--order")
            found = rank()
            write_text(path, found.to_json(), "--order")
            return found
    except (OSError, UnicodeDecodeError) as error:
        raise EdgePruneError(f"--order {path}: cannot be read or written ({error})") from None
    try:
        return Ranking.from_json(text, graph)
    except EdgePruneError as error:
        raise EdgePruneError(f"--order {path}: {error}") from None


def _data(source: Source, data_dir: str | None) -> Any:
    """The task's data where there is a task, its weights are worth a test, and the data are on this machine."""
    if source.task is None or not source.trained:
        return None
    try:
        return source.task.load_data(data_dir)
    except EdgePruneError:
        if data_dir is not None:
            raise
        return None


def _batches(source: Source, data_dir: str | None) -> list[tuple[Any, Any]]:
    import torch

    if source.task is None:
        raise EdgePruneError("--importance taylor needs data: give a run or a task as MODEL, or call edgeprune.prune")
    data, size = source.task.load_data(data_dir), source.task.batch_size
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    parts = [order[i * size : (i + 1) * size] for i in range(TAYLOR_BATCHES)]
    return [(data.normalise(data.train.x[part]), data.train.y[part]) for part in parts if len(part)]


def _accuracy(model: Any, source: Source, data: Any) -> float:
    from edgeprune.tasks import evaluate

    assert source.task is not None
    return evaluate(model, data, source.task)[0]


def _show(
    output: Path,
    source: Source,
    graph: ChannelGraph,
    figures: dict[str, tuple[float, float]],
    accuracies: list[float],
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "whole model", "pruned", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    titles = {"macs": "multiply-adds, one input", "channels": "prunable channels", "ms": "milliseconds, by its table"}
    for unit, (whole, small) in figures.items():
        shown = [f"{v:,.3f}" if unit == "ms" else f"{v:,.0f}" for v in (whole, small)]
        table.add_row(titles.get(unit, unit), *shown, f"{whole / small:.2f}x" if small else "")
    if accuracies:
        table.add_row("accuracy, not trained further", *(f"{a:.2%}" for a in accuracies))
    console = Console(highlight=False)
    show(table)
    for note in graph.notes[:12]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if not source.trained:
        console.print(f"{source.name}: its weights are random; prune a run, or add --weights", soft_wrap=True)
    console.print(f"wrote {output}", markup=False, soft_wrap=True)
