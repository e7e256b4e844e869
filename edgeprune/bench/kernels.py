"""``edgeprune bench kernels``: masked kernels against torch's dense ones, and where one overtakes the other.

Times are medians of whole calls through the public operators, "forward" without gradients and "step" forward with both
gradients, in turns: "sparse" walks kept weights, "dense" fills in zeros and calls torch, "torch" is the dense layer as
it is. The densities at which sparse and dense cross become this machine's rule (edgeprune/ops/crossover.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from edgeprune import ops
from edgeprune.bench.options import Finite
from edgeprune.bench.report import write
from edgeprune.bench.tables import show
from edgeprune.destination import check_destination
from edgeprune.device import probe
from edgeprune.errors import EdgePruneError
from edgeprune.ops import SparsityPattern, crossover
from edgeprune.ops._core import core

DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.6, 0.9)
WORKS = ("forward", "step")
PATHS = ("sparse", "dense", "torch")


@dataclass(frozen=True)
class Shape:
    """A layer and a call of it; a linear layer has one pixel."""

    kind: str
    batch: int
    inputs: int
    outputs: int
    size: int = 1
    taps: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def linear(self) -> bool:
        return self.kind == "linear"

    @property
    def positions(self) -> int:
        """What the rule for choosing counts."""
        return self.batch * (-(-self.size // self.stride)) ** 2

    @property
    def name(self) -> str:
        if self.linear:
            return f"{self.inputs}-{self.outputs} x{self.batch}"
        more = (f" stride {self.stride}" if self.stride > 1 else "") + (f" /{self.groups}" if self.groups > 1 else "")
        return f"{self.taps}x{self.taps} {self.inputs}-{self.outputs}{more} {self.size}x{self.size} x{self.batch}"


SHAPES = (
    *(Shape("linear", batch, 1024, 1024) for batch in (1, 2, 8, 32, 256)),
    *(Shape("conv1x1", batch, 128, 128, size) for batch, size in ((1, 4), (1, 16), (32, 16))),
    *(Shape("conv", 1, width, width, size, 3) for width, size in ((256, 4), (128, 16))),
    *(Shape("conv", 32, width, width, size, 3) for width, size in ((256, 4), (64, 16))),
    *(Shape("conv_odd", batch, 24, 24, size, 3) for batch, size in ((1, 4), (1, 16), (32, 32))),
    *(Shape("grouped", batch, 128, 128, 16, 3, 1, 128) for batch in (1, 32)),
)


def calls(shape: Shape, density: float, path: str) -> dict[str, Callable[[], object]]:
    """The works of a shape, ready to be timed: the same values for every path.

    ``path`` "torch" is the plain dense layer, whose weights hold the zeros already; "dense" fills them in at each call.
    """
    generator = torch.Generator().manual_seed(0)
    weight_shape: tuple[int, ...] = (shape.outputs, shape.inputs // shape.groups)
    x_shape: tuple[int, ...] = (shape.batch, shape.inputs)
    if not shape.linear:
        weight_shape += (shape.taps, shape.taps)
        x_shape += (shape.size, shape.size)
    mask = torch.rand(weight_shape, generator=generator) < density
    pattern = SparsityPattern.from_mask(mask)
    x = torch.randn(x_shape, generator=generator)
    dense = torch.randn(weight_shape, generator=generator) * mask
    weight = dense if path == "torch" else pattern.compact(dense)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        if path == "torch":
            if shape.linear:
                return functional.linear(x, weight)
            return functional.conv2d(x, weight, None, shape.stride, shape.taps // 2, 1, shape.groups)
        if shape.linear:
            return ops.masked_linear(x, weight, pattern, path=path)
        how = (shape.stride, shape.taps // 2, 1, shape.groups)
        return ops.masked_conv2d(x, weight, pattern, None, *how, path=path)

    inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
    dy = torch.randn(product(x, weight).shape, generator=generator)
    return {
        "forward": lambda: product(x, weight),
        "step": lambda: torch.autograd.grad(product(*inputs), inputs, dy),
    }


def in_turns(
    works: dict[str, Callable[[], object]], seconds: float, least: int = 3, warm: bool = True
) -> dict[str, float]:
    """Median milliseconds of each, taken in turns for about ``seconds`` in all.

    ``warm``: short works are repeated within a turn and the first of these is not counted, so that the caches hold what
    the work itself left there; else they hold what all the others left.
    """
    repeats = {name: _repeats(work) if warm else 1 for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    turns = 0
    while time.perf_counter() < end or turns < least:
        turns += 1
        for name, work in works.items():
            if repeats[name] > 1:
                work()
            for _ in range(repeats[name]):
                start = time.perf_counter()
                work()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def _repeats(work: Callable[[], object]) -> int:
    """How often one turn repeats ``work``: for about 10 ms. Also the first call of it, where what is lazy is made."""
    work()
    start = time.perf_counter()
    work()
    return max(1, min(20, int(0.01 / max(time.perf_counter() - start, 1e-9))))


def measure(
    shapes: Iterable[Shape], threads: int, seconds: float, say: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """A row for each shape and density: milliseconds of every work on both paths. ``seconds`` for each row."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = []
        for shape in shapes:
            say(f"{shape.name}, {threads} threads")
            for density in DENSITIES:
                works = {
                    f"{work}_{path}_ms": call for path in PATHS for work, call in calls(shape, density, path).items()
                }
                times = in_turns(works, seconds)
                row = {"layer": shape.name, "kind": shape.kind, "positions": shape.positions, "threads": threads}
                rows.append(row | {"density": density} | {name: round(ms, 5) for name, ms in times.items()})
        return rows
    finally:
        torch.set_num_threads(before)


