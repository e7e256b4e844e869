"""Measures the step-time tables that ship with the built-in tasks, and what looking times up by multiply-adds costs.

    python benchmarks/latency.py [--tasks digits,fashion-cnn] [--check-only]

Writes edgeprune/fleet/tables/TASK.json and benchmarks/results/latency.json: for plans that are not in the table (the
global ranking's, as AdaptCL makes them, and uniform ones between the measured widths), the measured step time
beside the table's. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import torch

from edgeprune import engine
from edgeprune.algorithms.training import make_step
from edgeprune.engine.emulation import measure_task
from edgeprune.fleet import LatencyTable, read_table
from edgeprune.pruning import choose, extract, ranking, scores
from edgeprune.pruning.cost import plan_macs

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "edgeprune" / "fleet" / "tables"
RESULT = ROOT / "benchmarks" / "results" / "latency.json"
SHARES = (0.08, 0.18, 0.25, 0.35, 0.45, 0.55, 0.65, 0.78, 0.92)


def check(prepared: engine.Prepared, table: LatencyTable) -> list[dict[str, object]]:
    """Measured against looked up, for plans that the table has not seen."""
    model, graph = prepared.model, prepared.graph
    data = next(iter(prepared.local.values()))
    batch = torch.arange(prepared.setting.recipe.batch_size) % len(data)
    x, y = data.x[batch], data.y[batch]
    ranked = scores(model, graph, "l1")
    rows = []
    for kind in ("uniform", "global"):
        for share in SHARES:
            if kind == "global":
                plan = ranking(graph, scores(model, graph, "l2"), 2).plan(share)
            else:
                plan = choose(graph, ranked, share, min_channels=2)
            small = extract(model, plan).train()
            step = make_step(small, prepared.task.loss, prepared.setting.recipe)
            times = []
            for _ in range(3):
                step(data.normalise(x), y)
            end = perf_counter() + 0.5
            while perf_counter() < end or len(times) < 5:
                start = perf_counter()
                step(data.normalise(x), y)
                times.append(perf_counter() - start)
            measured = sorted(times)[len(times) // 2] * 1e3
            looked_up = table.step_s(plan_macs(graph, plan)) * 1e3
            rows.append(
                {
                    "kind": kind,
                    "retention": plan.retention,
                    "macs": plan_macs(graph, plan),
                    "measured_ms": measured,
                    "table_ms": looked_up,
                    "error": looked_up / measured - 1,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits,fashion-cnn,cifar10-vgg,cifar10-resnet")
    parser.add_argument("--check-only", action="store_true", help="measure no table, only its error")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in arguments.tasks.split(","):
        sets = [f"task.name={name}", "fleet.devices=2", "data.samples=512"]
        prepared = engine.prepare(engine.load_experiment(None, sets))
        path = TABLES / f"{name}.json"
        if not arguments.check_only:
            data = next(iter(prepared.local.values()))
            table = measure_task(prepared.task, prepared.graph, data, prepared.setting.recipe, seconds=1.2)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(table.to_json(), indent=1) + "\n")
        table = read_table(path)
        rows = check(prepared, table)
        errors = sorted(abs(float(str(row["error"]))) for row in rows)
        result[name] = {
            "machine": dict(table.machine),
            "median_error": errors[len(errors) // 2],
            "largest_error": errors[-1],
            "rows": rows,
        }
        print(f"{name}: {[round(t, 2) for t in table.step_ms]} ms; error median {errors[len(errors) // 2]:.1%}, "
              f"largest {errors[-1]:.1%}", flush=True)  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
