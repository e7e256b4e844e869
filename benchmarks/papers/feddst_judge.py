"""What the grid of benchmarks/papers/feddst.py shows: claims F1-F8 with figure, bar and verdict, and the table."""

from __future__ import annotations

import math
import statistics
from typing import Any

import paper_runs
from adaptcl_judge import interval
from feddst_cells import CAPS, SAMPLE, WEIGHTS
from paper_runs import GIB, accuracy_at, final_accuracy, paired

Rows = dict[str, list[dict[str, Any]]]


def judge(rows: Rows) -> dict[str, Any]:
    """Every claim that there are cells for."""
    found: dict[str, Any] = {}
    for task in WEIGHTS:
        of = {row.split(" ", 1)[1]: outcomes for row, outcomes in rows.items() if row.startswith(f"{task} ")}
        if not of:
            continue
        for label, ours, theirs in (("", "feddst", "fedavgm"), (" softmax", "feddst-softmax", "fedavgm-softmax")):
            if not label:
                gap(found, f"F1 {task} run of 1 GiB", of, "feddst-1gib", "fedavgm-1gib", 1, 1, 10.0)
                gap(found, f"F2 {task} run of 1 GiB", of, "feddst-1gib", "fedavgm-1gib", 1, 2, 3.0)
                gap(found, f"F3 {task} run of 1 GiB, random", of, "feddst-1gib", "random-mask-1gib", 1, 1, None)
                gap(found, f"F3 {task} run of 1 GiB, magnitude", of, "feddst-1gib", "magnitude-mask-1gib", 1, 1, None)
            for cap in CAPS:
                gap(found, f"F1 {task}{label} {cap} GiB", of, ours, theirs, cap, cap, 10.0)
                gap(found, f"F2 {task}{label} {cap} GiB", of, ours, theirs, cap, 2 * cap, 3.0)
        for cap in CAPS:
            for fixed in ("random-mask", "magnitude-mask"):
                gap(found, f"F3 {task} against {fixed} {cap} GiB", of, "feddst", fixed, cap, cap, None)
            for tag in ("S0.9", "S0.95"):
                ours, theirs = f"feddst-{tag}", f"magnitude-mask-{tag}"
                gap(found, f"F3 {task} {tag} {cap} GiB", of, ours, theirs, cap, cap, None)
            gap(found, f"F8 {task} prox {cap} GiB", of, "feddst-prox", "fedprox", cap, cap, None)
            for row in sorted(row for row in of.keys() - {"feddst", "fedavgm"} if "1gib" not in row):
                gap(found, f"control {task} {row} {cap} GiB", of, "feddst", row, cap, cap, math.nan)
        exact(found, task, of)
        equal_rounds(found, task, of)
    return found


def gap(
    found: dict[str, Any], name: str, of: Rows, ours: str, theirs: str, cap: int, other: int, bar: float | None
) -> None:
    """``ours`` at ``cap`` GiB against ``theirs`` at ``other``; ``bar`` None: beyond the interval; nan: reported."""
    points = paired(of.get(ours, []), of.get(theirs, []), cap * GIB, other * GIB)
    if not points:
        return
    mean, half = interval(points)
    holds: bool | None
    if bar is None:
        holds, said = (mean - half > 0 if len(points) > 1 else None), "interval above 0"
    elif math.isnan(bar):
        holds, said = None, "reported"
    else:
        holds, said = mean >= bar, f">= {bar:g}"
    what = f"{ours} at {cap} GiB - {theirs} at {other} GiB, points, {len(points)} seeds"
    found[name] = {"what": what, "value": [mean, half], "bar": said, "holds": holds}


def exact(found: dict[str, Any], task: str, of: Rows) -> None:
    """F4 and F5: bytes against the values plus what a message states, and the density of every round."""
    weights, biases = WEIGHTS[task]
    for outcome in (of.get("feddst", []) or of.get("feddst-1gib", []))[:1]:
        values = SAMPLE * 4 * (round(0.2 * weights) + biases)
        plain = statistics.median(outcome["upload_bytes"])
        amortised = statistics.fmean(outcome["upload_bytes"]) / plain - 1
        over = plain / values - 1
        found[f"F4 {task}"] = {
            "what": "bytes of a round over its values; masks, amortised over the run",
            "value": [over, amortised],
            "bar": "<= 0.1 %; <= 1.1 %",
            "holds": over <= 1e-3 and amortised <= 0.011,
        }
        off = max(abs(1 - facts["density"] - 0.8) for facts in outcome["facts"].values())
        found[f"F5 {task}"] = {
            "what": "served sparsity off 0.8, worst round",
            "value": off,
            "bar": "<= 0.001",
            "holds": off <= 1e-3,
        }
        moving = [facts for facts in outcome["facts"].values() if facts.get("grown")]
        if moving:
            drift = {key: statistics.fmean(facts[key] for facts in moving) for key in ("moved", "grown", "survived")}
            found[f"F3 {task} drift"] = {
                "what": "per readjustment: share of the served mask exchanged, grown by clients, kept of it",
                "value": list(drift.values()),
                "bar": "shown",
                "holds": None,
            }


def equal_rounds(found: dict[str, Any], task: str, of: Rows) -> None:
    """F7: as many rounds for both, whatever they sent."""
    tag = "" if "feddst" in of else "-1gib"
    dense = {o["cell"]["seed"]: o for o in of.get(f"fedavgm{tag}", [])}
    points = []
    for outcome in of.get(f"feddst{tag}", []):
        other = dense.get(outcome["cell"]["seed"])
        if other:
            rounds = [r for r in other["accuracy"] if r in outcome["accuracy"]][-3:]
            points.append(100 * statistics.fmean(outcome["accuracy"][r] - other["accuracy"][r] for r in rounds))
    if points:
        value = list(interval(points))
        found[f"F7 {task}"] = {"what": "feddst - fedavgm at equal rounds, points", "value": value, "bar": "reported",
                               "holds": None}  # fmt: skip


def table(rows: Rows) -> str:
    """Accuracy of every row at every cap, and the claims."""
    lines = ["| row | seeds | " + " | ".join(f"{cap} GiB" for cap in CAPS) + " | at the end | s a round |"]
    lines.append("|" + "---|" * (len(CAPS) + 4))
    for row, outcomes in rows.items():
        cells = []
        for cap in CAPS:
            values = [a for o in outcomes if (a := accuracy_at(o, cap * GIB)) is not None]
            cells.append(_mean(values))
        wall = statistics.fmean(o["run_wall_s"] / len(o["upload_bytes"]) for o in outcomes)
        ends = _mean([final_accuracy(o) for o in outcomes])
        lines.append(f"| {row} | {len(outcomes)} | " + " | ".join(cells) + f" | {ends} | {wall:.2f} |")
    return "\n".join([*lines, *paper_runs.claims(judge(rows), rows)])


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} +- {half:.1f}"


def load() -> Rows:
    """Every outcome there is, by row."""
    return paper_runs.load("feddst")
