"""``edgeprune data``: list, fetch and verify data sets."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgeprune.data import registry, search
from edgeprune.data.download import fetch
from edgeprune.errors import EdgePruneError

where = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path), help="Folder of data sets; before all others."
)
STATES = {
    "ok": "[green]ok[/]",
    "differs": "[red]differs from the published file[/]",
    "unknown": "no checksum published",
}


@click.group("data")
def command() -> None:
    """List, fetch and verify data sets."""


@command.command("list")
@where
def list_(data_dir: Path | None) -> None:
    """Each data set: what it is, its licence, and where it was found."""
    table = Table(box=None, pad_edge=False)
    for title in ("name", "what", "licence", "found in"):
        table.add_column(title, overflow="fold")
    places = search.places(data_dir)
    for known in registry.SOURCES.values():
        place = places.get(known.name)
        found = escape(str(place)) if place else f"not here; a fetch brings {_mb(known.download_size)}"
        table.add_row(known.name, known.what, known.licence, found if known.layouts else known.note)
    Console().print(table)
    print(f"looked in {', '.join(str(root) for root in search.roots(data_dir)) or 'no folder; name one with --data'}")


@command.command("fetch")
@click.argument("name")
@where
def fetch_(name: str, data_dir: Path | None) -> None:
    """Download the data set NAME and check it, into --data, $EDGEPRUNE_DATA or the cache folder."""
    known = registry.source(name)
    if not known.downloads:
        print(f"{name}: nothing to fetch; it {known.note}")
        return
    root = next(iter(search.roots(data_dir)), None)
    if root is None:
        raise EdgePruneError("data fetch: this user has no home folder to put it in; say where with --data")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {d.file.name: bars.add_task(d.file.name, total=d.file.size) for d in known.downloads}
        new = fetch(known, root, lambda file, done, total: bars.update(tasks[file], completed=done, total=total))
    if new:
        print(
            f"{name}: {len(new)} file{'s' * (len(new) > 1)} in {root / name}, checksums right; licence: {known.licence}"
        )
    else:
        print(f"{name}: already in {root / name}, checksums right")


@command.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@where
def verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Compare the files that are there with the published checksums; without NAME, of every data set found."""
    there = [name for name, place in search.places(data_dir).items() if place]
    chosen = [name for name in names or there if registry.source(name).layouts]
    table = Table(box=None, pad_edge=False)
    for title in ("data set", "file", "state"):
        table.add_column(title, overflow="fold")
    wrong = 0
    for name in chosen:
        for verdict in search.verify(name, data_dir):
            table.add_row(name, escape(str(verdict.path)), STATES[verdict.state])
            wrong += verdict.state == "differs"
    if not table.row_count:
        print(
            "nothing to verify: no data set's files were found" if not names else "nothing to verify: it needs no file"
        )
        return
    Console().print(table)
    if wrong:
        raise EdgePruneError(
            f"data verify: {wrong} of {table.row_count} files differ from the published ones; "
            "'edgeprune data fetch NAME' brings those"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
