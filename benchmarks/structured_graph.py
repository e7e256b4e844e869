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
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.pruning import ChannelGraph, Merger, SubmodelPlan, choose, cost, extract, scores
from edgeprune.pruning.capture import tensors, unfused_attention
from edgeprune.pruning.verify import randomise

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pruning"))
RESULT = "structured_graph"
LIMIT_S = 240
KEEP = (0.75, 0.5, 0.25)
Network = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


def networks() -> dict[str, Network]:
    """By name what makes a network and its inputs."""
    found: dict[str, Network] = {}
    try:
        from torchvision import models
    except ImportError:
        print("without torchvision", file=sys.stderr)
    else:
        names = (
            "resnet18 resnet50 vgg11_bn mobilenet_v2 mobilenet_v3_large efficientnet_b0 densenet121 googlenet "
            "squeezenet1_1 mnasnet1_0 convnext_tiny regnet_y_400mf resnext50_32x4d shufflenet_v2_x1_0 swin_t vit_b_16"
        )
        for name in names.split():
            how: dict[str, Any] = {"weights": None}
            how |= {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
            how |= {"image_size": 64} if name == "vit_b_16" else {}
            found[name] = lambda n=name, h=how: (getattr(models, n)(**h), (torch.randn(2, 3, 64, 64),))
    try:
        import timm
    except ImportError:
        print("without timm", file=sys.stderr)
    else:
        for name in ("vit_small_patch16_224", "swin_tiny_patch4_window7_224"):
            how = {"img_size": 64, "window_size": 4} if "swin" in name else {"img_size": 64}
            found[f"timm/{name}"] = lambda n=name, h=how: (timm.create_model(n, **h), (torch.randn(2, 3, 64, 64),))
    try:
        import transformers as t
    except ImportError:
        print("without transformers", file=sys.stderr)
    else:
        small = {"vocab_size": 500, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512}
        words = lambda: (torch.randint(0, 500, (2, 16)),)  # noqa: E731
        bert = t.BertConfig(**small, num_attention_heads=8)
        llama = t.LlamaConfig(**small, num_attention_heads=8, num_key_value_heads=4)
        gpt2 = t.GPT2Config(vocab_size=500, n_embd=256, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0)
        found["transformers/bert"] = lambda: (First(t.BertModel(bert)), words())
        found["transformers/llama-grouped-queries"] = lambda: (First(t.LlamaForCausalLM(llama)), words())
        found["transformers/gpt2"] = lambda: (First(t.GPT2LMHeadModel(gpt2)), words())
    from zoo_attention import ATTENTION
    from zoo_convolution import CONVOLUTION, IMAGE

    for name, factory in CONVOLUTION.items():
        found[f"tests/{name}"] = lambda f=factory: (f(), (torch.randn(IMAGE),))
    for name, (factory, inputs) in ATTENTION.items():
        found[f"tests/{name}"] = lambda f=factory, i=inputs: (f(), i())
    return found


class First(nn.Module):
    """The first tensor of what a model of transformers puts out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        return self.model(words, use_cache=False)[0]


# --- judging a cut model ---------------------------------------------------------------------------------------------


def tagged(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for _, t in tensors(model):
            t.copy_(torch.arange(t.numel()).reshape(t.shape))
    return model


def grids(full: nn.Module, tags: nn.Module) -> dict[str, list[Tensor]] | None:
    """Per tensor the kept positions of every dimension, read off the tags; None where they are no grid."""
    shapes = {n: t.shape for n, t in tensors(full)}
    found = {}
    for name, t in tensors(tags):
        if name not in shapes or t.dim() != len(shapes[name]):
            return None
        at = np.unravel_index(t.detach().long().numpy(), shapes[name]) if t.dim() else ()
        grid = [np.unique(a) for a in at]
        if t.dim() and not all(
            (a == g.reshape([-1 if e == d else 1 for e in range(t.dim())])).all() if a.shape[d] == len(g) else False
            for d, (a, g) in enumerate(zip(at, grid, strict=True))
        ):
            return None  # fmt: skip
        found[name] = [torch.from_numpy(g) for g in grid]
    return found


def silenced(full: nn.Module, kept: dict[str, list[Tensor]]) -> nn.Module:
    """The full model with everything outside the grids at zero, and norms over the kept channels."""
    model = copy.deepcopy(full)
    with torch.no_grad():
        for name, t in tensors(model):
            for d, index in enumerate(kept.get(name, [])):
                gone = torch.ones(t.shape[d], dtype=torch.bool)
                gone[index] = False
                t.index_fill_(d, gone.nonzero()[:, 0], 1.0 if name.endswith("running_var") else 0.0)
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) and f"{name}.weight" in kept:
            index = kept[f"{name}.weight"][0]
            if len(index) < len(module.weight):
                module.forward = lambda x, m=module, i=index: _norm(m, i, x)
    return model


def _norm(m: Any, kept: Tensor, x: Tensor) -> Tensor:
    d = 1 if isinstance(m, nn.GroupNorm) or "2d" in type(m).__name__ else x.dim() - 1
    part = x.index_select(d, kept)
    if isinstance(m, nn.GroupNorm):
        groups = len(kept) if m.num_groups == m.num_channels else m.num_groups
        y = F.group_norm(part, groups, m.weight[kept], m.bias[kept], m.eps)
    elif isinstance(m, nn.RMSNorm):
        y = F.rms_norm(part, (len(kept),), m.weight[kept], m.eps)
    else:
        y = F.layer_norm(part.movedim(d, -1), (len(kept),), m.weight[kept], m.bias[kept], m.eps).movedim(-1, d)
    return torch.zeros_like(x).index_copy(d, kept, y)


def judge(full: nn.Module, inputs: tuple[Any, ...], cut: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """{"tags", "forward": right or not, "error"} of one cut, given as what makes a cut model of a full one."""
    try:
        small = cut(copy.deepcopy(full)).eval()
        kept = grids(full, cut(tagged(full)))
    except Exception as e:
        return {
            "tags": False,
            "forward": False,
            "error": f"{type(e).__name__}: {(str(e) or '-').splitlines()[0][:160]}",
        }
    if kept is None:
        return {"tags": False, "forward": False, "error": "what is left of a tensor is no grid of its elements"}
    with torch.no_grad():
        try:
            got = small(*inputs)
        except Exception as e:
            return {
                "tags": True,
                "forward": False,
                "error": f"forward: {(str(e) or type(e).__name__).splitlines()[0][:160]}",
            }
        expected = silenced(full, kept).eval()(*inputs)
    same = got.shape == expected.shape and bool((got - expected).abs().max() <= 1e-6 * expected.abs().max())
    return {"tags": True, "forward": same, "error": None if same else "silently other values"}


# --- the two tools ---------------------------------------------------------------------------------------------------


def our_plans(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, SubmodelPlan]]:
    rng = np.random.default_rng(0)
    for keep in KEEP:
        yield f"ranked {keep}", choose(graph, scores(model, graph, "l2"), keep)
        counts = {g: max(1, round(keep * s)) for g, s in graph.map.groups.items()}
        yield f"random {keep}", _random(graph, counts, rng)
    yield "uneven", _random(graph, {g: int(rng.integers(1, s + 1)) for g, s in graph.map.groups.items()}, rng)


def _random(graph: ChannelGraph, counts: dict[str, int], rng: np.random.Generator) -> SubmodelPlan:
    kept = {g: tuple(sorted(rng.choice(graph.map.groups[g], n, replace=False).tolist())) for g, n in counts.items()}
    return SubmodelPlan(graph.map, kept)


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


# --- time ------------------------------------------------------------------------------------------------------------


def timing(repeats: int) -> None:
    import torch_pruning as tp
    from torchvision import models

    torch.set_num_threads(1)
    machine = harness.machine()
    torch.manual_seed(0)
    model, x = models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)
    start = time.perf_counter()
    graph = ChannelGraph.trace(model, (torch.randn(2, 3, 64, 64),))
    trace_s = time.perf_counter() - start
    start = time.perf_counter()
    ChannelGraph.trace(model, (torch.randn(2, 3, 64, 64),), verify=False)
    unverified_s = time.perf_counter() - start
    plan = _random(graph, {g: s // 2 for g, s in graph.map.groups.items()}, np.random.default_rng(0))
    state = {n: t.detach() for n, t in model.state_dict().items()}
    floats = [n for n, t in state.items() if t.is_floating_point()]
    local = {n: t.detach() for n, t in extract(model, plan).state_dict().items()}

    def indexed() -> dict[str, Tensor]:
        out = {}
        for n, t in state.items():
            for d, i in enumerate(plan.indices(n)):
                t = t if i is None else t.index_select(d, i)
            out[n] = t.clone()
        return out

    def advanced() -> dict[str, Tensor]:
        return {n: t[mesh(t)].clone() if t.dim() else t.clone() for n, t in state.items() for mesh in (_mesh(plan, n),)}

    def merged() -> dict[str, Tensor]:
        merger = Merger(state)
        merger.add(plan, local, 4.0)
        return merger.finish()

    def merged_by_index() -> dict[str, Tensor]:
        result = dict(state)
        for n in floats:
            t = state[n]
            total, count = torch.zeros_like(t), torch.zeros_like(t)
            at = _mesh(plan, n)(t)
            total[at] += 4.0 * local[n]
            count[at] += 4.0
            result[n] = torch.where(count > 0, total / count, t)
        return result

    dependency_start = time.perf_counter()
    tp.DependencyGraph().build_dependency(copy.deepcopy(model), example_inputs=x)
    dependency_s = time.perf_counter() - dependency_start

    def torch_pruning() -> float:
        small = copy.deepcopy(model)
        pruner = tp.pruner.MetaPruner(
            small, x, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=[small.fc]
        )
        start = time.perf_counter()
        pruner.step()
        return time.perf_counter() - start

    assert all(torch.equal(a, local[n]) for n, a in indexed().items())
    assert all(torch.equal(a, b) for a, b in zip(merged().values(), merged_by_index().values(), strict=True))
    sides = {
        "extract": lambda: extract(model, plan), "extract_index_select": indexed, "extract_advanced_index": advanced,
        "merge": merged, "merge_index": merged_by_index,
    }  # fmt: skip
    times: dict[str, list[float]] = {n: [] for n in sides} | {"torch_pruning_step": []}
    for _ in range(repeats):
        for name, work in sides.items():
            work()
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
        times["torch_pruning_step"].append(torch_pruning())
    ms = {n: round(1e3 * float(np.median(t)), 3) for n, t in times.items()}
    both = ms["extract"] + ms["merge"]
    by_index = min(ms["extract_index_select"], ms["extract_advanced_index"]) + ms["merge_index"]
    result = {
        "network": "resnet50, half of the channels at random", "threads": 1, "median_ms": ms,
        "trace_s": round(trace_s, 2), "trace_without_check_s": round(unverified_s, 2),
        "torch_pruning_graph_s": round(dependency_s, 2),
        "torch_index_over_ours": round(by_index / both, 2),
        "torch_pruning_prune_over_our_extract": round(ms["torch_pruning_step"] / ms["extract"], 2),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    store("time", {"machine": machine, "versions": versions(), "results": [result]})


def _mesh(plan: SubmodelPlan, name: str) -> Callable[[Tensor], Any]:
    def mesh(t: Tensor) -> Any:
        index = [torch.arange(s) if i is None else i for s, i in zip(t.shape, plan.indices(name), strict=True)]
        return tuple(i.reshape([-1 if e == d else 1 for e in range(t.dim())]) for d, i in enumerate(index))

    return mesh


# --- the result file -------------------------------------------------------------------------------------------------


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
        timing(options.repeats)


if __name__ == "__main__":
    main()
