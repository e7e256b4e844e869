"""``edgeprune plan FLEET``: who gets what, and why, before anybody trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.bench.options import Finite

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.engine.planning import FleetPlan


@click.command(name="plan")
@click.argument("fleet", type=click.Path(path_type=Path))
@click.option("--task", metavar="TASK", help="What is trained; the file's [task] if not given.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="What 'edgeprune profile' wrote for devices without one."
)
@click.option("--objective", metavar="equal|deadline|energy|memory", help="What is scheduled for; equal if not given.")
@click.option(
    "--deadline", type=Finite(0, min_open=True), metavar="SECONDS", help="A round's length, for the objective deadline."
)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a key of the file.")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), help="Folder that holds the data sets.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    fleet: Path,
    task: str | None,
    profile: Path | None,
    objective: str | None,
    deadline: float | None,
    sets: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Say what the scheduler would give every device of FLEET, a TOML file with a [fleet] section, and why.

    Each [[fleet.device]] names its own profile, or is "slowdown" times as slow as the machine of --profile. Limits are
    memory_mib, energy_j (a round's) and hottest_c. A whole experiment serves as well.
    """
    from edgeprune.bench.tables import show
    from edgeprune.engine.planning import plan_fleet

    overrides = list(sets)
    if task:
        overrides.append(_override("task.name", task))
    if profile:
        overrides.append(_override("fleet.latency", str(profile.resolve())))
    if objective:
        overrides.append(_override("algorithm.objective", objective))
    if deadline is not None:
        overrides.append(f"algorithm.deadline_s={deadline}")
        if not objective:
            overrides.append('algorithm.objective="deadline"')
    found = plan_fleet(fleet, overrides, data_dir)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    from rich.console import Console

    console = Console(highlight=False)
    show(table(found))
    for line in lines(found):
        console.print(line, markup=False, soft_wrap=True)


def _override(key: str, text: str) -> str:
    """``key=text`` as ``--set`` takes it, whatever characters are in the text."""
    import tomli_w

    return f"{key}={tomli_w.dumps({'v': text}).partition('=')[2]}"


def table(found: FleetPlan) -> Table:
    """A row for each device: what it gets. The reasons stand below, where there is room for a sentence."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    limits = any(row["memory_limit_mib"] is not None for row in found.rows)
    budgets = any(row["energy_limit_j"] is not None for row in found.rows)
    names = ["device", "keeps", "steps", "down s", "train s", "up s", "total s", "whole s"]
    names += ["MiB", "limit"] if limits else []
    names += ["J", "limit J"] if budgets else []
    for name in names:
        shown.add_column(name, justify="left" if name == "device" else "right", no_wrap=True)
    for row in found.rows:
        cells = [escape(row["client"])]
        if row["takes_part"]:
            cells += [f"{row['retention']:.0%}", f"{row['steps']}/{row['steps_full']}"]
            cells += [f"{row[key]:.3g}" for key in ("download_s", "compute_s", "upload_s", "update_time_s")]
        else:
            cells += ["-", "0", "", "", "", ""]
        cells.append(f"{row['whole_s']:.3g}")
        if limits:
            cells += [_shown(row["memory_mib"]), _shown(row["memory_limit_mib"])]
        if budgets:
            cells += [_shown(row["energy_j"], ".3g"), _shown(row["energy_limit_j"], ".3g")]
        shown.add_row(*cells)
    return shown


def lines(found: FleetPlan) -> list[str]:
    """Why each device gets what it gets, and what it means for a round."""
    shown = [f"{row['client']}: {row['why']}" for row in found.rows]
    facts = found.facts
    shown.append(
        f"a round takes {facts['round_s']:.3g} s, spread {facts['spread']:.2f}; with the whole model everywhere "
        f"{facts['whole_round_s']:.3g} s, spread {facts['whole_spread']:.2f}: {facts['saved']:.0%} saved"
    )
    shown.append(f"objective {facts['objective']}; profiles: {facts['sources']}")
    return shown + [f"profile: {warning}" for warning in found.warnings]


def _shown(value: float | None, form: str = ".0f") -> str:
    return "" if value is None else f"{value:{form}}"
