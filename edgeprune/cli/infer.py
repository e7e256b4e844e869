"""``edgeprune infer``: what an exported file answers, how often it is right, and how fast."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.destination import check_destination, write_text

if TYPE_CHECKING:
    from torch import Tensor


@click.command(name="infer")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="NAME|FILE.npz", help="A data set (its test split), or arrays x and y.")
@click.option("--data-dir", metavar="DIR", help="Where data sets are looked for first.")
@click.option("--limit", type=click.IntRange(1), help="Only so many rows from the start.")
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Unless the file takes one size only."
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the class of every row here, a line each.")
def command(
    file: Path, data: str, data_dir: str | None, limit: int | None, batch: int, threads: int, output: Path | None
) -> None:
    """Run an ONNX FILE on real data with ONNX Runtime.

    The rows are normalised as the file's metadata say; float rows of an .npz are taken as they are.
    """
    from rich.console import Console

    from edgeprune.export.infer import infer

    if output is not None:
        check_destination(output, "infer")
    x, y, normalise, classes = _rows(data, data_dir)
    if limit is not None:
        x, y = x[:limit], None if y is None else y[:limit]
    done = infer(file, x, y, normalise=normalise, batch=batch, threads=threads)
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if done.accuracy is not None:
        promised = "" if done.promised is None else f" (its metadata say {done.promised:.2%} on the whole test set)"
        say(f"accuracy {done.accuracy:.2%} on {done.targets:,} targets{promised}")
    else:
        say(f"{done.rows:,} rows; no answers to compare with")
    median = statistics.median(done.times_s)
    rows = min(done.batch, done.rows)
    plural = "" if threads == 1 else "s"
    say(f"median {median * 1e3:.3f} ms for a batch of {rows}, {rows / median:,.0f} rows/s, {threads} thread{plural}")
    say(f"precision of the file: {done.precision}")
    if output is not None:
        names = [classes[c] if classes and c < len(classes) else str(c) for c in done.chosen.reshape(-1).tolist()]
        write_text(output, "".join(f"{name}\n" for name in names), "infer")
        say(f"wrote {output}")


def _rows(data: str, data_dir: str | None) -> tuple[Tensor, Tensor | None, Any, tuple[str, ...]]:
    """(x, y, normalisation of the data set or None, names of the classes)."""
    if data.endswith(".npz"):
        from edgeprune.export.infer import read_rows

        return (*read_rows(Path(data)), None, ())
    from edgeprune.data import load

    found = load(data, data_dir)
    return found.test.x, found.test.y, found.normalise, tuple(found.classes)
