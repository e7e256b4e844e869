"""What the grid of benchmarks/papers/adaptcl.py shows: the claims, each with figure, bar and verdict, and the table."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import adaptcl_cells as grid
from adaptcl_cells import Cell
from scipy.stats import t as student

RESULT = Path(__file__).resolve().parents[1] / "results" / "adaptcl.json"
VERDICT = {True: "holds", False: "FAILS", None: "-"}
LOW, HIGH = (1.7, 2.0, 3.0), (10.0, 20.0)


def recharged(fedavg: dict[str, Any], sigma: float, noise: float, events: tuple[str, ...] = ()) -> list[float]:
    """FedAvg's virtual time after each round on a fleet of ``sigma``: the same bytes and steps on another clock."""
    from edgeprune import engine
    from edgeprune.engine.emulation import latency_table
    from edgeprune.fleet import Work, build_fleet, charge

    cell = Cell(**{**fedavg["cell"], "sigma": sigma, "noise": noise, "extra": events})
    experiment = engine.load_experiment(None, cell.overrides())
    prepared_table, macs = _table_and_macs(cell.task)
    table = latency_table("builtin", *prepared_table)
    fleet = build_fleet(experiment.fleet)
    recipe, total, times = fedavg["recipe"], 0.0, []
    for round_ in range(1, grid.ROUNDS + 1):
        down, up = fedavg["first_round_bytes"] if round_ == 1 else fedavg["later_round_bytes"]
        slowest = 0.0
        for device in fleet.devices:
            batches = math.ceil(fedavg["samples"][device.name] / recipe["batch_size"])
            if fedavg["samples"][device.name] % recipe["batch_size"] == 1:
                batches -= 1  # a last batch of one sample is dropped
            work = Work(
                down // grid.DEVICES, up // grid.DEVICES, recipe["epochs"] * batches, macs, rebuilds=int(round_ == 1)
            )
            slowest = max(slowest, charge(device, work, table, round_=round_, seed=cell.seed).total)
        total += slowest
        times.append(total)
    return times


_KNOWN: dict[str, Any] = {}


def _table_and_macs(task_name: str) -> tuple[Any, int]:
    """What `latency_table` wants for the task, and the whole model's multiply-adds."""
    if task_name not in _KNOWN:
        from edgeprune import engine
        from edgeprune.pruning import SubmodelPlan
        from edgeprune.pruning.cost import plan_macs

        sets = [f"task.name={task_name}", "run.threads=1", f"data.samples={grid.SAMPLES.get(task_name, 0)}"]
        prepared = engine.prepare(engine.load_experiment(None, sets))
        local = next(iter(prepared.local.values()))
        macs = plan_macs(prepared.graph, SubmodelPlan.full(prepared.graph))
        _KNOWN[task_name] = ((prepared.task, prepared.graph, local, prepared.setting.recipe), macs)
    return _KNOWN[task_name]


def load_cells() -> dict[str, dict[str, Any]]:
    """Every outcome there is, by key."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(grid.CELLS.glob("*.json"))}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % Student interval (nan for fewer than two values)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    t95 = round(float(student.ppf(0.975, len(values) - 1)), 3)  # as tables have it
    return mean, t95 * statistics.stdev(values) / math.sqrt(len(values))


def over_sigmas(rows: list[dict[str, Any]], key: str) -> list[float]:
    """``key`` of each (task, split, seed), the mean over its sigmas: they share the data and the FedAvg run that they
    are compared with, so that together they are one sample."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        found.setdefault((row["task"], row["split"], row["seed"]), []).append(row[key])
    return [statistics.fmean(values) for values in found.values()]


def final_accuracy(outcome: dict[str, Any]) -> float:
    """Mean of the last three evaluations, in per cent."""
    return 100 * statistics.fmean(list(outcome["accuracy"].values())[-3:])


def fedavg_at(fedavg: dict[str, Any], times: list[float], moment: float) -> float | None:
    """FedAvg's accuracy, in per cent, at the last evaluation before ``moment`` on the clock of ``times``."""
    reached = [value for round_, value in fedavg["accuracy"].items() if times[int(round_) - 1] <= moment]
    return 100 * reached[-1] if reached else None


def true_times(outcome: dict[str, Any]) -> list[list[float]]:
    """Update times with the clock's noise divided out: what the devices would show on average."""
    from edgeprune import engine
    from edgeprune.fleet import build_fleet
    from edgeprune.fleet.clock import luck

    cell = Cell(**{**outcome["cell"], "extra": tuple(outcome["cell"]["extra"])})
    devices = build_fleet(engine.load_experiment(None, cell.overrides()).fleet).devices
    return [
        [time / luck(device, round_, cell.seed) for device, time in zip(devices, row, strict=True)]
        for round_, row in enumerate(outcome["update_time_s"], start=1)
    ]


def spread(outcome: dict[str, Any], first: int, last: int) -> float:
    """Slowest over fastest device, by true update time, over rounds ``first`` .. ``last`` (worst round)."""
    return max(max(row) / min(row) for row in true_times(outcome)[first - 1 : last])


