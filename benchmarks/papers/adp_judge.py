"""What the grid of benchmarks/papers/adp.py shows: claims D1-D5 with figure, bar and verdict."""

from __future__ import annotations

import json
import statistics
from typing import Any

import paper_runs
from adaptcl_judge import interval
from adp_cells import SPLITS
from paper_runs import RESULTS, claims, final_accuracy

Rows = dict[str, list[dict[str, Any]]]


def load() -> Rows:
    """Every outcome there is, by row."""
    return paper_runs.load("adp")


def judge(rows: Rows) -> dict[str, Any]:
    """Every claim that there are cells or measurements for."""
    found: dict[str, Any] = {}
    quality(found, rows)
    adaptivity(found, rows)
    latency(found)
    vgg(found)
    return found


def quality(found: dict[str, Any], rows: Rows) -> None:
    """D1 and D2."""
    for how, gated, dense in (("FedAvg", "gated-0.1", "dense-0.1"), ("FedProx", "gated-prox-0.1", "dense-prox-0.1")):
        pairs = same_seeds(rows, gated, dense)
        if not pairs:
            continue
        gaps = [final_accuracy(a) - final_accuracy(b) for a, b in pairs]
        found[f"D2 {how} global"] = claim("points against the dense network", spread(gaps), ">= -1", gaps)
        clients = [100 * (last(a) - last(b)) for a, b in pairs]
        found[f"D2 {how} clients"] = claim("the same on the clients' own classes", spread(clients), ">= -1", clients)
    macs = [o["more"]["macs"] for o in rows.get("gated-0.1", [])]
    if macs:
        found["D1"] = {
            "what": "multiply-adds of one input, gates included",
            "value": [max(macs)],
            "bar": "<= 0.505",
            "holds": max(macs) <= 0.505,
        }


def adaptivity(found: dict[str, Any], rows: Rows) -> None:
    """D3: static models of equal work, by whose channels they keep."""
    for split in SPLITS:
        outcomes = [o["more"] for o in rows.get(f"gated-{split}", [])]
        for other in ("shared", "l2", "random"):
            gaps = [100 * (o["own"] - o[other]) for o in outcomes]
            if gaps:
                found[f"D3 {split} {other}"] = {
                    "what": f"points of the own channel set over {other}",
                    "value": spread(gaps),
                    "bar": "> 0",
                    "holds": min(gaps) > 0,
                }
        if outcomes:
            found[f"D3 {split} labels"] = {
                "what": "Spearman of sets and labels over pairs of devices; mean difference of two sets",
                "value": [statistics.fmean(o[key] for o in outcomes) for key in ("follows_labels", "difference")],
                "bar": "reported",
                "holds": None,
            }


def latency(found: dict[str, Any]) -> None:
    """D4."""
    path = RESULTS / "adp_latency.json"
    for row in json.loads(path.read_text())["results"] if path.exists() else []:
        if row["model"] not in ("dense", "zeros"):
            found[f"D4 {row['runtime']} {row['model']} batch {row['batch']}"] = {
                "what": f"times as fast as dense, at {row['macs']:.3f} of its multiply-adds",
                "value": [row["speed_up"]],
                "bar": "2",
                "holds": row["speed_up"] >= 2,
            }


def vgg(found: dict[str, Any]) -> None:
    """D5."""
    from edgeprune.nn.gated import gated_layers
    from edgeprune.tasks.gated import VGG_16, gated_vgg

    model = gated_vgg(VGG_16)
    gates = sum(p.numel() for layer in gated_layers(model).values() for p in layer.gate.parameters())
    share = gates / (sum(p.numel() for p in model.parameters()) - gates)
    found["D5"] = {
        "what": "gates of a VGG-16 over its other weights",
        "value": [share],
        "bar": "reported",
        "holds": None,
    }


def same_seeds(rows: Rows, ours: str, theirs: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    other = {o["cell"]["seed"]: o for o in rows.get(theirs, [])}
    return [(o, other[o["cell"]["seed"]]) for o in rows.get(ours, []) if o["cell"]["seed"] in other]


def last(outcome: dict[str, Any]) -> float:
    """Mean accuracy of the clients on their own classes at the end."""
    return float(list(outcome["client_accuracy"].values())[-1]["mean"])


def claim(what: str, value: list[float], bar: str, gaps: list[float]) -> dict[str, Any]:
    return {"what": what, "value": value, "bar": bar, "holds": statistics.fmean(gaps) >= -1}


def spread(values: list[float]) -> list[float]:
    """Mean and half width of its interval, or the one value there is."""
    return list(interval(values)) if len(values) > 1 else values


def table(rows: Rows) -> str:
    """Every claim, as markdown."""
    return "\n".join(claims(judge(rows), rows))
