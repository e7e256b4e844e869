"""Measures a LayerTimes table: networks of random widths in ONNX Runtime or in torch, layer by layer, where they stand.

The smallest of the repeated times of a layer counts: what else runs on the machine can only add to it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.device import probe
from edgeprune.errors import EdgePruneError
from edgeprune.export import targets
from edgeprune.export._need import need
from edgeprune.export.layer_times import LayerTimes, elements_of, geometry
from edgeprune.export.onnx import export_onnx
from edgeprune.pruning import ChannelGraph, SubmodelPlan, extract

Timed = tuple[str, int, int, float]
"""Geometry, outputs, inputs, ms."""


def measure_layers(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: tuple[Tensor, ...],
    *,
    runtime: str = "onnxruntime",
    networks: int = 12,
    threads: int = 1,
    batch: int = 1,
    repeats: int = 8,
    round_to: int = 16,
    narrowest: float = 0.2,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> LayerTimes:
    """Time the whole network and ``networks`` others whose groups keep a random share from ``narrowest`` to 1.

    ``inputs``: example inputs; their first rows are repeated to ``batch``. ``runtime``: "onnxruntime" or "torch".
    Widths are multiples of ``round_to`` where a group is larger than that. Takes a few seconds a network.
    """
    clocks = {"onnxruntime": _by_onnxruntime, "torch": _by_torch}
    if runtime not in clocks:
        raise EdgePruneError(f"latency table: unknown runtime {runtime!r}; onnxruntime or torch")
    feed = tuple(x[:1].repeat(batch, *[1] * (x.dim() - 1)) for x in inputs)
    layers: dict[str, list[tuple[float, float, float]]] = {}
    rest = []
    for number, plan in enumerate(_plans(graph, networks, round_to, narrowest, seed)):
        say(f"latency table: network {number + 1} of {networks + 1} in {runtime}")
        timed, other = clocks[runtime](extract(model, plan).eval(), feed, threads, repeats)
        for key, o, i, ms in timed:
            layers.setdefault(key, []).append((o, i, ms))
        rest.append((*elements_of(graph, plan.counts), other))
    version = need("onnxruntime").__version__ if runtime == "onnxruntime" else torch.__version__
    samples = {key: tuple(values) for key, values in layers.items()}
    return LayerTimes(f"{runtime} {version}", threads, batch, samples, tuple(rest), probe.beside_figures())


def _plans(graph: ChannelGraph, count: int, round_to: int, narrowest: float, seed: int) -> Iterator[SubmodelPlan]:
    rng = np.random.default_rng(seed)
    yield SubmodelPlan.full(graph)
    for _ in range(count):
        kept = {}
        for name, size in graph.map.groups.items():
            wanted = size * rng.uniform(narrowest, 1.0)
            kept[name] = tuple(range(min(size, max(1, round(wanted / round_to)) * round_to)))
        yield SubmodelPlan(graph.map, kept)


def _by_onnxruntime(
    model: nn.Module, feed: tuple[Tensor, ...], threads: int, repeats: int
) -> tuple[list[Timed], float]:
    ort = need("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = export_onnx(model, feed, Path(folder) / "m.onnx", target=targets.DEFAULT_TARGET).path
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        arrays = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), feed, strict=True)}
        for _ in range(repeats + 1):
            session.run(None, arrays)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    least: dict[str, float] = {}
    first: dict[str, Any] = {}
    for event in nodes:
        name = event["name"] + str(event["args"].get("node_index", ""))
        least[name] = min(least.get(name, event["dur"]), event["dur"])
        first.setdefault(name, event["args"])
    timed, other = [], 0.0
    for name, args in first.items():
        layer = _layer_of(args, len(feed[0]))
        if layer is None:
            other += least[name] * 1e-3
        else:
            timed.append((*layer, least[name] * 1e-3))
    return timed, other


def _layer_of(args: Any, batch: int) -> tuple[str, int, int] | None:
    """(geometry, outputs, inputs) of a profiled node with weights. Packed weights are not listed among its inputs."""
    operation = str(args["op_name"])
    shapes = [list(entry.values())[0] for entry in args["input_type_shape"]]
    out = list(args["output_type_shape"][0].values())[0]
    if "Conv" in operation:
        weight = shapes[1]
        return geometry(weight[2:], _product(out) / out[1] / batch), out[1], weight[1]
    if "Gemm" in operation or ("MatMul" in operation and (len(shapes) < 2 or len(shapes[1]) <= 2)):
        return geometry([], _product(out) / out[-1] / batch), out[-1], shapes[0][-1]
    return None


def _by_torch(model: nn.Module, feed: tuple[Tensor, ...], threads: int, repeats: int) -> tuple[list[Timed], float]:
    least: dict[nn.Module, float] = {}
    began: dict[nn.Module, float] = {}
    layer: dict[nn.Module, tuple[str, int, int]] = {}

    def before(module: nn.Module, _: Any) -> None:
        began[module] = time.perf_counter()

    def after(module: nn.Module, args: Any, out: Tensor) -> None:
        taken = (time.perf_counter() - began[module]) * 1e3
        least[module] = min(least.get(module, taken), taken)
        weight: Any = module.weight
        at = 1 if weight.dim() > 2 else out.dim() - 1
        positions = out.numel() / out.shape[at] / len(feed[0])
        layer[module] = geometry(weight.shape[2:], positions), out.shape[at], weight.shape[1]

    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    totals = []
    handles = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.inference_mode():
            for _ in range(repeats + 1):
                start = time.perf_counter()
                model(*feed)
                totals.append((time.perf_counter() - start) * 1e3)
    finally:
        torch.set_num_threads(kept)
        for handle in handles:
            handle.remove()
    return [(*layer[m], ms) for m, ms in least.items()], max(0.0, min(totals) - sum(least.values()))


def _product(shape: Sequence[int]) -> int:
    return int(np.prod(shape))
