"""What the page says in sentences, made from the numbers it shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from edgeprune.report import compare, style
from edgeprune.report.series import Evaluation, Run


def title(runs: Sequence[Run]) -> str:
    """Task and algorithms."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    return f"{listed(tasks)}: {listed(list(dict.fromkeys(run.label for run in runs)))}"


def lead(runs: Sequence[Run]) -> str:
    """The result in a sentence or two."""
    base = compare.baseline(runs)
    others = [run for run in runs if run is not base]
    if not others:
        return _alone(base)
    return " ".join(_against(run, base) for run in others[:3])


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, value) of the settings that the runs share, and of the sizes of the job."""
    found = []
    for name, section, key in (
        ("Task", "task", "name"),
        ("Partition", "data", "partition"),
        ("Seed", "run", "seed"),
    ):
        values = list(dict.fromkeys(str(_setting(run, section, key)) for run in runs))
        found.append((name, listed(values)))
    devices = list(dict.fromkeys(f"{len(_devices(run)):,}" for run in runs))
    found.insert(2, ("Devices", listed(devices)))
    ratios = [ratio for run in runs if (ratio := first_spread(run)) is not None]
    if ratios:
        found.insert(3, ("Slowest to fastest device, first round", f"{statistics.median(ratios):.1f}×"))
    for run in runs:
        if run.energy_j:
            of = f" ({run.label})" if len(runs) > 1 else ""
            joules = math.fsum(run.energy_j.values())
            found.append(
                (f"Energy of local training{of}", f"{joules:,.0f} J on {len(run.energy_j)} of {len(_devices(run))}")
            )
    return found


def table_note(runs: Sequence[Run], base: Run) -> str:
    """How the speed-up was counted."""
    shared = {gain[1] for run in runs if run is not base and (gain := compare.speed_up(run, base)) is not None}
    over = f"the first {min(shared)}" if len(shared) == 1 else "those"
    text = (
        f"Speed-up: {clock(runs)} of {base.label} divided by that of the run, over {over} rounds that both finished. "
        "Time to an accuracy is that of the first evaluation that reached it."
    )
    calibrated = [run.label for run in runs if run.calibration_s]
    if calibrated:
        text += f" Times and bytes of {listed(calibrated)} hold the one calibration that the model in use needs."
    return text


def devices_note(runs: Sequence[Run]) -> str:
    """How to read the figures about devices."""
    text = "Update time counts from send to receipt: download, local training, upload. "
    text += "The colour runs from orange, the fastest device, to violet, the slowest."
    if any(run.rejected for run in runs):
        text += " A cross is an update that was rejected."
    whole = [run.label for run in runs if not run.prunes]
    if whole:
        where = f" in {listed(whole)}" if len(runs) > 1 else ""
        text += f" Every device kept the whole model{where}."
    return text


def percent(share: float) -> str:
    """Without decimals where there are none."""
    text = f"{share:.1%}"
    return text.replace(".0%", "%")


def clock(runs: Sequence[Run]) -> str:
    """What the runs' seconds are to be called."""
    kinds = {run.virtual for run in runs}
    return "time" if len(kinds) > 1 else "virtual time" if kinds == {True} else "real time"


def provenance(runs: Sequence[Run]) -> str:
    """Where the seconds come from: nobody may take computed ones for times of a real board."""
    computed = [run for run in runs if run.virtual]
    clocked = [run.label for run in runs if not run.virtual]
    parts = [_computed(computed)] if computed else []
    if clocked:
        of = f" of {listed(clocked)}" if computed else ""
        parts.append(f"Time{of} was clocked by the server, from sending to the last answer of every round.")
    parts.append("Accuracy and bytes come from real training.")
    return " ".join(parts)


def _computed(runs: Sequence[Run]) -> str:
    machines = []
    for run in runs:
        source = run.summary.get("latency_source")
        machine = source.get("machine") if isinstance(source, dict) else None
        cpu = machine.get("cpu") if isinstance(machine, dict) else None
        if isinstance(cpu, str) and cpu and cpu not in machines:
            machines.append(cpu)
    measured = f" measured on {listed(machines)}" if machines else ""
    return (
        f"Virtual time is computed, not clocked: training-step times{measured} are scaled to each device of the fleet, "
        "and its link is charged for the bytes that were really encoded."
    )


