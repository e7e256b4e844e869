"""Inference of physically smaller networks against dense ones, on ONNX Runtime and on torch, both sides in one run.

    python benchmarks/structured_onnx.py [--networks resnet18,resnet50,mobilenetv2,vit_s] [--seconds 1.0] [--threads 1]

Per network: the dense one; a uniform cut to 50 % of the multiply-adds; the same in multiples of 16 channels; widths
that cost the least time by a table of layers measured here, at 50 % ("macs") and at half the dense time ("ms"); and
int8 of the dense and the last. Random weights: time does not depend on them, accuracy is not looked at. Variants take
turns run by run; figures are medians over repeats, with the extremes. Writes benchmarks/results/structured_onnx.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import onnxruntime
import torch
from structured_networks import NETWORKS
from torch import Tensor, nn

from edgeprune.export import check_parity, export_onnx
from edgeprune.export.layer_clock import measure_layers
from edgeprune.export.parity import session
from edgeprune.pruning import ChannelGraph, prune

TARGET = 2.06  # times faster by the table that is asked for; the table is good to 2 or 3 %
CALIBRATION = 16


def variants(model: nn.Module, graph: ChannelGraph, x: Tensor, threads: int) -> dict[str, Any]:
    """Name -> (module, plan or None, milliseconds that the table expects)."""
    table = measure_layers(model, graph, (x,), networks=12, threads=threads)
    latency = table.latency(graph)
    whole = latency(graph.map.groups)
    half: dict[str, Any] = {"macs": 0.5}
    by_cost: dict[str, Any] = {"scope": "cost", "price": "ms", "latency": latency, "round_to": 16, "min_keep": 0.2}
    asked: dict[str, dict[str, Any]] = {
        "uniform": {"budget": half},
        "uniform in 16": {"budget": half, "round_to": 16},
        "table, macs": {"budget": half, **by_cost},
        "table, ms": {"budget": {**half, "ms": whole / TARGET}, **by_cost},
    }
    found: dict[str, Any] = {"dense": (model, None, whole)}
    for name, keywords in asked.items():
        sub = prune(model, x, graph=graph, **keywords)
        found[name] = (sub.model.eval(), sub.plan, latency(sub.plan.counts))
    return found


def medians(works: dict[str, Any], seconds: float, repeats: int, least: int) -> dict[str, list[float]]:
    """Milliseconds of every variant in every repeat; within one the variants take turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        times: dict[str, list[float]] = {name: [] for name in works}
        end = time.perf_counter() + seconds * len(works)
        while len(times[next(iter(times))]) < least or time.perf_counter() < end:
            for name, work in works.items():
                began = time.perf_counter()
                work()
                times[name].append((time.perf_counter() - began) * 1e3)
        for name, taken in times.items():
            found[name].append(statistics.median(taken))
    return found


def network(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.randn(2, 3, 224, 224)
    images = torch.randn(CALIBRATION, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    graph = ChannelGraph.trace(model, x)
    full = graph.macs(graph.map.groups)
    found = variants(model, graph, x, arguments.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for variant, (module, _, _) in found.items():
            files[variant] = Path(folder) / f"{variant}.onnx"
            export_onnx(module, x, files[variant])
            check_parity(module, files[variant], x)
        for variant in ("dense", "table, ms"):
            key = f"{variant}, int8"
            files[key] = Path(folder) / f"{key}.onnx"
            export_onnx(found[variant][0], x, files[key], precision="int8", calibration=images)
        sessions = {variant: session(path, arguments.threads) for variant, path in files.items()}
        sizes = {variant: path.stat().st_size for variant, path in files.items()}
        for batch in arguments.batches:
            row = torch.randn(batch, 3, 224, 224)
            feed = {"input": row.numpy()}
            by_runtime = {
                "onnxruntime": {v: lambda s=s, f=feed: s.run(None, f) for v, s in sessions.items()},
                "torch": {v: lambda m=m, r=row: m(r) for v, (m, _, _) in found.items()},
            }
            for runtime, works in by_runtime.items():
                with torch.inference_mode():
                    times = medians(works, arguments.seconds, arguments.repeats, 5 if batch == 1 else 1)
                for variant, ms in times.items():
                    ratios = [dense / own for dense, own in zip(times["dense"], ms, strict=True)]
                    _, plan, expected = found[variant.removesuffix(", int8")]
                    counts = graph.map.groups if plan is None else plan.counts
                    rows.append(
                        {
                            "network": name,
                            "runtime": runtime,
                            "batch": batch,
                            "variant": variant,
                            "ms": statistics.median(ms),
                            "ms_repeats": ms,
                            "speedup": statistics.median(ratios),
                            "speedup_low": min(ratios),
                            "speedup_high": max(ratios),
                            "macs_share": graph.macs(counts) / full,
                            "table_ms_batch_1": expected if not variant.endswith("int8") else None,
                            "file_bytes": sizes.get(variant),
                            "widths": list(counts.values()) if runtime == "onnxruntime" and batch == 1 else None,
                        }
                    )
                    last = rows[-1]
                    print(
                        f"{name:12s} {runtime:11s} batch {batch:2d} {variant:18s} {last['ms']:9.2f} ms "
                        f"{last['speedup']:5.2f}x ({min(ratios):.2f}..{max(ratios):.2f}) macs {last['macs_share']:.3f}",
                        flush=True,
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 32])
    parser.add_argument("--seconds", type=float, default=0.5, help="of every variant in every repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="structured_onnx", help="of the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = {**harness.machine(), "onnxruntime": onnxruntime.__version__, "threads": arguments.threads}
    path = harness.RESULTS / f"{arguments.name}.json"
    kept = json.loads(path.read_text())["results"] if path.exists() else []
    for name in arguments.networks.split(","):
        rows = [{**row, "threads": arguments.threads, "load": about["load_before"]} for row in network(name, arguments)]
        same = {(row["network"], row["threads"], row["batch"]) for row in rows}
        kept = [row for row in kept if (row["network"], row["threads"], row["batch"]) not in same] + rows
        harness.write_result(arguments.name, about, kept)


if __name__ == "__main__":
    main()
