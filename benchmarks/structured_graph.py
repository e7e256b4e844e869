"""The channel graph on the field's networks, with Torch-Pruning beside it; extract and merge of a ResNet-50, timed.

    python benchmarks/structured_graph.py matrix [NETWORK ...]     every network: tags and forward equality
    python benchmarks/structured_graph.py time [--repeats 9]       extract, merge and graph of ResNet-50

Networks are torchvision's, timm's and transformers' in full size (those that are installed; images of 64 pixels where
the network takes them) and the small ones of the tests. Results go to results/structured_graph.json, part by part.

A cut model is judged by its tensors alone, in the same way for both tools. The network is cut twice: once with every
element holding its own coordinate, once with random weights, in double precision. Tags right: what is left of every
tensor is a grid of kept positions. Forward right: the cut network puts out what the full one does whose other elements
are zero, with norms over the kept channels only. Torch-Pruning's plans are random at 25, 50 and 75 %; ours also ranked,
and one with another share in every group. A network that a tool does not finish in four minutes counts as hanging.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
import torch
from structured_judging import judge
from structured_time import random_plan, timing
from structured_zoo import Network, networks
from torch import nn

from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, cost, extract, scores
from edgeprune.pruning.capture import unfused_attention
from edgeprune.pruning.verify import randomise

RESULT = "structured_graph"
LIMIT_S = 240
KEEP = (0.75, 0.5, 0.25)


def our_plans(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, SubmodelPlan]]:
    rng = np.random.default_rng(0)
    for keep in KEEP:
        yield f"ranked {keep}", choose(graph, scores(model, graph, "l2"), keep)
        counts = {g: max(1, round(keep * s)) for g, s in graph.map.groups.items()}
        yield f"random {keep}", random_plan(graph, counts, rng)
    yield "uneven", random_plan(graph, {g: int(rng.integers(1, s + 1)) for g, s in graph.map.groups.items()}, rng)


def full_model(network: Network) -> tuple[nn.Module, nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    """The network, the same in double with random weights, and the inputs of both."""
    torch.manual_seed(0)
    model, inputs = network()
    model.eval()
    double = copy.deepcopy(model).double()
    randomise(double, np.random.default_rng(0))
    return model, double, inputs, tuple(x.double() if x.is_floating_point() else x for x in inputs)


def ours(network: Network, norms: str) -> dict[str, Any]:
    model, double, inputs, wide = full_model(network)
    start = time.perf_counter()
    graph = ChannelGraph.trace(model, inputs, norms=norms)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    half = choose(graph, scores(model, graph, "l2"), 0.5)
    judged = {name: judge(double, wide, lambda m, p=plan: extract(m, p)) for name, plan in our_plans(model, graph)}
    dense = cost.macs(model, inputs)
    whole = [g for g in graph.groups.values() if not g.prunable]
    return {
        "trace_s": round(seconds, 2),
        "groups": len(graph.groups),
        "cut": len(graph.prunable),
        "blocks": len(graph.blocks),
        "macs_at_half": round(cost.plan_macs(graph, half) / dense, 4),
        "left_whole": [[g.name, g.reason] for g in whole],
        "notes": list(graph.notes),
        "plans": len(judged),
        "tags_right": sum(j["tags"] for j in judged.values()),
        "forward_right": sum(j["forward"] for j in judged.values()),
        "errors": {n: j["error"] for n, j in judged.items() if j["error"]},
    }


def theirs(network: Network) -> dict[str, Any]:
    import torch_pruning as tp

    model, double, inputs, wide = full_model(network)
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    at = [m is last for m in model.modules()].index(True)

    def cut(keep: float) -> Callable[[nn.Module], nn.Module]:
        def prune(m: nn.Module) -> nn.Module:
            torch.manual_seed(0)
            pruner = tp.pruner.MetaPruner(
                m, wide, importance=tp.importance.RandomImportance(), pruning_ratio=1 - keep,
                ignored_layers=[list(m.modules())[at]],
            )  # fmt: skip
            pruner.step()
            return m

        return prune

    start = time.perf_counter()
    try:
        tp.DependencyGraph().build_dependency(copy.deepcopy(model), example_inputs=inputs)
    except Exception as e:
        return {
            "plans": len(KEEP),
            "tags_right": 0,
            "forward_right": 0,
            "errors": {"graph": f"{type(e).__name__}: {e}"[:200]},
        }
    seconds = time.perf_counter() - start
    judged = {f"random {keep}": judge(double, wide, cut(keep)) for keep in KEEP}
    small = cut(0.5)(copy.deepcopy(double)).float()
    try:
        macs = cost.macs(small, inputs) / cost.macs(model, inputs)
    except Exception:
        macs = float("nan")
    return {
        "graph_s": round(seconds, 2),
        "macs_at_half": round(macs, 4) if macs == macs else None,
        "plans": len(judged),
        "tags_right": sum(j["tags"] for j in judged.values()),
        "forward_right": sum(j["forward"] for j in judged.values()),
        "errors": {n: j["error"] for n, j in judged.items() if j["error"]},
    }


def _work(name: str, tool: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with unfused_attention():
        network = networks()[name]
        pipe.send(theirs(network) if tool == "torch-pruning" else ours(network, tool))


def limited(name: str, tool: str) -> dict[str, Any]:
    """One network with one tool in a process of its own, which may crash or hang."""
    start = multiprocessing.get_context("spawn")  # a forked child must not use torch's threads
    mine, other = start.Pipe()
    process = start.Process(target=_work, args=(name, tool, other))
    process.start()
    other.close()
    result: dict[str, Any] = {"errors": {"run": f"not done after {LIMIT_S} s"}, "hangs": True}
    try:
        if mine.poll(LIMIT_S):
            result = mine.recv()
    except EOFError:
        result = {"errors": {"run": "crashed"}}
    process.kill()
    process.join()
    return result


def matrix(names: list[str]) -> None:
    rows = {r["network"]: r for r in stored().get("matrix", {}).get("results", [])}
    machine = harness.machine()
    for name in names or list(networks()):
        row: dict[str, Any] = {"network": name}
        for tool in ("auto", "cut", "torch-pruning"):
            row[tool] = limited(name, tool)
            r = row[tool]
            print(
                f"{name:36s} {tool:14s} {r.get('forward_right')}/{r.get('plans')} {str(r['errors'])[:150]}", flush=True
            )
        rows[name] = row
        store("matrix", {"machine": machine, "versions": versions(), "results": list(rows.values())})


def versions() -> dict[str, str]:
    from importlib import metadata

    names = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
    return {n: metadata.version(n) for n in names if any(d.name == n for d in metadata.distributions())}


def stored() -> dict[str, Any]:
    path = harness.RESULTS / f"{RESULT}.json"
    return json.loads(path.read_text()) if path.is_file() else {"benchmark": RESULT}


def store(part: str, value: dict[str, Any]) -> None:
    path = harness.RESULTS / f"{RESULT}.json"
    path.write_text(json.dumps({**stored(), part: value}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("matrix", "time"))
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.part == "matrix":
        matrix(options.networks)
    else:
        about = {"machine": harness.machine(), "versions": versions()}
        result = timing(options.repeats)
        print(json.dumps(result, indent=1))
        store("time", {**about, "results": [result]})


if __name__ == "__main__":
    main()
