"""One self-contained page about one or several runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import EdgePruneError
from edgeprune.report.page import render
from edgeprune.report.series import Run, read_runs

__all__ = ["Run", "read_runs", "render", "write_report"]


def write_report(run_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Read ``run_dirs``, draw the page and put it at ``path`` in one step; on any error nothing is written.

    Raises EdgePruneError: a folder that is no run, one without a finished round, a damaged file, a path that cannot
    be written.
    """
    destination = Path(path)
    if destination.is_dir():
        raise EdgePruneError(f"report: {destination} is a folder; name the file, such as {destination / 'report.html'}")
    if not destination.parent.is_dir():
        raise EdgePruneError(f"report: the folder {destination.parent} does not exist; create it first")
    text = render(read_runs(run_dirs))
    try:
        with tempfile.TemporaryDirectory(prefix=".edgeprune-", dir=destination.parent) as folder:
            draft = Path(folder) / destination.name
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, destination)
    except OSError as error:
        raise EdgePruneError(f"report: cannot write {destination}: {error.strerror}") from None
    return destination
