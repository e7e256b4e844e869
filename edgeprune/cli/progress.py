"""What a person sees while a run goes on: the devices, their parts, their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgeprune.engine import Experiment
from edgeprune.engine.checkpoint import Checkpoint
from edgeprune.engine.rundir import RunDir
from edgeprune.errors import EdgePruneError

SHOWN = 16


class Progress:
    """A live table on a terminal; elsewhere a line for every tenth round. A context manager."""

    def __init__(self, experiment: Experiment, quiet: bool, rounds: int = 0) -> None:
        self._experiment = experiment
        self._rounds = rounds or experiment.run.rounds
        self._console = Console(quiet=quiet, highlight=False)
        self._result = Console(highlight=False)
        self._accuracy: float | None = None
        self._told: set[str] = set()
        self._live = (
            Live(console=self._console, refresh_per_second=8, transient=False) if self._is_live(quiet) else None
        )

    def _is_live(self, quiet: bool) -> bool:
        return self._console.is_terminal and not quiet

    def __enter__(self) -> Progress:
        e = self._experiment
        bold = [(name, "bold") for name in (e.task.name, e.algorithm.name)]
        self._console.print(Text.assemble(bold[0], " with ", bold[1], f", {self._rounds} rounds"), soft_wrap=True)
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def watch(self, at: Checkpoint, record: Mapping[str, Any]) -> None:
        """Show one finished round."""
        if record["accuracy"] is not None:
            self._accuracy = record["accuracy"]
        if self._live:
            mark = "#" if self._console.options.ascii_only else "█"
            self._live.update(Group(self._headline(record), _devices(record, mark)))
        elif record["round"] % 10 == 0 or record["round"] == self._rounds:
            self._console.print(self._headline(record), soft_wrap=True)
        for client, reason in record["rejected"].items():
            self._warn(f"round {record['round']}: {client} left out: {reason}")
        again = (record.get("facts") or {}).get("profile_again", {})
        for client in sorted(again.keys() - self._told):
            self._told.add(client)
            self._warn(f"round {record['round']}: profile {client} again: {'; '.join(again[client])}")

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(Text(text), soft_wrap=True)

    def _warn(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def finish(self, summary: Mapping[str, Any], out: Path) -> None:
        """The result, in one line, and where it lies. EdgePruneError where no update of the whole run was merged."""
        refused = summary["rejected"] and _all_refused(RunDir(out).metrics())
        if refused:
            self._result.print(
                f"untrained: every update of {summary['rounds']} rounds was refused, and accuracy "
                f"{summary['accuracy']:.2%} is that of the initial model",
                soft_wrap=True,
            )
            self._result.print(f"written to {out}", markup=False, soft_wrap=True)
            raise EdgePruneError(f"{out}: nothing was trained, because every update was refused ({refused})")
        self._result.print(
            f"accuracy [bold]{summary['accuracy']:.2%}[/bold] after {summary['rounds']} rounds, "
            f"{summary['time_s']:.1f} s of fleet time, {summary['upload_bytes'] / 1e6:.1f} MB up, "
            f"{summary['download_bytes'] / 1e6:.1f} MB down ({summary['wall_s']:.1f} s on this machine)",
            soft_wrap=True,
        )
        self._result.print(f"written to {out}", markup=False, soft_wrap=True)

    def _headline(self, record: Mapping[str, Any]) -> Text:
        accuracy = "" if self._accuracy is None else f"  accuracy {self._accuracy:.2%}"
        times = [record["update_time_s"][client] for client in record["participants"]]
        spread = f"  slowest/fastest {max(times) / min(times):.2f}" if times and min(times) > 0 else ""
        return Text(f"round {record['round']:>4}/{self._rounds}{accuracy}  fleet time {record['time_s']:.1f} s{spread}")


def _all_refused(records: Sequence[Mapping[str, Any]]) -> str:
    """Why, as the last refusal says; empty where an update was merged."""
    if any(record["participants"] for record in records):
        return ""
    reasons = [reason for record in records for reason in record["rejected"].values()]
    return str(reasons[-1]) if reasons else ""


def _devices(record: Mapping[str, Any], mark: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in ("device", "keeps", "", "update time", ""):
        table.add_column(heading)
    slowest = max(record["update_time_s"].values(), default=0.0) or 1.0
    for name in list(record["retention"])[:SHOWN]:
        kept, seconds = record["retention"][name], record["update_time_s"].get(name)
        late = "left out" if name in record["rejected"] else ""
        if seconds is None:  # its answer comes in a later round
            table.add_row(Text(name), f"{kept:.0%}", _bar(kept, mark), "", late or "at work")
        else:
            own = late or _bar(seconds / slowest, mark)
            table.add_row(Text(name), f"{kept:.0%}", _bar(kept, mark), f"{seconds:.3f} s", own)
    if len(record["retention"]) > SHOWN:
        table.add_row(f"... and {len(record['retention']) - SHOWN} more")
    return table


def _bar(share: float, mark: str) -> Text:
    return Text(mark * max(1, round(20 * share)), style="cyan")
