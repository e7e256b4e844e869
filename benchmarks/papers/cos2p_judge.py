"""What the grid of benchmarks/papers/cos2p.py shows: claims B1-B10 with figure, bar and verdict."""

from __future__ import annotations

import json
import statistics
from typing import Any

import paper_runs
from adaptcl_judge import interval
from cos2p_cells import SETTINGS
from paper_runs import RESULTS, claims, final_accuracy, pairs

Rows = dict[str, list[dict[str, Any]]]
LIMITED = (0.75, 0.5, 0.25)
SYNCHRONOUS = ("heterofl", "fedrolex", "fits")
ABLATIONS = ("random", "magnitude", "no-transfer", "no-importance", "no-staleness", "unit")


def load() -> Rows:
    """Every outcome there is, by row."""
    return paper_runs.load("cos2p")


def judge(rows: Rows) -> dict[str, Any]:
    """Every claim that there are cells or measurements for."""
    found: dict[str, Any] = {}
    times = _read("cos2p_times")
    measured(found, times)
    gaps: list[float] = []
    for task in SETTINGS:
        of = {row.removeprefix(f"{task}-"): outcomes for row, outcomes in rows.items() if row.startswith(f"{task}-")}
        if of:
            gaps += accuracy(found, task, of)
            engine_claims(found, task, of)
            ablations(found, task, of)
            crossings(found, task, of)
    if gaps:
        found["B2 all"] = claim(
            "points over the best equal-budget baseline of the cell: best, mean, worst",
            [max(gaps), statistics.fmean(gaps), min(gaps)],
            "best >= 8.8",
            max(gaps) >= 8.8,
        )
    for one in _read("cos2p_masks"):
        found[f"B8 {one['task']} {one['backbone']}"] = claim(
            "Spearman of mask and label distances over pairs of clients, p of a permutation test",
            [one["spearman"], one["p"]],
            "> 0, p < 0.01",
            one["spearman"] > 0 and one["p"] < 0.01,
        )
    gradients(found, _read("cos2p_slope"))
    both_kinds(found)
    return found


def both_kinds(found: dict[str, Any]) -> None:
    """B10: what was found on the ViT and on the text network, side by side."""
    labels = [name.removeprefix("B2 vit ") for name in found if name.startswith("B2 vit ")]
    wanted = {f"B10 {label} over baselines": f"B2 {{}} {label}" for label in labels}
    wanted |= {f"B10 {part}": f"B6 {{}} {part}" for part in ABLATIONS}
    for name, row in wanted.items():
        vision, text = (found.get(row.format(task)) for task in ("vit", "text"))
        if vision and text:
            values = [vision["value"][0], text["value"][0]]
            found[name] = claim("points on the ViT, on the text", values, "same sign", values[0] * values[1] > 0)
    ratios = [found[row]["value"][0] for task in ("vit", "text") if (row := f"B3 {task} relative") in found]
    if len(ratios) == 2:
        found["B10 utilisation"] = claim(
            "ratio to the best baseline on the ViT, on the text", ratios, "both > 1", min(ratios) > 1
        )


