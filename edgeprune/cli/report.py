"""``edgeprune report``: one self-contained page about runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("run_dirs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_DIR...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write.")
def command(run_dirs: tuple[Path, ...], output: Path) -> None:
    """Draw a page about the runs: accuracy against time and bytes, update time and retention per device.

    Several runs are laid over each other; they are compared with the first FedAvg run, or else the first one. The
    page needs no network and no scripts.
    """
    from edgeprune.report import write_report

    written = write_report(run_dirs, output)
    click.echo(f"wrote {written} ({written.stat().st_size / 1e3:,.0f} KB)")