def crossing(rows: list[dict[str, Any]], work: str) -> float:
    """Highest density at which sparse wins among the rows of one shape, interpolated between measured densities."""
    gain = [(row["density"], row[f"{work}_dense_ms"] - row[f"{work}_sparse_ms"]) for row in rows]
    gain.sort()
    if gain[0][1] <= 0:
        return 0.0
    for (low, won), (high, lost) in zip(gain, gain[1:], strict=False):
        if lost <= 0:
            return round(low + (high - low) * won / (won - lost), 3)
    return 1.0


def tables_of(rows: list[dict[str, Any]]) -> crossover.Tables:
    """The rule for choosing, out of measured rows of all kinds. Shapes with as many positions count with the lowest."""
    tables: crossover.Tables = {}
    for threads in sorted({row["threads"] for row in rows}):
        table = tables[threads] = {work: {} for work in WORKS}
        for work in WORKS:
            for kind in crossover.KINDS:
                points: dict[int, float] = {}
                for name in {row["layer"] for row in rows if row["kind"] == kind}:
                    of_shape = [row for row in rows if row["layer"] == name and row["threads"] == threads]
                    at, limit = of_shape[0]["positions"], crossing(of_shape, work)
                    points[at] = min(limit, points.get(at, 1.0))
                table[work][kind] = tuple((float(at), limit) for at, limit in sorted(points.items()))
    return tables


def bench(
    threads: Iterable[int], seconds: float, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], crossover.Tables]:
    """Everything as JSON-able data, and the rule that follows from it."""
    rows = [row for count in threads for row in measure(SHAPES, count, seconds, say)]
    tables = tables_of(rows)
    found = {
        "format": "edgeprune.bench.kernels/1",
        "machine": dict(probe.beside_figures()),
        "kernels": core.chosen_variant(),
        "peak_gflops": {name: round(core.multiply_add_peak(0.1, name) / 1e9, 1) for name in core.present_variants()},
        "results": rows,
        "crossover": {str(count): table for count, table in tables.items()},
    }
    return found, tables


@click.command("kernels")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write everything as JSON here.")
@click.option("--threads", type=click.IntRange(1, 256), multiple=True, help="May be given often; 1 and torch's number.")
@click.option("--seconds", type=Finite(0.001, 60), default=0.06, show_default=True, help="For a row.")
@click.option("--save/--no-save", default=True, help="Whether to use the crossover on this machine from now on.")
def command(output: Path | None, threads: tuple[int, ...], seconds: float, save: bool) -> None:
    """Masked linear layers and convolutions against torch's dense ones, and the density where they cross."""
    from rich.console import Console

    if output is not None:
        check_destination(output, "bench")
    console = Console(highlight=False)
    with console.status("measuring") as status:
        counts = threads or tuple(sorted({1, torch.get_num_threads()}))
        found, tables = bench(counts, seconds, lambda text: status.update(text))
    for count in counts:
        show(_table(found, count))
    peak = found["peak_gflops"][found["kernels"]]
    console.print(f"multiply-add peak of one core: {peak} GFLOP/s ({found['kernels']})")
    if output is not None:
        write(found, output)
    if save:
        try:
            console.print(f"rule for choosing written to {_short(crossover.save(tables))}")
        except OSError as error:
            raise EdgePruneError(
                f"the rule for choosing cannot be written ({error.strerror}: "
                f"{error.filename or 'no cache folder'}); set XDG_CACHE_HOME, or --no-save"
            ) from None


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere, or there is no home
        return str(path)


def _table(found: dict[str, Any], threads: int) -> Any:
    """A line a shape: torch's time, speed-up over it at two densities, and up to which density sparse is chosen."""
    from rich.table import Table

    title = f"{threads} thread{'s' * (threads > 1)}: forward, and forward with both gradients (step)"
    shown = Table(
        title=title, box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title_justify="left"
    )
    columns = ["torch ms", "at .2", "at .1", "step ms", "at .2", "at .1", "chosen up to"]
    for name in ("layer, batch", *columns):
        shown.add_column(name, justify="left" if name.startswith("layer") else "right", no_wrap=True)
    rows = [row for row in found["results"] if row["threads"] == threads]
    for layer in dict.fromkeys(row["layer"] for row in rows):
        of_shape = {row["density"]: row for row in rows if row["layer"] == layer}
        cells = [layer]
        for work in WORKS:
            cells.append(f"{of_shape[0.1][f'{work}_torch_ms']:.3f}")
            for density in (0.2, 0.1):
                row = of_shape[density]
                cells.append(f"{row[f'{work}_torch_ms'] / row[f'{work}_sparse_ms']:.1f}x")
        crossings = [crossing(list(of_shape.values()), work) for work in WORKS]
        shown.add_row(*cells, " / ".join(f"{density:.2f}" for density in crossings))
    return shown