def describe_accuracy(runs: Sequence[Run], kind: str) -> str:
    """The curves, for readers who do not see them."""
    parts = []
    for run in runs:
        if run.final is None:
            continue
        where = style.shown_time(run.final.time_s) if kind == "time" else style.shown_bytes(run.final.sent_bytes)
        parts.append(f"{run.label} ends at {run.final.accuracy:.1%} after {where}")
    axis = clock(runs) if kind == "time" else "bytes sent"
    return f"Line chart of accuracy against {axis}. {'; '.join(parts)}."


def describe_times(run: Run) -> str:
    """Update times at the first and the last round."""
    first, last = _at_end(run.times, 0), _at_end(run.times, -1)
    return (
        f"Line chart of the update time of {len(run.times)} devices over {run.rounds} rounds of {run.label}. "
        f"First round: {_range(first)}. Last round: {_range(last)}."
    )


def describe_retention(run: Run) -> str:
    """Retention at the last round."""
    last = _at_end(run.retention, -1)
    return (
        f"Line chart of the share of channels kept by {len(run.retention)} devices over {run.rounds} rounds of "
        f"{run.label}. Last round: {min(last):.0%} to {max(last):.0%}, median {statistics.median(last):.0%}."
    )


def accuracy(evaluation: Evaluation | None) -> str:
    """As a percentage with two decimals, or a dash."""
    return "–" if evaluation is None else f"{evaluation.accuracy:.2%}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a``, ``a and b``, ``a, b and c``, ``a, b, c and 5 more``."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def first_spread(run: Run) -> float | None:
    """Slowest over fastest update time of the first round."""
    first = [points[0][1] for points in run.times.values() if points and points[0][1] > 0]
    return max(first) / min(first) if first else None


def _alone(run: Run) -> str:
    sent = style.shown_bytes(run.upload_bytes + run.download_bytes)
    reached = f" to {run.final.accuracy:.1%} accuracy" if run.final else ""
    devices = len(_devices(run))
    text = (
        f"{run.algorithm} {'trained' if run.ended else 'is training'} {run.task}{reached} on {devices:,} "
        f"device{'s' if devices != 1 else ''}{' in' if run.ended else ': so far'} {run.rounds:,} rounds, "
        f"{style.shown_time(run.time_s)} of {clock([run])} and {sent} sent."
    )
    last = _at_end(run.retention, -1)
    if run.prunes:
        text += f" The smallest sub-model ended with {min(last):.0%} of the channels."
    return text


def _against(run: Run, base: Run) -> str:
    if run.task != base.task:  # nothing to compare
        return _alone(run)
    gain = compare.speed_up(run, base)
    parts = []
    if gain is not None:
        ratio = gain[0]
        pace = f"{ratio:.2f}× as fast as" if ratio >= 1 else f"{1 / ratio:.2f}× slower than"
        parts.append(f"{run.label} did its rounds {pace} {base.label}")
    else:
        parts.append(f"{run.label} ran beside {base.label}")
    if run.final and base.final:
        parts.append(f"reached {run.final.accuracy:.1%} where {base.label} reached {base.final.accuracy:.1%}")
    own, other = (r.upload_bytes + r.download_bytes for r in (run, base))
    if other:
        # Per round, since the runs may differ in length.
        share = (own / run.rounds) / (other / base.rounds)
        word = f"{1 - share:.0%} fewer" if share <= 1 else f"{share - 1:.0%} more"
        parts.append(f"sent {word} bytes a round")
    return listed(parts) + "."


def _devices(run: Run) -> set[str]:
    return set(run.times) | set(run.retention)


def _setting(run: Run, section: str, key: str) -> Any:
    from edgeprune.report.series import printable

    return printable(run.config.get(section, {}).get(key, "–"))


def _at_end(series: dict[str, list[tuple[int, float]]], place: int) -> list[float]:
    return [points[place][1] for points in series.values()] or [0.0]


def _range(values: Sequence[float]) -> str:
    return f"{style.shown_time(min(values))} to {style.shown_time(max(values))}"
