"""What the grid of benchmarks/papers/feddst.py shows: claims F1-F8 with figure, bar and verdict, and the table.

Intervals are 95 % Student intervals over the seeds (half widths; three seeds: t = 4.30), paired where methods are
compared.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import paper_runs
from adaptcl_judge import interval
from feddst_cells import CAPS, SAMPLE, WEIGHTS
from paper_runs import GIB, accuracy_at, final_accuracy, paired

from edgeprune.algorithms import FedDST

Rows = dict[str, list[dict[str, Any]]]
MAIN = "cifar10-feddst"
CONTROLS = (
    "fedavgm-fp16",
    "fedavgm-int8",
    "topk",
    "fedavgm-server",
    "fedavg",
    "fedprox",
    "fedavgm-lr0.003",
    "fedavgm-lr0.03",
    "fedavgm-lr0.1",
    "small-dense",
    "prunefl-like",
)


def judge(rows: Rows) -> dict[str, Any]:
    """Every claim that there are cells for."""
    found: dict[str, Any] = {}
    for task in WEIGHTS:
        of = {row.split(" ", 1)[1]: outcomes for row, outcomes in rows.items() if row.startswith(f"{task} ")}
        if not of:
            continue
        if task == MAIN:
            against_dense(found, of)
            dynamics(found, of)
            controls(found, of)
        else:
            for cap in CAPS:
                gap(found, f"F6 {task} {cap} GiB", of, "feddst", "fedavgm", cap, cap, 0.0)
                gap(found, f"F6 {task} {cap} GiB, FedAvgM twice", of, "feddst", "fedavgm", cap, 2 * cap, 0.0)
        exact(found, task, of)
        drift(found, task, of)
        tag = "" if {"feddst", "fedavgm"} <= of.keys() else "-1gib"
        equal_rounds(found, f"F7 {task}", of, f"feddst{tag}", f"fedavgm{tag}")
    return found


def against_dense(found: dict[str, Any], of: Rows) -> None:
    """F1 and F2, with logits and with the public softmax. A run of 1 GiB is no beginning of one of 8."""
    for cap in CAPS:
        for label, ours, theirs in (("", "feddst", "fedavgm"), (" softmax", "feddst-softmax", "fedavgm-softmax")):
            gap(found, f"F1{label} {cap} GiB", of, ours, theirs, cap, cap, 10.0)
            gap(found, f"F2{label} {cap} GiB", of, ours, theirs, cap, 2 * cap, 3.0)
        gap(found, f"F1 as the public code {cap} GiB", of, "feddst-public", "fedavgm-softmax", cap, cap, 10.0)
    gap(found, "F1 run of 1 GiB", of, "feddst-1gib", "fedavgm-1gib", 1, 1, 10.0)
    gap(found, "F2 run of 1 GiB", of, "feddst-1gib", "fedavgm-1gib", 1, 2, 3.0)


def dynamics(found: dict[str, Any], of: Rows) -> None:
    """F3: FedDST against the fixed masks, over caps, sparsities, layer densities and alphas."""
    for fixed in ("random-mask", "magnitude-mask"):
        for cap in CAPS:
            gap(found, f"F3 against {fixed} {cap} GiB", of, "feddst", fixed, cap, cap, None)
        gap(found, f"F3 against {fixed}, run of 1 GiB", of, "feddst-1gib", f"{fixed}-1gib", 1, 1, None)
        for tag in ("S0.9", "S0.95", "layers-uniform", "layers-public"):
            gap(found, f"F3 against {fixed}, {tag}", of, f"feddst-{tag}", f"{fixed}-{tag}", 1, 1, None)
    for row in sorted(row for row in of if row.startswith(("feddst-alpha", "feddst-S", "feddst-layers"))):
        gap(found, f"F3 {row}", of, row, "feddst-1gib", 1, 1, math.nan)


def controls(found: dict[str, Any], of: Rows) -> None:
    """F8, the controls beside F1, and FedDST at a quarter of its bytes; runs of 1 GiB."""
    gap(found, "F8 prox 1 GiB", of, "feddst-prox", "fedprox", 1, 1, math.nan)
    for row in CONTROLS:
        gap(found, f"control {row} 1 GiB", of, "feddst-1gib", row, 1, 1, math.nan)
    equal_rounds(found, "int8 with feedback", of, "feddst-int8", "feddst-1gib")
    small, whole = of.get("feddst-int8", []), of.get("feddst-1gib", [])
    if small and whole:
        rounds = len(small[0]["upload_bytes"])
        share = sum(small[0]["upload_bytes"]) / sum(whole[0]["upload_bytes"][:rounds])
        found["int8 with feedback, bytes"] = reported("bytes of feddst's, as many rounds", share)


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
        holds, said = (mean >= bar if bar else mean > 0), f">= {bar:g}" if bar else "> 0"
    what = f"{ours} at {cap} GiB - {theirs} at {other} GiB, points, {len(points)} seeds"
    found[name] = {"what": what, "value": [mean, half], "bar": said, "holds": holds}


def exact(found: dict[str, Any], task: str, of: Rows) -> None:
    """F4 and F5: bytes against the values plus what a message states, and the density of every round of every seed."""
    weights, biases = WEIGHTS[task]
    outcomes = of.get("feddst", []) or of.get("feddst-1gib", [])
    if outcomes:
        values = SAMPLE * 4 * (round(0.2 * weights) + biases)
        plain = [statistics.median(o["upload_bytes"]) for o in outcomes]
        over = max(bytes_ / values - 1 for bytes_ in plain)
        pairs = zip(outcomes, plain, strict=True)
        amortised = max(statistics.fmean(o["upload_bytes"]) / bytes_ - 1 for o, bytes_ in pairs)
        found[f"F4 {task}"] = {
            "what": "bytes of a round over its values; masks, amortised over the run; worst seed",
            "value": [over, amortised],
            "bar": "<= 0.1 %; <= 1.1 %",
            "holds": over <= 1e-3 and amortised <= 0.011,
        }
    off = [
        abs(1 - facts["density"] - sparsity_of(outcome))
        for row, each in of.items()
        if row != "feddst-public"  # its growth loses weights
        for outcome in each
        for facts in outcome["facts"].values()
        if "density" in facts
    ]
    if off:
        found[f"F5 {task}"] = {
            "what": f"served sparsity off S, worst of {len(off):,} rounds",
            "value": max(off),
            "bar": "<= 0.001",
            "holds": max(off) <= 1e-3,
        }


def sparsity_of(outcome: dict[str, Any]) -> float:
    """S of a cell."""
    said = [text for text in outcome["cell"]["sets"] if text.startswith("algorithm.sparsity=")]
    return float(said[-1].partition("=")[2]) if said else FedDST().sparsity


def drift(found: dict[str, Any], task: str, of: Rows) -> None:
    """F3: how far masks move, by row."""
    for row, outcomes in sorted(of.items()):
        moving = [facts for o in outcomes for facts in o["facts"].values() if facts.get("grown") or facts.get("moved")]
        if moving:
            shares = [statistics.fmean(facts[key] for facts in moving) for key in ("moved", "grown", "survived")]
            what = "per readjustment: share of the served mask exchanged, grown by clients, kept of the grown"
            found[f"F3 {task} drift {row}"] = reported(what, shares)


def equal_rounds(found: dict[str, Any], name: str, of: Rows, ours: str, theirs: str) -> None:
    """As many rounds for both, whatever they sent: the last three that both were judged after."""
    other = {o["cell"]["seed"]: o for o in of.get(theirs, [])}
    points = []
    for outcome in of.get(ours, []):
        against = other.get(outcome["cell"]["seed"])
        if against:
            rounds = [r for r in against["accuracy"] if r in outcome["accuracy"]][-3:]
            points.append(100 * statistics.fmean(outcome["accuracy"][r] - against["accuracy"][r] for r in rounds))
            last = rounds[-1]
    if points:
        what = f"{ours} - {theirs} after {last} rounds each, points, {len(points)} seeds"
        found[name] = reported(what, list(interval(points)))


def reported(what: str, value: Any) -> dict[str, Any]:
    """A figure without a bar."""
    return {"what": what, "value": value, "bar": "reported", "holds": None}


def table(rows: Rows) -> str:
    """Accuracy of every row at every cap, and the claims."""
    lines = ["| row | seeds | " + " | ".join(f"{cap} GiB" for cap in CAPS) + " | at the end | s a round |"]
    lines.append("|" + "---|" * (len(CAPS) + 4))
    for row, outcomes in rows.items():
        cells = []
        for cap in CAPS:
            values = [a for o in outcomes if (a := accuracy_at(o, cap * GIB)) is not None]
            cells.append(_mean(values))
        wall = statistics.median(o["run_wall_s"] / len(o["upload_bytes"]) for o in outcomes)
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