def gradients(found: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """B9 from cos2p_slope.json."""
    if not runs:
        return
    slope, half = interval([run["slope"] for run in runs])
    found["B9 slope"] = claim(
        f"slope of the mean squared gradient over rounds, log-log, {len(runs)} runs with interval",
        [slope, half],
        "-0.6 to -0.4",
        -0.6 <= slope <= -0.4,
    )
    covered = sorted({run["coverage"]["least"] for run in runs})
    means = [statistics.fmean(r["mean_squared_gradient"] for r in runs if r["coverage"]["least"] == n) for n in covered]
    found["B9 coverage"] = claim(
        f"the mean at the end with N* = {', '.join(map(str, covered))}",
        means,
        "falls with N*",
        means == sorted(means, reverse=True),
    )


def measured(found: dict[str, Any], times: list[dict[str, Any]]) -> None:
    """B1, B4 and B5 from cos2p_times.json."""
    for entry in times:
        rows = {(row.get("kind"), row["rate"]): row for row in entry["rows"]}
        if entry["task"] == "large":
            share = [row["share"] for row in entry["rows"]]
            found["B1 0.11 billion"] = claim(
                "share of the parameters by class", share, "smallest <= 0.06", share[-1] <= 0.06
            )
            fits = all(row["measured_bytes"] <= 1.25 * row["account_bytes"] for row in entry["rows"])
            found["B1 account"] = claim(
                "peak of one real step over the account of weights, gradients and momentum",
                [row["measured_bytes"] / row["account_bytes"] for row in entry["rows"]],
                "<= 1.25",
                fits,
            )
            continue
        whole = rows["cos2p", 1.0]["parameters"]
        small = rows["cos2p", 0.25]["parameters"] / whole
        found[f"B1 {entry['task']}"] = claim("parameters of the smallest class", [small], "<= 0.06", small <= 0.06)
        for key, name, what in (
            ("peak_bytes", "B4", "peak memory against width alone at the same rate .75, .5, .25"),
            ("step_ms", "B5", "time of a step against width alone at the same rate .75, .5, .25"),
        ):
            if key in rows["cos2p", 1.0]:
                change = [rows["cos2p", r][key] / rows["width", r][key] - 1 for r in LIMITED]
                bar = -0.22 if name == "B4" else -0.24
                found[f"{name} {entry['task']}"] = claim(what, change, f"<= {bar}", max(change) <= bar)
        if "peak_bytes" in rows["mask", 0.5]:
            change = [rows["mask", r]["peak_bytes"] / rows["width", r]["peak_bytes"] - 1 for r in LIMITED]
            found[f"B4 {entry['task']} mask"] = claim(
                "the same while the mask is learnt, at full width", change, "<= -0.22", max(change) <= -0.22
            )
        # The mask costs 2 epochs at full width, over a run of 60 epochs.
        change = [
            (58 * rows["cos2p", r]["step_ms"] + 2 * rows["mask", r]["step_ms"]) / (60 * rows["width", r]["step_ms"]) - 1
            for r in LIMITED
        ]
        found[f"B5 {entry['task']} with masks"] = claim(
            "training time of 60 epochs, two of them for the mask", change, "<= -0.24", max(change) <= -0.24
        )


def accuracy(found: dict[str, Any], task: str, of: Rows) -> list[float]:
    """B2, for each of the two staleness formulas; of ours, seed by seed the points over the best baseline."""
    gaps: list[float] = []
    for row in ("cos2p", "relative"):
        each = []
        for outcome in of.get(row, []):
            seed = outcome["cell"]["seed"]
            others = [final_accuracy(o) for name in SYNCHRONOUS for o in of.get(name, []) if o["cell"]["seed"] == seed]
            if len(others) == len(SYNCHRONOUS):
                each.append(final_accuracy(outcome) - max(others))
        if each:
            found[f"B2 {task} {row}"] = claim(
                "points over the best of HeteroFL, FedRolex and FedAvg on what fits",
                spread(each),
                "> 0",
                min(each) > 0,
            )
            gaps += each if row == "relative" else []
        if early := [gap for outcome in of.get(row, []) if (gap := gap_at_equal_time(of, outcome)) is not None]:
            found[f"B2 {task} {row} at equal time"] = claim(
                "the same when the clock of each baseline stands where ours ended", spread(early), "> 0", min(early) > 0
            )
    for name in ("cos2p", "relative", *SYNCHRONOUS):
        if name in of:
            values = [final_accuracy(o) for o in of[name]]
            found[f"accuracy {task} {name}"] = claim(
                "per cent at the end", [statistics.fmean(values)], "reported", None
            )
    return gaps


def gap_at_equal_time(of: Rows, ours: dict[str, Any]) -> float | None:
    """Points over the best baseline as it was at the virtual time at which ``ours`` ended, or at its own end where that
    came first (means of three evaluations); None where a baseline of that seed is missing or had not been evaluated
    three times by then."""
    seed, best = ours["cell"]["seed"], []
    for name in SYNCHRONOUS:
        for other in of.get(name, []):
            if other["cell"]["seed"] == seed and "time_s" in other:
                ended, times = ours["virtual_s"], other["time_s"]
                by_then = [a for round_, a in other["accuracy"].items() if times[int(round_) - 1] <= ended]
                best += [100 * statistics.fmean(by_then[-3:])] if len(by_then) >= 3 else []
    return final_accuracy(ours) - max(best) if len(best) == len(SYNCHRONOUS) else None


def engine_claims(found: dict[str, Any], task: str, of: Rows) -> None:
    """B3 and B7."""
    best = max((statistics.fmean(o["utilisation"] for o in of[n]) for n in SYNCHRONOUS if n in of), default=None)
    for name in ("relative", "k16"):
        if name in of and best:
            ratio = statistics.fmean(o["utilisation"] for o in of[name]) / best
            bar = ">= 1.2" if name == "relative" else "the part left at equal synchrony"
            found[f"B3 {task} {name}"] = claim(
                "utilisation over the best synchronous baseline's",
                [ratio],
                bar,
                ratio >= 1.2 if name == "relative" else None,
            )
    if "k16" not in of:
        return
    for name in ("k8", "relative", "k14"):
        if both := pairs(of, name, "k16"):
            time = statistics.fmean(a["virtual_s"] / b["virtual_s"] for a, b in both)
            points = statistics.fmean(final_accuracy(a) - final_accuracy(b) for a, b in both)
            found[f"B7 {task} {name}"] = claim(
                "time and points against waiting for all, at equally many updates",
                [time, points],
                "<= 1, >= -0.5",
                time <= 1 and points >= -0.5,
            )


def ablations(found: dict[str, Any], task: str, of: Rows) -> None:
    """B6: points that the whole is ahead of itself with one component less (of the row 'relative'; 'no-staleness' of
    the paper's formula as well)."""
    for name in ABLATIONS:
        gaps = [final_accuracy(a) - final_accuracy(b) for a, b in pairs(of, "relative", name)]
        if gaps:
            found[f"B6 {task} {name}"] = claim("points ahead of it", spread(gaps), "reported", None)


def crossings(found: dict[str, Any], task: str, of: Rows) -> None:
    """What rates by profile change, waiting for 10 or for all, and what K of N still saves where workers are equal."""
    for label, ours, theirs in (
        ("rates by profile, K 10", "rates-by-profile-k10", "table-on-profile-k10"),
        ("rates by profile, all", "rates-by-profile-k16", "table-on-profile-k16"),
        ("K 10 of a table's workers", "table-on-profile-k10", "table-on-profile-k16"),
        ("K 10 of equalised workers", "rates-by-profile-k10", "rates-by-profile-k16"),
    ):
        if both := pairs(of, ours, theirs):
            found[f"X {task} {label}"] = claim(
                f"{ours} against {theirs}: time, utilisation, points with interval",
                [
                    statistics.fmean(a["virtual_s"] / b["virtual_s"] for a, b in both),
                    statistics.fmean(a["utilisation"] / b["utilisation"] for a, b in both),
                    *spread([final_accuracy(a) - final_accuracy(b) for a, b in both]),
                ],
                "reported",
                None,
            )


def spread(values: list[float]) -> list[float]:
    """Mean and half width of its interval, or the one value there is."""
    return list(interval(values)) if len(values) > 1 else values


def claim(what: str, value: list[float], bar: str, holds: bool | None) -> dict[str, Any]:
    return {"what": what, "value": value, "bar": bar, "holds": holds}


def table(rows: Rows) -> str:
    """Every claim, as markdown."""
    return "\n".join(claims(judge(rows), rows))


def _read(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text())["results"]) if path.exists() else []
