"""One self-contained page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprune.destination import check_destination, write_text
from edgeprune.report.page import render
from edgeprune.report.series import Run, read_runs

__all__ = ["Run", "read_runs", "render", "write_report"]


def write_report(run_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Read ``run_dirs``, draw the page and put it at ``path`` in one step; on any error nothing is written.

    Raises EdgePruneError: a folder that is no run, one without a finished round, a damaged file, a path that cannot
    be written.
    """
    destination = check_destination(path, "report")
    write_text(destination, render(read_runs(run_dirs)), "report")
    return destination
