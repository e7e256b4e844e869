"""``edgeprune export``: a run's model, one device's part of it, or a user's own, as an ONNX file that was checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.bench.tables import show
from edgeprune.destination import check_destination, staged
from edgeprune.errors import EdgePruneError
from edgeprune.export.targets import DEFAULT_TARGET, PRECISIONS, TARGETS

HINT_BELOW = 0.01  # accuracy lost against the whole model from which --recalibrate is worth a line

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.export.of_run import RunExport, Side


@click.command(name="export")
@click.argument("source", metavar="RUN_DIR|MODEL")
@click.option(
    "--client", metavar="ID", help="Export the smaller model this device ended with (default: the whole one)."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--target",
    metavar="|".join(sorted(TARGETS)),
    default=DEFAULT_TARGET,
    show_default=True,
    help="Whose runtimes must read it: jetpack5 and jetpack6 give opset 17 / IR 8, jetpack7 opset 18 / IR 10.",
)
@click.option(
    "--precision",
    metavar="|".join(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Inside the file; inputs and outputs stay fp32. int8 is calibrated on the task's training data.",
)
@click.option(
    "--recalibrate",
    is_flag=True,
    help="Estimate batch-norm statistics anew on the task's training data; a sub-model inherits the merged ones.",
)
@click.option(
    "--batch", type=click.IntRange(1, 4096), help="The file takes exactly so many rows (default: any number)."
)
@click.option("--data", "data_dir", metavar="DIR", help="Where the task's data are, for a comparison on real inputs.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="For the latency figures.")
@click.option("--pruned", type=click.Path(path_type=Path), help="Of a MODEL: the folder that 'edgeprune prune' wrote.")
@click.option(
    "--input", "shapes", multiple=True, metavar="SHAPE", help="Of a plain module: 2,3,224,224 or 2,128:int64."
)
@click.option("--calibration", type=click.Path(path_type=Path), help="Of a MODEL in int8: real inputs, x in an .npz.")
def command(
    source: str,
    client: str | None,
    output: Path,
    target: str,
    precision: str,
    recalibrate: bool,
    batch: int | None,
    data_dir: str | None,
    threads: int,
    pruned: Path | None,
    shapes: tuple[str, ...],
    calibration: Path | None,
) -> None:
    """Write the model of RUN_DIR, or a MODEL (module:function or a built-in task), as ONNX; show that it computes the
    same.

    The file is re-opened, checked, and compared with torch at batches 1, 2 and 7 (or --batch) before it gets its name.
    """
    from rich.console import Console

    from edgeprune.export.of_run import export_run
    from edgeprune.tasks.builtin import TASKS

    if not os.path.isdir(source) and (":" in source or source in TASKS):
        if client is not None or recalibrate:
            raise EdgePruneError(f"export: --client and --recalibrate are for runs; {source} is a model")
        _of_model(source, output, target, precision, batch, pruned, shapes, calibration)
        return
    if pruned is not None and (Path(source) / "config.toml").is_file():
        raise EdgePruneError(f"export: --pruned goes with the run's task; write {_of_task(source, pruned, output)}")
    if pruned is not None or shapes or calibration is not None:
        raise EdgePruneError(
            "export: --pruned, --input and --calibration are for a MODEL (module:function or a task), not a run"
        )
    done = export_run(
        Path(source),
        output,
        client=client,
        target=target,
        precision=precision,
        recalibrate=recalibrate,
        batch=batch,
        data_dir=data_dir,
        threads=threads,
    )
    console = Console()
    show(_table(done))
    for line in _lines(done):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _of_task(run: str, pruned: Path, output: Path) -> str:
    """The command for a pruned form of the run's model."""
    from edgeprune.engine import load_experiment

    task = load_experiment(Path(run) / "config.toml").task.name
    return shlex.join(["edgeprune", "export", task, "--pruned", str(pruned), "-o", str(output)])


