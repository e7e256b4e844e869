"""``edgeprune serve``: lead a federation of real machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from edgeprune.bench.options import Finite
from edgeprune.errors import EdgePruneError


@click.command("serve")
@click.argument("experiment", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["flare", "flower"]),
    help="What carries the bytes; FLARE, or Flower where only it is.",
)
@click.option("--address", default="127.0.0.1:9092", show_default=True, help="Where the devices reach this machine.")
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a key of the experiment.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; kits go beside it.")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), help="Folder that holds the data sets.")
@click.option("--own-data", is_flag=True, help="The devices have data of their own, not a part of the server's.")
@click.option("--wait", "wait_s", type=Finite(min=1), default=600.0, show_default=True, metavar="SECONDS")
@click.option("--kits", "only_kits", is_flag=True, help="Make the kits and stop.")
@click.option("--resume", "resuming", is_flag=True, help="Go on with the run in --out; the devices may still be there.")
@click.option("--quiet", is_flag=True, help="Print the result only.")
def command(
    experiment: Path | None,
    engine: str | None,
    address: str,
    sets: tuple[str, ...],
    out: Path,
    data_dir: Path | None,
    own_data: bool,
    wait_s: float,
    only_kits: bool,
    resuming: bool,
    quiet: bool,
) -> None:
    """Lead the experiment over devices that join: makes their kits, waits for them, trains, and ends.

    Nothing listens but on the address given, which is this machine alone unless you say otherwise.
    """
    from dataclasses import replace

    from edgeprune.cli.progress import Progress
    from edgeprune.engine import load_experiment
    from edgeprune.engine.checkpoint import Checkpoint
    from edgeprune.engine.children import stop_on_term
    from edgeprune.engine.serve import Service, make_kits, serve, which_engine

    engine = engine or which_engine()
    rounds = 0
    if resuming:
        from edgeprune.cli.run import _rounds_only

        rounds = _rounds_only(experiment, sets)
        if not (out / "config.toml").is_file():
            raise EdgePruneError(f"{out}: not a run directory (no config.toml); leave out --resume to begin there")
    described = load_experiment(out / "config.toml" if resuming else experiment, () if resuming else sets)
    described = replace(described, run=replace(described.run, engine=engine))
    service = Service(out, engine, address, data_dir, wait_s, own_data, resuming, rounds)
    if only_kits:
        make_kits(service, described, click.echo)
        return
    stop_on_term()
    with Progress(described, quiet, rounds) as progress:
        nothing = cast(Checkpoint, None)

        def watch(record: Any) -> None:
            progress.watch(nothing, record)

        summary = serve(service, None if resuming else described, watch, progress.say)
    progress.finish(summary, out)
