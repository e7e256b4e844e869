"""Measured latency of adaptive dynamic pruning against the dense network, on torch and ONNX Runtime (D4), one thread.

    python benchmarks/papers/adp_latency.py

VGG-16 for 32x32 pictures, batches of 1 and 32, all sides in turns in one run. Values do not matter to time, so weights
are the initial ones; sets of channels come from the gates on drawn pictures.

    dense           no gates
    zeros           gates as the public code has them: everything computed, then multiplied by zeros
    gathered        the channels that each input keeps, and no others (nn/gated.py)
    device          the sub-model of one device's channel set, 70 % of every layer, its gates left
    device-16       the same in multiples of 16 channels
    device-plain    the same without gates: the mean gate of every channel folded into its norm

Writes benchmarks/results/adp_latency.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import numpy as np
import onnxruntime
import torch
from torch import nn

import edgeprune
from edgeprune.algorithms.adp import plain, used
from edgeprune.nn.gated import GatedNet, active_macs, gate_statistics
from edgeprune.pruning import ChannelGraph, choose, extract
from edgeprune.tasks.gated import VGG_16, gated_vgg
from edgeprune.tasks.models import vgg_like

KEEP, BATCHES, REPEATS = 0.7, (1, 32), {1: 60, 32: 12}


def sides() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    gated = gated_vgg(VGG_16, keep=KEEP).eval()
    assert isinstance(gated, GatedNet)
    graph = ChannelGraph.trace(gated, (torch.zeros(2, 3, 32, 32),))
    pictures = [torch.randn(32, 3, 32, 32)]
    statistics = gate_statistics(gated, pictures)
    scores = used(graph, statistics)
    device = choose(graph, scores, KEEP)
    rounded = extract(gated, choose(graph, scores, KEEP, round_to=16)).eval()
    gathered = extract(gated, choose(graph, scores, 1.0)).eval()
    gathered.gathered = True
    small = extract(gated, device).eval()
    return {
        "dense": vgg_like(VGG_16).eval(),
        "zeros": gated,
        "gathered": gathered,
        "device": small,
        "device-16": rounded,
        "device-plain": plain(rounded, gate_statistics(rounded, pictures)).eval(),
    }


def macs(model: nn.Module) -> int:
    x = torch.zeros(1, 3, 32, 32)
    if isinstance(model, GatedNet):
        return active_macs(model, x)[0]
    from edgeprune.pruning import cost

    return cost.macs(model, (x,))


def main() -> None:
    torch.set_num_threads(1)
    about = harness.machine()
    models = sides()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        x = torch.randn(batch, 3, 32, 32)
        works: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            for name, model in models.items():
                works[f"torch {name}"] = lambda model=model, x=x: model(x)
                if name in ("zeros", "gathered"):
                    continue
                path = Path(folder) / f"{name}.onnx"
                with torch.inference_mode(False):
                    edgeprune.export_onnx(model, (x.clone(),), path)
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                given = {session.get_inputs()[0].name: x.numpy().astype(np.float32)}
                works[f"onnxruntime {name}"] = lambda session=session, given=given: session.run(None, given)
            found = harness.interleaved_ms(works, REPEATS[batch])
        for key, ms in found.items():
            runtime, name = key.split()
            row = {
                "runtime": runtime,
                "model": name,
                "batch": batch,
                "ms": ms,
                "speed_up": found[f"{runtime} dense"] / ms,
                "macs": macs(models[name]) / macs(models["dense"]),
            }
            rows.append(row)
            print(f"{runtime:12} {name:14} batch {batch:3}  {ms:8.2f} ms  {row['speed_up']:.2f}x  "
                  f"macs {row['macs']:.3f}", flush=True)  # fmt: skip
    harness.write_result("adp_latency", about, rows)


if __name__ == "__main__":
    main()