def judge(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The claims of docs/algorithms/adaptcl.md, from whatever cells there are."""
    runs = [outcome for outcome in found.values() if outcome["cell"]["method"] == "adaptcl"]
    base = {
        (o["cell"]["task"], o["cell"]["split"], o["cell"]["seed"]): o
        for o in found.values()
        if o["cell"]["method"] == "fedavg"
    }
    rows = []
    for outcome in runs:
        cell = outcome["cell"]
        fedavg = base.get((cell["task"], cell["split"], cell["seed"]))
        if fedavg is None:
            continue
        events = tuple(item for item in cell["extra"] if item.startswith("fleet."))
        total_times = recharged(fedavg, cell["sigma"], cell["noise"], events)
        total = total_times[-1]
        rows.append(
            {
                **{key: cell[key] for key in ("task", "split", "sigma", "noise", "seed", "label")},
                "fedavg_time_s": total,
                "adaptcl_time_s": outcome["time_s"][-1],
                "time_saved": 1 - outcome["time_s"][-1] / total,
                "speed_up": total / outcome["time_s"][-1],
                "fedavg_accuracy": final_accuracy(fedavg),
                "adaptcl_accuracy": final_accuracy(outcome),
                "equal_time_accuracy": fedavg_at(fedavg, total_times, outcome["time_s"][-1]),
                "accuracy_change": final_accuracy(outcome) - final_accuracy(fedavg),
                "spread_after_4_prunings": spread(outcome, 41, 50),
                "lag_after_4_prunings": max(max(row) / row[0] for row in true_times(outcome)[40:50]),
                "spread_at_end": spread(outcome, grid.ROUNDS - 9, grid.ROUNDS),
                "spread_after_slowdown": spread(outcome, 91, 100) if cell["label"] == "slowdown" else None,
                "retention_fastest": outcome["retention"][-1][0],
                "retention_slowest": outcome["retention"][-1][-1],
                "upload_share": outcome["upload_bytes"] / fedavg["upload_bytes"],
                "control_share": grid.ROUNDS // grid.INTERVAL * outcome["stage_s"] / outcome["time_s"][-1],
                "rebuild_share": outcome["parts_s"]["rebuild"] / outcome["time_s"][-1],
                "extra_bytes_share": outcome["overhead_bytes"] / (outcome["upload_bytes"] + outcome["download_bytes"]),
            }
        )
    return {"rows": rows, "claims": claims(rows)}


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each claim with the figure, the bar and the verdict."""
    plain = [row for row in rows if not row["label"] and row["noise"] == 0.05]
    low = [row for row in plain if row["sigma"] in LOW]
    high = [row for row in plain if row["sigma"] in HIGH]
    noisy = [row for row in rows if row["noise"] == 0.1]
    slowed = [row for row in rows if row["label"] == "slowdown"]
    result: dict[str, Any] = {}

    def claim(name: str, what: str, value: Any, bar: str, holds: bool | None) -> None:
        result[name] = {"what": what, "value": value, "bar": bar, "holds": holds}

    for task in sorted({row["task"] for row in plain}):
        upto10 = [row for row in plain if row["sigma"] <= 10 and row["task"] == task]
        worst = max(row["spread_after_4_prunings"] for row in upto10)
        late = max(row["lag_after_4_prunings"] for row in upto10)
        fastest = min(row["retention_fastest"] for row in upto10)
        claim(f"A1 {task}", "after 4 prunings, worst run with sigma <= 10: slowest/fastest of all, slowest/the fastest "
              "device; least retention of the fastest", [worst, late, fastest], "<= 1.10 both; >= 0.97",
              worst <= 1.10 and fastest >= 0.97)  # fmt: skip
    paper = [row for row in rows if row["label"] == "channels"]
    if paper:
        worst = [max(row["spread_after_4_prunings"] for row in paper if row["sigma"] == s) for s in (3.0, 10.0)]
        claim("A1 by channels", "the same with size_by = channels, digits, sigma 3 and 10", worst, "none", None)
    if slowed:
        worst = max(row["spread_after_slowdown"] for row in slowed)
        claim(
            "A2", "slowest/fastest two intervals after one device slowed 2x, worst run", worst, "<= 1.15", worst <= 1.15
        )
    if low:
        saved = interval(over_sigmas(low, "time_saved"))
        claim("A3", "time saved, mean over sigma 1.7, 2, 3, tasks, splits, seeds", saved, ">= 0.41", saved[0] >= 0.41)
        change = interval(over_sigmas(low, "accuracy_change"))
        claim(
            "A4", "accuracy against FedAvg there, points", change, "interval above -0.3", change[0] - change[1] > -0.3
        )
    for sigma in HIGH:
        some = [row for row in high if row["sigma"] == sigma]
        if some:
            speed = interval([row["speed_up"] for row in some])
            claim(f"A5 sigma {sigma:g}", "total speed-up", speed, ">= 6.2", speed[0] >= 6.2)
            for split, bar in (("iid", -1.0), ("sorted80", -2.0)):
                for task in sorted({row["task"] for row in some}):
                    there = [r["accuracy_change"] for r in some if r["split"] == split and r["task"] == task]
                    if there:
                        change = interval(there)
                        claim(f"A6 sigma {sigma:g} {task} {split}", "accuracy against FedAvg, points", change,
                              f">= {bar}", change[0] >= bar)  # fmt: skip
    if noisy:
        within = all(row["speed_up"] <= row["sigma"] for row in noisy)
        fastest = min(row["retention_fastest"] for row in noisy)
        claim("A7", "10 % noise: every speed-up <= sigma; least retention of the fastest", [within, fastest],
              "yes; >= 0.95", within and fastest >= 0.95)  # fmt: skip
    if plain:
        overhead = max(row["control_share"] + row["rebuild_share"] for row in plain)
        extra = max(row["extra_bytes_share"] for row in plain)
        claim("A9", "control + rebuild over virtual time; extra bytes over all bytes; worst run", [overhead, extra],
              "<= 0.01; <= 0.001", overhead <= 0.01 and extra <= 0.001)  # fmt: skip
    for split, own in (("sorted80", "worker"), ("iid", "unit")):
        there = [row for row in rows if row["split"] == split and row["noise"] == 0.05 and row["task"] == "digits"]
        others = [row for row in there if row["label"] in ("unit", "worker", "delta")]
        for sigma in sorted({row["sigma"] for row in others}):
            for label in ("", *sorted({row["label"] for row in others})):
                some = [row["accuracy_change"] for row in there if (row["sigma"], row["label"]) == (sigma, label)]
                by = label or own
                claim(f"merging by {by}, digits {split}, sigma {sigma:g}", "accuracy against FedAvg, points",
                      interval(some), "none", None)  # fmt: skip
    for task in sorted({row["task"] for row in rows}):
        curve = knob(rows, task)
        if len(curve) >= 4:
            times, accuracies = [point["time_s"] for point in curve], [point["accuracy"] for point in curve]
            monotone = times == sorted(times) and accuracies == sorted(accuracies)
            claim(
                f"A12 {task}",
                "gamma_min -> (time, accuracy), sorted80, sigma 20",
                curve,
                "monotone, >= 4 points",
                monotone,
            )
    return result


def knob(rows: list[dict[str, Any]], task: str) -> list[dict[str, float]]:
    """Mean time and accuracy for each floor of retention, smallest floor first."""
    points = []
    for floor in ("", "floor0.35", "floor0.5", "floor0.65", "floor0.8"):
        some = [
            row
            for row in rows
            if row["task"] == task and row["split"] == "sorted80" and row["sigma"] == 20 and row["label"] == floor
        ]
        if some:
            points.append(
                {
                    "gamma_min": float(floor[5:] or 0.05),
                    "time_s": statistics.fmean(row["adaptcl_time_s"] for row in some),
                    "accuracy": statistics.fmean(row["adaptcl_accuracy"] for row in some),
                    "seeds": len(some),
                }
            )
    return points


def table(found: dict[str, dict[str, Any]]) -> str:
    """The table of docs/measured.md: one row for each (task, split, sigma)."""
    judged = judge(found)
    any_cell = next(iter(found.values()))
    RESULT.write_text(
        json.dumps(
            {
                "what": "AdaptCL against synchronous FedAvg, virtual time; benchmarks/papers/adaptcl.py",
                "rounds": grid.ROUNDS,
                "interval": grid.INTERVAL,
                "devices": grid.DEVICES,
                "machine": any_cell["machine"],
                "step_times": any_cell["latency_source"],
                **judged,
            },
            indent=1,
        )
    )
    lines = [
        "| task | split | sigma | FedAvg | AdaptCL | change | time saved | speed-up | upload | slowest/fastest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = [row for row in judged["rows"] if not row["label"] and row["noise"] == 0.05]
    for key in sorted({(row["task"], row["split"], row["sigma"]) for row in plain}):
        some = [row for row in plain if (row["task"], row["split"], row["sigma"]) == key]

        def mean(name: str, rows: list[dict[str, Any]] = some) -> float:
            return statistics.fmean(row[name] for row in rows)

        change, half = interval([row["accuracy_change"] for row in some])
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]:g} "
            f"| {mean('fedavg_accuracy'):.1f} % | {mean('adaptcl_accuracy'):.1f} % | "
            f"{change:+.2f} ± {half:.2f} | {mean('time_saved'):.0%} | {mean('speed_up'):.1f}x | "
            f"{mean('upload_share'):.0%} | {mean('spread_at_end'):.2f} |"
        )
    for name, claim in judged["claims"].items():
        lines.append(f"{name}: {VERDICT[claim['holds']]} {claim['value']} ({claim['what']}; {claim['bar']})")
    return "\n".join(lines)