def _of_model(
    name: str,
    output: Path,
    target: str,
    precision: str,
    batch: int | None,
    pruned: Path | None,
    shapes: tuple[str, ...],
    calibration: Path | None,
) -> None:
    """A user's model, or its pruned form, compared on random inputs, or on those it was calibrated with."""
    from edgeprune.cli.source import open_source
    from edgeprune.export import check_parity, export_onnx
    from edgeprune.export.infer import read_rows
    from edgeprune.export.targets import get
    from edgeprune.pruning import files

    get(target)
    check_destination(output, "export")
    found = open_source(name, shapes)
    model, details = found.model, {}
    if pruned is not None:
        model, plan = files.load(pruned, found.model)
        details = {"method": "prune", "plan": plan.id, "kept_channels": plan.counts, "retention": plan.retention}
        accuracy = files.describe(pruned).get("accuracy")
        if isinstance(accuracy, float) and precision == "fp32":
            details["accuracy"] = accuracy
    rows = None if calibration is None else read_rows(calibration)[0]
    if rows is not None and not rows.is_floating_point():
        raise EdgePruneError(f"{calibration}: x is {rows.dtype}; give float32 rows, ready for the network")
    if rows is not None and (not len(rows) or rows.shape[1:] != found.inputs[0].shape[1:]):
        raise EdgePruneError(
            f"{calibration}: x holds {len(rows)} rows of shape {tuple(rows.shape[1:])}; give at least one of shape "
            f"{tuple(found.inputs[0].shape[1:])}, as the model takes them"
        )
    with staged(output, "export") as draft:
        done = export_onnx(model, found.inputs, draft, target, details, precision, rows, batch=batch)
        inputs = found.inputs if rows is None else (rows,)
        parity = check_parity(model, draft, inputs, real=rows is not None, precision=precision)
    click.echo(
        f"agrees with torch on {parity.rows} rows of {'real' if parity.real_inputs else 'random'} inputs: largest "
        f"difference {parity.max_abs_diff:.2g}, relative error {parity.relative_error:.2g}"
    )
    if pruned is None and not found.trained:
        click.echo(f"{name}: its weights are random; export a run, or add --pruned")
    click.echo(
        f"wrote {output} for {done.target} (opset {done.opset}, IR {done.ir_version}, {precision}), "
        f"{done.size_bytes / 1e3:,.1f} KB"
    )


def _table(done: RunExport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("whole model", justify="right")
    if done.part is not None:
        table.add_column(escape(str(done.client)), justify="right")
        table.add_column("ratio", justify="right")

    def row(name: str, value: Callable[[Side], float], show: str) -> None:
        cells = [format(value(done.whole), show)]
        if done.part is not None:
            small = value(done.part)
            cells += [format(small, show), f"{value(done.whole) / small:.2f}x" if small else ""]
        table.add_row(name, *cells)

    threads = f"{done.threads} thread" + ("s" if done.threads > 1 else "")
    row("parameters", lambda side: side.parameters, ",d")
    row("multiply-adds, one input", lambda side: side.macs, ",d")
    row("file size, KB", lambda side: side.size_bytes / 1e3, ",.1f")
    row(f"ONNX Runtime, batch {done.file.batch or 1}, {threads}, ms", lambda side: side.latency_s * 1e3, ".3f")
    if done.whole.accuracy is not None:
        found = [side.accuracy for side in (done.whole, done.part) if side is not None and side.accuracy is not None]
        table.add_row(f"accuracy, {done.accuracy_rows:,} test rows", *(f"{value:.2%}" for value in found))
    return table


def _lines(done: RunExport) -> list[str]:
    parity, file = done.parity, done.file
    source = done.data_note if parity.real_inputs else "random inputs"
    agreement = "" if parity.argmax_agreement is None else f", same class for {parity.argmax_agreement:.1%}"
    batches = ", ".join(map(str, parity.batches)) + (" and larger" if parity.rows > sum(parity.batches) else "")
    sizes = f"batches {batches}" if file.batch is None else f"in batches of {file.batch}"
    lines = [
        f"agrees with torch on {parity.rows} rows of {source}, {sizes}: "
        f"largest difference {parity.max_abs_diff:.2g}{agreement}"
    ]
    if done.precision != "fp32":
        lines[0] = lines[0].replace("agrees with torch", f"{done.precision} against fp32 in torch", 1)
        lines[0] += f", relative error {parity.relative_error:.2g}"
    if done.file_accuracy is not None:
        lines.append(f"accuracy of the {done.precision} file itself: {done.file_accuracy:.2%}")
    if not parity.real_inputs:
        lines.append(f"no real inputs: {done.data_note}")
    if done.has_statistics and not done.recalibrated and _lost(done) > HINT_BELOW:
        lines.append("its batch-norm statistics are the merged model's; --recalibrate estimates its own")
    lines.append(f"wrote {file.path} for {file.target} (opset {file.opset}, IR {file.ir_version}, {done.precision})")
    return lines


def _lost(done: RunExport) -> float:
    """Accuracy of the whole model above that of the part; 0 where one of them is not known."""
    whole, part = done.whole.accuracy, done.part.accuracy if done.part else None
    return 0.0 if whole is None or part is None else whole - part
