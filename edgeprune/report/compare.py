"""Figures that need more than one run: who is the baseline, how much faster, what was set differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.report.series import Run


def baseline(runs: Sequence[Run]) -> Run:
    """The run that the others are measured against: the first FedAvg run, else the first run."""
    return next((run for run in runs if run.algorithm == "fedavg"), runs[0])


def speed_up(run: Run, base: Run) -> tuple[float, int] | None:
    """(time of ``base`` / that of ``run``, rounds): both over the rounds that both finished.

    None if there are no such rounds, for a virtual clock against a real one, and for another task."""
    if run.virtual != base.virtual or run.task != base.task:
        return None
    shared = sorted({number for number, _ in run.ends} & {number for number, _ in base.ends})
    if not shared:
        return None
    own, other = run.time_at(shared[-1]), base.time_at(shared[-1])
    if not own or not other:
        return None
    return other / own, shared[-1]


def common_accuracy(runs: Sequence[Run]) -> float | None:
    """The highest whole percent (or tenth, above 95 %) that every run reached: a goal to race to. None where there is
    none, or the runs' tasks differ."""
    bests = [run.best for run in runs]
    if len({run.task for run in runs}) != 1 or any(best is None for best in bests):
        return None
    least = min(best.accuracy for best in bests if best is not None)
    step = 1000 if least >= 0.95 else 100
    return int(least * step + 1e-9) / step


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, the value in each run) for every configuration key that all runs have and do not agree on."""
    flat = [_flat(run.config) for run in runs]
    keys = [key for key in flat[0] if all(key in config for config in flat)]
    rows = [(key, [_shown(config[key]) for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, table in config.items()
        if isinstance(table, dict)
        for key, value in table.items()
    }


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
