"""What the grid of benchmarks/papers/mpfl.py shows: claims M1-M6 with figure, bar and verdict, and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import paper_runs
from adaptcl_judge import interval
from mpfl_cells import NODES, PRUNED, SPLITS, TASKS
from paper_runs import final_accuracy, pairs

Rows = dict[str, list[dict[str, Any]]]


def judge(rows: Rows) -> dict[str, Any]:
    """Every claim that there are cells for."""
    found: dict[str, Any] = {"M1 resnet-18": mask_bytes()}
    for task in TASKS:
        for split in SPLITS:
            head = f"{task}-{split}"
            of = {
                row.removeprefix(f"{head}-"): outcomes for row, outcomes in rows.items() if row.startswith(f"{head}-")
            }
            for share in PRUNED:
                tag = f"-{round(100 * share)}"
                at_sparsity(found, f"{head} {round(100 * share)} %", of, tag)
    return found


def at_sparsity(found: dict[str, Any], name: str, of: Rows, tag: str) -> None:
    """M2 to M6 at one sparsity."""
    ours = f"exact{tag}"
    gap(found, f"M2 {name} one-shot", of, ours, f"oneshot{tag}", "mean >= 0", lambda m, h: m >= 0)
    gap(found, f"M2 {name} central", of, ours, f"central{tag}", ">= -2", lambda m, h: m >= -2)
    gap(found, f"M3 {name} random", of, ours, f"random{tag}", "interval above 0", lambda m, h: m - h > 0)
    gap(found, f"M3 {name} single", of, ours, f"single{tag}", "interval above 0", lambda m, h: m - h > 0)
    gap(found, f"M4 {name}", of, f"shuffled{tag}", ours, "below 1 either way", lambda m, h: abs(m) < 1)
    for other in ("majority", "public"):
        gap(found, f"rules {name} {other}", of, ours, f"{other}{tag}", "reported", None)
    fewer_bytes(found, f"M5 {name}", pairs(of, ours, "fedavg"))
    fewer_bytes(found, f"M5 {name}, three times as many rounds", pairs(of, f"{ours}-long", "fedavg"))
    agree = {kind: [agreement(o) for o in of.get(f"{kind}{tag}", [])] for kind in ("exact", "oneshot")}
    if all(len(values) > 1 for values in agree.values()):
        spread = {kind: statistics.stdev(final_accuracy(o) for o in of[f"{kind}{tag}"]) for kind in agree}
        means = {kind: statistics.fmean(values) for kind, values in agree.items()}
        found[f"M6 {name}"] = {
            "what": "agreement of the nodes' last votes, seed deviation in points: iterative, one-shot of each",
            "value": [means["exact"], means["oneshot"], spread["exact"], spread["oneshot"]],
            "bar": "both better",
            "holds": means["exact"] > means["oneshot"] and spread["exact"] < spread["oneshot"],
        }


def fewer_bytes(found: dict[str, Any], name: str, runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """M5 of runs with dense ones of the same seeds. It holds where every seed gets there."""
    for evaluations, tag in ((1, ""), (3, ", mean of three evaluations")):
        saved = [s for ours, dense in runs if (s := bytes_saved(ours, dense, evaluations)) is not None]
        if runs:
            mean, half = interval(saved) if saved else (math.nan, math.nan)
            reached = f"reached in {len(saved)} of {len(runs)} seeds"
            found[name + tag] = {
                "what": f"uploads to dense averaging's accuracy less 1 point: share saved; {reached}",
                "value": [mean, half] if saved else [],
                "bar": ">= 0.5",
                "holds": len(saved) == len(runs) and mean >= 0.5,
            }


def gap(
    found: dict[str, Any],
    name: str,
    of: Rows,
    ours: str,
    theirs: str,
    bar: str,
    holds: Callable[[float, float], bool] | None,
) -> None:
    """Points between two rows at the end, seed by seed."""
    points = [final_accuracy(a) - final_accuracy(b) for a, b in pairs(of, ours, theirs)]
    if points:
        mean, half = interval(points)
        what = f"{ours} - {theirs}, points, {len(points)} seeds"
        verdict = holds(mean, half) if holds else None
        found[name] = {"what": what, "value": [mean, half], "bar": bar, "holds": verdict}


def bytes_saved(ours: dict[str, Any], dense: dict[str, Any], evaluations: int = 1) -> float | None:
    """1 - our uploads / dense averaging's, each until so many evaluations in a row have the dense end's accuracy less
    one point as their mean; the search is part of ours. None where it is not reached."""
    target = final_accuracy(dense) / 100 - 0.01
    ends = [reaching(outcome["accuracy"], target, evaluations) for outcome in (ours, dense)]
    if ends[0] is None or ends[1] is None:
        return None
    return 1 - sum(ours["upload_bytes"][: ends[0]]) / sum(dense["upload_bytes"][: ends[1]])


def reaching(accuracy: dict[str, float], target: float, evaluations: int) -> int | None:
    """The first round of which that many evaluations, the last ones then, have a mean of ``target``."""
    rounds, values = [int(r) for r in accuracy], list(accuracy.values())
    for end in range(evaluations, len(values) + 1):
        if statistics.fmean(values[end - evaluations : end]) >= target:
            return rounds[end - 1]
    return None


def agreement(outcome: dict[str, Any]) -> float:
    """Of the last votes of the search."""
    return float([facts["agreement"] for facts in outcome["facts"].values() if "agreement" in facts][-1])


def mask_bytes(iterations: int = 10) -> dict[str, Any]:
    """M1: what a node sends in a whole search for ResNet-18 (widths 64 to 512), whole messages, against its weights."""
    import torch

    from edgeprune import wire
    from edgeprune.pruning import ChannelGraph, SubmodelPlan
    from edgeprune.tasks.models import resnet_like

    model = resnet_like((64, 128, 256, 512))
    plan = SubmodelPlan.full(ChannelGraph.trace(model, (torch.zeros(2, 3, 32, 32),)))
    header = {"loss": 1.2345678901234567, "steps": 100}
    message = wire.Message("update", 1, "device-0", plan.id, {}, header, samples=600, kept=plan.kept_bytes())
    dense = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    share = iterations * len(wire.encode(message)) / dense
    what = f"{iterations} x {len(wire.encode(message))} B of masks a node over {dense / 1e6:.1f} MB of weights"
    return {"what": what, "value": share, "bar": "< 0.0002", "holds": share < 2e-4}


def table(rows: Rows) -> str:
    """Every row at its end, and the claims."""
    lines = ["| row | seeds | accuracy | MB up a node, search + training | s a round |", "|---|---|---|---|---|"]
    for row, outcomes in rows.items():
        mean, half = interval([final_accuracy(o) for o in outcomes])
        sent = statistics.fmean(sum(o["upload_bytes"]) for o in outcomes) / NODES / 1e6
        wall = statistics.median(o["run_wall_s"] / len(o["upload_bytes"]) for o in outcomes)
        shown = f"{mean:.1f}" if half != half else f"{mean:.1f} +- {half:.1f}"
        lines.append(f"| {row} | {len(outcomes)} | {shown} | {sent:.3f} | {wall:.2f} |")
    return "\n".join([*lines, *paper_runs.claims(judge(rows), rows)])


def load() -> Rows:
    """Every outcome there is, by row."""
    return paper_runs.load("mpfl")
