"""``edgeprune join``: take part in a federation with this device."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune.bench.options import Finite
from edgeprune.device.power import SOURCES


@click.command("join")
@click.argument("kit", type=click.Path(path_type=Path))
@click.option("--data", "data_dir", type=click.Path(path_type=Path), help="Folder that holds the data sets.")
@click.option("--own-data", is_flag=True, help="All training data here are this device's own; they stay here.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder for logs and what must survive; KIT/state if not given."
)
@click.option(
    "--idle",
    "idle_s",
    type=Finite(min=1),
    default=86400.0,
    show_default=True,
    metavar="SECONDS",
    help="End when the server was not heard of for so long.",
)
@click.option(
    "--power",
    type=click.Choice(SOURCES),
    default="auto",
    show_default=True,
    help="Where this device's own figures of energy come from.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but mistakes.")
def command(
    kit: Path, data_dir: Path | None, own_data: bool, state: Path | None, idle_s: float, power: str, quiet: bool
) -> None:
    """Take part with the KIT that 'edgeprune serve' made for this device, until the run is over.

    The data stay here. The server may come and go; this waits for it.
    """
    from edgeprune.engine.children import stop_on_term
    from edgeprune.engine.join import join

    stop_on_term()
    say = (lambda _: None) if quiet else click.echo
    join(kit, data_dir, state or kit / "state", own=own_data, idle_s=idle_s, power=power, say=say)
