"""``edgeprune bench model | onnx | kernels``: what this device does, as a table and as JSON."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeprune.bench.options import Finite
from edgeprune.destination import check_destination
from edgeprune.errors import EdgePruneError

if TYPE_CHECKING:
    from edgeprune.bench.meter import Meter

F = TypeVar("F", bound=Callable[..., Any])
WITH_POWER_S, WITHOUT_POWER_S = 30.0, 3.0
# Subcommands that live beside what they measure: name -> (module, its click command, help).
ELSEWHERE = {"kernels": ("edgeprune.bench.kernels", "command", "Kernels against torch's, with the machine's limits.")}


class _Benches(click.Group):
    """``model`` and ``onnx`` are here; ``kernels`` is loaded from the module that measures them, where it is built."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(name for name in ELSEWHERE if _present(name))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ELSEWHERE:
            if not _present(cmd_name):
                raise EdgePruneError(
                    f"bench {cmd_name}: this version has none; 'edgeprune bench --help' lists what it has"
                )
            module, attribute, _ = ELSEWHERE[cmd_name]
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Those elsewhere by the help given here: their modules load torch."""
        shown = {name: each.get_short_help_str(limit=60) for name, each in self.commands.items()}
        shown |= {name: text for name, (_, _, text) in ELSEWHERE.items() if _present(name)}
        with formatter.section("Commands"):
            formatter.write_dl(list(shown.items()))


def _present(name: str) -> bool:
    return importlib.util.find_spec(ELSEWHERE[name][0]) is not None


@click.group(name="bench", cls=_Benches)
def command() -> None:
    """Latency percentiles, throughput, memory, and energy where the machine measures power.

    Energy needs windows of at least 30 s; without power sensors the windows are short. Times are medians of three
    repeats; a run during which power mode or clocks changed is flagged.
    """


def _common(function: F) -> F:
    """The options that every benchmark of a model has."""
    for option in reversed(
        (
            click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write everything as JSON here."),
            click.option("--seconds", type=Finite(0.05, 600), help="A window; 30 with power, else 3."),
            click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True, help="Windows each."),
            click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="On the CPU."),
            click.option(
                "--power", default="auto", show_default=True, metavar="auto|jtop|hwmon|nvml|none", help="Source."
            ),
            click.option("--interval", type=Finite(0.1, 60), default=0.5, show_default=True, help="Of samples."),
            click.option("--idle", type=Finite(0, 600), default=10.0, show_default=True, help="Before and after."),
        )
    ):
        function = option(function)
    return function


@command.command("model")
@click.argument("task_name", metavar="TASK")
@click.option("--width", type=Finite(0.01, 1.0), default=1.0, show_default=True, help="Share of the channels.")
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]), default="cpu", show_default=True)
@_common
def model(task_name: str, width: float, device: str, threads: int, seconds: float | None, **options: Any) -> None:
    """A task's model in PyTorch: inference at batch 1 and at the task's batch, and training steps."""
    from edgeprune import tasks
    from edgeprune.bench.model import measure_model

    task = tasks.get(task_name)

    def measure(meter: Meter, window: float, say: Callable[[str], None]) -> dict[str, Any]:
        from edgeprune.bench.report import report

        results, idle = measure_model(
            task,
            meter,
            width=width,
            seconds=window,
            repeats=options["repeats"],
            thread_count=threads,
            device=device,
            idle_s=options["idle"],
            say=say,
        )
        return report("model", {"task": task.name, "width": width, "device": device}, results, idle, meter, threads)

    _run(measure, seconds, **options)


@command.command("onnx")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 4096),
    multiple=True,
    help="May be repeated; 1 and 32, or the file's own, if not.",
)
@click.option("--vs", "other", type=click.Path(path_type=Path), help="Another file, run in turns with this one.")
@click.option("--provider", default="CPU", show_default=True, help="Execution provider: CPU, CUDA, TensorRT ...")
@_common
def onnx(
    file: Path,
    other: Path | None,
    batches: tuple[int, ...],
    provider: str,
    threads: int,
    seconds: float | None,
    **options: Any,
) -> None:
    """An ONNX file in ONNX Runtime, on random inputs."""
    from edgeprune.bench import versus
    from edgeprune.bench.onnx import batch_sizes, measure_onnx

    # A mistake shows before minutes of measuring.
    if options["output"] is not None:
        check_destination(options["output"], "bench")
    sizes = batch_sizes([file] if other is None else [other, file], batches, threads, provider)

    def measure(meter: Meter, window: float, say: Callable[[str], None]) -> dict[str, Any]:
        from edgeprune.bench.report import report

        results, idle, facts = measure_onnx(
            file,
            meter,
            batches=sizes,
            seconds=window,
            repeats=options["repeats"],
            thread_count=threads,
            provider=provider,
            idle_s=options["idle"],
            say=say,
        )
        found = report("onnx", facts, results, idle, meter, threads)
        if other is not None:
            compared = versus.compare(
                file,
                other,
                batches=sizes,
                seconds=window,
                repeats=options["repeats"],
                thread_count=threads,
                provider=provider,
                say=say,
            )
            found["versus"] = {"file": other.name, "results": [v.to_dict() for v in compared]}
        return found

    _run(measure, seconds, **options)


def _versus(found: dict[str, Any]) -> list[str]:
    """A sentence a batch size on the other file, where there is one."""
    if "versus" not in found:
        return []
    return [
        f"batch {row['batch']}: {row['speedup']:.2f}x against {found['versus']['file']} "
        f"(repeats {row['low']:.2f} to {row['high']:.2f}), run in turns"
        for row in found["versus"]["results"]
    ]


def _run(
    measure: Callable[[Meter, float, Callable[[str], None]], dict[str, Any]],
    seconds: float | None,
    *,
    output: Path | None,
    power: str,
    interval: float,
    **_: Any,
) -> None:
    from rich.console import Console

    from edgeprune.bench import report, tables
    from edgeprune.bench.meter import Meter
    from edgeprune.device.power import open_sampler

    if output is not None:
        check_destination(output, "bench")
    console = Console(highlight=False)
    sampler = open_sampler(power, interval)
    meter = Meter(sampler)
    window = seconds or (WITH_POWER_S if meter.has_power else WITHOUT_POWER_S)
    try:
        found = measure(meter, window, lambda text: console.print(text, style="dim"))
    finally:
        sampler.stop()
    tables.show(report.table(found))
    for line in [*_versus(found), *report.lines(found)]:
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        report.write(found, output)
        console.print(f"wrote {output}", markup=False, soft_wrap=True)
