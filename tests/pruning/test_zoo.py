"""The field's networks in small: a sub-model holds the elements its plan names and computes what the full model does.

The reference knows nothing of the package's surgery: positions are spelt out channel by channel, weights that make a
removed channel are set to zero, and a norm over channels is rewritten to take its statistics over the kept ones.
"""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pruning_cases import positions
from torch import nn
from zoo_attention import ATTENTION
from zoo_convolution import CONVOLUTION, IMAGE

from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, cost, extract, merge, scores

ZOO = {name: (factory, lambda: (torch.randn(IMAGE),)) for name, factory in CONVOLUTION.items()} | ATTENTION
OVER_CHANNELS = ("unet-group-norm", "convnext", *(n for n in ATTENTION if n != "dlrm"))
CASES = [(name, "auto") for name in ZOO] + [(name, "cut") for name in OVER_CHANNELS]

# The share of the multiply-adds that half of the channels leave at most; where widths stay, inner halves only.
MOST_MACS = {"auto": 0.45, "cut": 0.4} | {(n, "auto"): 0.62 for n in OVER_CHANNELS} | {("convnext", "auto"): 0.76}


@functools.cache
def traced(name, norms):
    factory, inputs = ZOO[name]
    torch.manual_seed(0)
    model, x = factory(), inputs()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(m.running_mean, -0.5, 0.5)
                nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model, x, ChannelGraph.trace(model, x, norms=norms)


def plans(model, graph):
    rng = np.random.default_rng(0)
    for keep in (0.75, 0.5, 0.25):
        yield choose(graph, scores(model, graph, "l2"), keep)
        kept = {}
        for group, size in graph.map.groups.items():
            count = max(1, round(keep * size))
            kept[group] = tuple(sorted(rng.choice(size, count, replace=False).tolist()))
        yield SubmodelPlan(graph.map, kept)
    uneven = {g: int(rng.integers(1, s + 1)) for g, s in graph.map.groups.items()}
    choice = {g: sorted(rng.choice(graph.map.groups[g], n, replace=False).tolist()) for g, n in uneven.items()}
    yield SubmodelPlan(graph.map, {g: tuple(c) for g, c in choice.items()})


@pytest.mark.parametrize(("name", "norms"), CASES)
def test_half_of_the_channels_is_a_smaller_model(name, norms):
    model, x, graph = traced(name, norms)
    # torch's TransformerEncoder reads attributes of its first layer: that one block has to stay, nothing else.
    blocks = [note for note in graph.notes if note.startswith("the block encoder.layers.0 cannot be left out")]
    assert list(graph.notes) == blocks and len(blocks) == (name == "bert")
    plan = choose(graph, scores(model, graph, "l2"), 0.5)
    small = extract(model, plan)
    most = MOST_MACS.get((name, norms), MOST_MACS[norms])
    assert cost.plan_macs(graph, plan) == cost.macs(small, x) <= most * cost.macs(model, x)
    before = {n: p.shape for n, p in model.named_parameters()}
    optimiser = torch.optim.SGD(small.train().parameters(), 0.01)
    small(*x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    optimiser.step()
    assert {n: p.shape for n, p in model.named_parameters()} == before
    merged = merge(model.state_dict(), [(plan, small.state_dict(), 4.0)])
    for tensor, t in small.state_dict().items():
        np.testing.assert_array_equal(merged[tensor].numpy()[np.ix_(*positions(plan, tensor))] if t.dim() else t, t)


@pytest.mark.parametrize(("name", "norms"), CASES)
def test_tags(name, norms):
    model, _, graph = traced(name, norms)
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.copy_(torch.arange(t.numel()).reshape(t.shape))
    full = model.state_dict()
    for plan in plans(model, graph):
        for tensor, values in extract(model, plan).state_dict().items():
            expected = full[tensor].numpy()
            expected = expected[np.ix_(*positions(plan, tensor))] if expected.ndim else expected
            np.testing.assert_array_equal(values.numpy(), expected, err_msg=tensor)


def silenced(model, graph, plan):
    """A double copy that makes zeros for removed channels and leaves them out of statistics over channels."""
    model = copy.deepcopy(model).double()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in graph.prunable.values():
            for member in group.members:
                if "running" not in member.tensor:
                    kept = positions(plan, member.tensor)[member.dim]
                    gone = [i for i in range(tensors[member.tensor].shape[member.dim]) if i not in kept]
                    tensors[member.tensor].index_fill_(member.dim, torch.tensor(gone, dtype=torch.int64), 0.0)
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            kept = torch.tensor(positions(plan, f"{name}.weight")[0])
            if len(kept) < len(module.weight):
                module.forward = functools.partial(norm_of_kept, module, kept, type(module).__name__)
    return model


def norm_of_kept(m, kept, kind, x):
    d = 1 if kind in ("GroupNorm", "LayerNorm2d") else x.dim() - 1
    part = x.index_select(d, kept)
    if kind == "GroupNorm":
        groups = len(kept) if m.num_groups == m.num_channels else m.num_groups
        y = F.group_norm(part, groups, m.weight[kept], m.bias[kept], m.eps)
    elif kind == "RMSNorm":
        y = F.rms_norm(part, (len(kept),), m.weight[kept], m.eps)
    else:
        y = F.layer_norm(part.movedim(d, -1), (len(kept),), m.weight[kept], m.bias[kept], m.eps).movedim(-1, d)
    return torch.zeros_like(x).index_copy(d, kept, y)


@pytest.mark.parametrize(("name", "norms"), CASES)
def test_the_sub_model_computes_what_the_full_model_does_with_channels_left_out(name, norms):
    model, x, graph = traced(name, norms)
    x = tuple(t.double() if t.is_floating_point() else t for t in x)
    for plan in plans(model, graph):
        full, small = silenced(model, graph, plan), extract(copy.deepcopy(model).double(), plan)
        for training in (False, True):
            for m in (full, small):
                m.train(training)
                for part in m.modules():
                    if isinstance(part, (nn.Dropout, nn.MultiheadAttention)) or hasattr(part, "drop"):
                        part.eval()
            expected = full(*x).detach()
            assert float(expected.abs().max()) > 1e-3
            torch.testing.assert_close(small(*x).detach(), expected, rtol=1e-9, atol=1e-9)
