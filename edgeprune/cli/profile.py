"""``edgeprune profile TASK``: what this device needs for a task, as a file that the scheduler believes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.bench.options import Finite
from edgeprune.destination import check_destination
from edgeprune.errors import EdgePruneError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.algorithms.training import LocalData
    from edgeprune.device.profile import DeviceProfile


@click.command(name="profile")
@click.argument("task_name", metavar="TASK")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write; TASK.profile.json if not given."
)
@click.option("--data", "data_dir", metavar="DIR", help="Where the task's data are; without data random inputs serve.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="What training will use.")
@click.option("--seconds", type=Finite(0.1, 60), default=1.2, show_default=True, help="Timed steps a size.")
@click.option("--passes", type=click.IntRange(1, 20), default=5, show_default=True, help="Rounds over all sizes.")
@click.option(
    "--power", default="auto", show_default=True, metavar="auto|jtop|hwmon|nvml|none", help="Where power comes from."
)
@click.option("--interval", type=Finite(0.1, 60), default=0.5, show_default=True, help="Between samples, s.")
@click.option("--energy-seconds", type=Finite(30, 600), default=30.0, show_default=True, help="A window's length.")
@click.option("--valid-days", type=click.IntRange(1, 3650), default=30, show_default=True, help="When it expires.")
@click.option(
    "--check", "check_file", type=click.Path(path_type=Path), help="Measure nothing; is this profile still valid here?"
)
@click.option(
    "--if-needed", is_flag=True, help="Measure only if the file in -o is missing, expired or of another state."
)
@click.option("--quiet", is_flag=True, help="Print the result only.")
def command(
    task_name: str,
    output: Path | None,
    data_dir: str | None,
    threads: int,
    seconds: float,
    passes: int,
    power: str,
    interval: float,
    energy_seconds: float,
    valid_days: int,
    check_file: Path | None,
    if_needed: bool,
    quiet: bool,
) -> None:
    """Measure TASK's training step and inference on this device, at many sizes of its model.

    TASK is a built-in task or "package.module:function". The file holds medians, peak memory, energy where the machine
    measures power, the fitted model's error on sizes it has not seen, and the machine's fingerprint.
    """
    from rich.console import Console

    from edgeprune import tasks
    from edgeprune.bench.profile import Effort, profile_task
    from edgeprune.bench.tables import show
    from edgeprune.device.power import open_sampler
    from edgeprune.device.profile import write_profile

    console = Console(highlight=False)
    task = tasks.get(task_name)
    if check_file is not None:
        reasons = _reasons(check_file, task.name, threads)
        if reasons:
            raise EdgePruneError(f"profile {check_file}: measure it again, {'; '.join(reasons)}")
        click.echo(f"{check_file} is valid here")
        return
    output = output or Path(f"{task.name.replace(':', '-').replace('/', '-')}.profile.json")
    check_destination(output, "profile")
    if if_needed and output.exists():
        try:
            reasons = _reasons(output, task.name, threads)
        except EdgePruneError:
            reasons = ["it holds no profile that can be read"]
        if not reasons:
            click.echo(f"{output} is valid here; nothing to measure")
            return
        console.print(f"{output} is measured again: {'; '.join(reasons)}", markup=False, soft_wrap=True)
    data, note = _data(task_name, data_dir)
    sampler = open_sampler(power, interval)
    try:
        profile = profile_task(
            task,
            data=data,
            thread_count=threads,
            effort=Effort(seconds, passes, energy_seconds),
            sampler=sampler,
            valid_days=valid_days,
            say=(lambda text: None) if quiet else lambda text: console.print(text, style="dim"),
        )
    finally:
        sampler.stop()
    write_profile(profile, output)
    show(table(profile))
    for line in [*lines(profile), *note, f"wrote {output}"]:
        console.print(line, markup=False, soft_wrap=True)


def _reasons(path: Path, task: str, threads: int) -> list[str]:
    """Why the profile in ``path`` does not hold for ``task`` on this machine as it is now."""
    from edgeprune.device.profile import fingerprint, read_profile

    profile = read_profile(path)
    reasons = profile.stale(fingerprint(threads))
    if profile.task != task:
        reasons.insert(0, f"it was measured for {profile.task!r}, not {task!r}")
    return reasons


def _data(task_name: str, data_dir: str | None) -> tuple[LocalData | None, list[str]]:
    """(real samples or None, a line that says so)."""
    from edgeprune import tasks
    from edgeprune.algorithms.training import LocalData

    try:
        data = tasks.get(task_name).load_data(data_dir)
    except EdgePruneError as error:
        if data_dir is not None:
            raise
        return None, [f"random inputs: {error}"]
    return LocalData(data.train.x, data.train.y, data.normalise), []


def table(profile: DeviceProfile) -> Table:
    """One row for each measured size that the fit has seen."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    power = any(point.step_j is not None for point in profile.points)
    columns = ["model", "channels", "MMACs", "step, ms", "forward, ms", "spread", "peak, MiB"]
    for name in [*columns, *(["J a step"] if power else [])]:
        shown.add_column(name, justify="left" if name == "model" else "right")
    for point in profile.points:
        names = {"depth": f"{point.depth:.0%} of blocks", "density": f"density {point.density:g}"}
        row = [
            names.get(point.shape, f"by {point.shape}"),
            f"{point.width:.0%}",
            f"{point.size.macs / 1e6:.2f}",
            f"{point.step_ms:.2f}",
            f"{point.inference_ms:.2f}",
            f"{point.spread:.0%}",
            "" if point.peak_memory is None else f"{point.peak_memory / 2**20:.0f}",
        ]
        shown.add_row(*row, *(["" if point.step_j is None else f"{point.step_j:.3f}"] if power else []))
    return shown


def lines(profile: DeviceProfile) -> list[str]:
    """What stands under the table."""
    print_, error = profile.fingerprint, profile.error
    mode = f", power mode {print_.mode}" if print_.mode else ""
    threads = f"{print_.threads} thread" + ("s" if print_.threads > 1 else "")
    found = [f"{profile.source} on {print_.board}{mode}, {threads}, torch {print_.torch}, fingerprint {print_.id}"]
    if error:
        found.append(
            f"latency model on {error['checked']:.0f} sizes it has not seen: off by {error['median']:.1%} in the "
            f"middle, {error['p90']:.1%} for nine in ten, {error['largest']:.1%} at worst"
        )
    if "reason" in profile.power:
        found.append(str(profile.power["reason"]))
    else:
        found.append(
            f"power of {profile.power['rail']} through {profile.power['source']}, idle {profile.power['idle_w']:.2f} W"
        )
    if "instead_of" in profile.power:
        found.append(f"power through {profile.power['source']}, for {profile.power['instead_of']}")
    if profile.temperatures_c:
        hot = ", ".join(f"{name} {value:.0f} C" for name, value in profile.temperatures_c.items())
        found.append(f"temperatures at most {hot}")
    return [*found, *profile.notes, f"valid until {profile.expires[:10]}"]
