"""``edgeprune run``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeprune.errors import EdgePruneError


@click.command("run")
@click.argument("experiment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a key of the experiment.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; runs/TASK-ALGORITHM-N if not given.")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), help="Folder that holds the data sets.")
@click.option("--resume", "resuming", is_flag=True, help="Go on with the run in --out.")
@click.option("--quiet", is_flag=True, help="Print the result only.")
def command(
    experiment: Path | None,
    sets: tuple[str, ...],
    out: Path | None,
    data_dir: Path | None,
    resuming: bool,
    quiet: bool,
) -> None:
    """Train together on this machine, with a virtual clock; with no EXPERIMENT.toml, a small one on real digits."""
    from edgeprune import engine
    from edgeprune.cli.progress import Progress

    if resuming:
        prepared_rounds = _rounds_only(experiment, sets)
        if out is None:
            raise EdgePruneError("--resume: say which run with --out DIR")
        with Progress(engine.load_experiment(out / "config.toml"), quiet, prepared_rounds) as progress:
            if engine.load_experiment(out / "config.toml").run.engine == "processes":
                summary = _processes(progress, out, data_dir, rounds=prepared_rounds, resume=True)
            else:
                summary = engine.resume(out, data_dir, progress.watch, prepared_rounds)
    else:
        described = engine.load_experiment(experiment, sets)
        out = out or _new_folder(described)
        with Progress(described, quiet) as progress:
            if described.run.engine == "processes":
                summary = _processes(progress, out, data_dir, described)
            else:
                prepared = engine.prepare(described, data_dir)
                summary = engine.start(prepared, out, progress.watch)
    progress.finish(summary, out)


def _processes(progress: Any, out: Path, data_dir: Path | None, described: Any = None, **options: Any) -> Any:
    """Every device a process of its own, on the real clock."""
    from edgeprune.engine import load_experiment
    from edgeprune.engine.children import stop_on_term
    from edgeprune.engine.federation import run_here

    stop_on_term()
    described = described or load_experiment(out / "config.toml")
    return run_here(described, out, data_dir, watch=progress.watch, say=progress.say, **options)


def _rounds_only(experiment: Path | None, sets: tuple[str, ...]) -> int:
    """A resumed run keeps its configuration; only its last round may be moved."""
    if experiment is not None:
        raise EdgePruneError("--resume takes its experiment from --out DIR; leave the EXPERIMENT file out")
    from edgeprune.engine import load_experiment

    for item in sets:
        if item.partition("=")[0].strip() != "run.rounds":
            raise EdgePruneError(f"--resume: only run.rounds can be changed, not {item!r}; start a new run for that")
    return load_experiment(None, sets).run.rounds if sets else 0


def _new_folder(experiment: object) -> Path:
    from edgeprune.engine import Experiment

    assert isinstance(experiment, Experiment)
    stem = f"{experiment.task.name.replace(':', '-').replace('/', '-')}-{experiment.algorithm.name}"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"
