"""Tables of figures on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 10_000  # characters; no table comes near


def show(table: Table) -> None:
    """Print ``table`` as wide as it is, every figure whole: rich would cut them where a terminal is narrow, and takes a
    file or a pipe for one of 80 characters."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    wide = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    Console(highlight=False, width=max(console.width, wide)).print(table)
