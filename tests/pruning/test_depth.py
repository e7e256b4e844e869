"""Blocks are found, left out and merged back exactly; exit heads end a network early."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from pruning_cases import Basic, Resnet
from torch import nn
from zoo_attention import Bert, Gpt, Vit
from zoo_convolution import Convnext

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.nn import ExitHead, Exits
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, cost, expand_state, extract, extract_state, scores
from edgeprune.pruning.robust import merge_robust
from edgeprune.pruning.structure import Skip

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(14).reshape(2, 7)


@pytest.mark.parametrize(
    ("factory", "x", "blocks"),
    [
        (Resnet, IMAGE, ("blocks.0", "blocks.2")),  # blocks.1 changes the size
        (Convnext, IMAGE, ("stages.0", "stages.1", "stages.4")),
        (Vit, IMAGE, ("blocks.0", "blocks.1")),
        (Gpt, WORDS, ("blocks.0", "blocks.1")),
        (Bert, WORDS, ("encoder.layers.1",)),  # torch's encoder asks its first layer for its attributes
    ],
)
def test_residual_blocks_are_found_and_left_out(factory, x, blocks):
    torch.manual_seed(0)
    model = factory().eval()
    graph = ChannelGraph.trace(model, x)
    assert graph.blocks == blocks
    plan = choose(graph, scores(model, graph), 0.5).drop(blocks[-1])
    small = extract(model, plan).eval()
    assert isinstance(small.get_submodule(blocks[-1]), Skip)
    by_hand = copy.deepcopy(extract(model, choose(graph, scores(model, graph), 0.5)))
    by_hand.set_submodule(blocks[-1], nn.Identity())
    if factory is not Bert:  # torch hands a mask to its layers
        torch.testing.assert_close(small(x), by_hand.eval()(x))
    assert cost.plan_macs(graph, plan) == cost.macs(small, (x,)) < cost.plan_macs(graph, SubmodelPlan.full(graph))
    assert plan.parameters == sum(t.numel() for t in small.state_dict().values())
    small.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_a_block_without_a_shortcut_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())
            self.both, self.fc = Cross(), nn.Linear(6, 4)

        def forward(self, x):
            x = self.a(x)
            return self.fc(self.both(self.b(x), x).mean((2, 3)))

    class Cross(nn.Module):
        """Its sum is with its second argument, so its first is not what it would become."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, y, x):
            return F.relu(self.conv(y) + x)

    assert ChannelGraph.trace(Two(), IMAGE).blocks == ()


def test_plans_with_blocks_go_there_and_back():
    model = Resnet()
    sub = edgeprune.prune(model, IMAGE)
    plan = sub.plan.drop("blocks.2")
    assert plan != sub.plan and plan.dropped == ("blocks.2",) and "1 of 2 blocks" in repr(plan)
    assert SubmodelPlan.from_json(plan.to_json()) == plan
    assert SubmodelPlan.from_json(plan.to_json()).dropped == plan.dropped
    assert SubmodelPlan.from_kept_bytes(sub.graph, plan.kept_bytes()) == plan
    assert SubmodelPlan.from_kept_bytes(sub.graph, sub.plan.kept_bytes()) == sub.plan
    assert plan.holds("blocks.0.c1.weight") and not plan.holds("blocks.2.c1.weight")
    with pytest.raises(EdgePruneError, match="unknown block 'blocks.1'"):
        plan.drop("blocks.1")
    with pytest.raises(EdgePruneError, match="leaves out"):
        plan.check_local({"blocks.2.c1.weight": torch.zeros(1)})
    with pytest.raises(EdgePruneError, match="another model"):
        extract(nn.Sequential(), plan)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": []}', '{"a": [2, "m"]}', '{"a": [1]}', '{"a": [true, "m"]}', "[]"])
def test_a_text_with_wrong_blocks_is_refused(text):
    plan = '{"format":"edgeprune.plan/1","groups":{},"kinds":[],"axes":{},"blocks":' + text + "}"
    with pytest.raises(EdgePruneError, match="block"):
        SubmodelPlan.from_json(plan)


def test_merging_leaves_what_nobody_holds_and_is_exact():
    torch.manual_seed(1)
    model = Resnet()
    state = model.state_dict()
    sub = edgeprune.prune(model, IMAGE)
    short = sub.plan.drop("blocks.2")
    local = extract_state(state, short)
    assert local.keys() == extract(model, short).state_dict().keys()
    assert not any(name.startswith("blocks.2.") for name in local)
    assert all(torch.equal(t, state[n]) for n, t in expand_state(local, short, state).items())
    ones = {n: torch.ones_like(t) for n, t in local.items()}
    merged = edgeprune.merge(state, [(short, ones, 2.0)])
    assert all(torch.equal(merged[n], state[n]) for n in state if n.startswith("blocks.2."))
    assert bool((merged["stem.0.weight"] == 1).any())
    deep = {n: 3 * torch.ones_like(t) for n, t in extract_state(state, sub.plan).items()}
    merged = edgeprune.merge(state, [(short, ones, 2.0), (sub.plan, deep, 2.0)])
    robust = merge_robust(state, [(short, ones), (sub.plan, deep)], "median")
    at = torch.tensor(sub.plan.kept["blocks.2.c1"])
    for got in (merged, robust):
        assert bool((got["blocks.2.b1.weight"][at] == 3).all())
        assert bool((got["stem.1.weight"][torch.tensor(sub.plan.kept["stem.0"])] == 2).all())


def test_a_block_with_two_names_goes_under_both():
    torch.manual_seed(0)

    class Named(Resnet):
        def __init__(self):
            super().__init__()
            self.last = self.blocks[2]

    model = Named()
    graph = ChannelGraph.trace(model, IMAGE)
    plan = SubmodelPlan.full(graph).drop("blocks.2")
    small, state = extract(model, plan), model.state_dict()
    assert "last.c1.weight" in state and not plan.holds("last.c1.weight")
    assert small.state_dict().keys() == extract_state(state, plan).keys()
    merged = edgeprune.merge(state, [(plan, small.state_dict(), 1.0)])
    assert all(torch.equal(t, state[name]) for name, t in merged.items())


def test_exit_heads():
    torch.manual_seed(0)
    backbone = Resnet()
    model = Exits(backbone, {"blocks.0": ExitHead(8, 5), "blocks.1": ExitHead(12, 5)}, IMAGE)
    first, second, own = model.train()(IMAGE)
    assert first.shape == second.shape == own.shape == (2, 5) and model.last is None
    torch.testing.assert_close(model.eval()(IMAGE), backbone.eval()(IMAGE))
    assert model.tails["blocks.0"] == ("model.blocks.1", "model.blocks.2", "model.fc", "heads.blocks_1")
    graph = ChannelGraph.trace(model, IMAGE)
    assert {"after blocks.0", "after blocks.1", "model.blocks.0", "model.blocks.2"} == set(graph.blocks)
    small = extract(model, SubmodelPlan.full(graph).drop("after blocks.1")).eval()
    assert small.last == "blocks.1" and len(copy.deepcopy(small).train()(IMAGE)) == 2
    expected = model.heads["blocks_1"](backbone.eval().blocks[:2](backbone.stem(IMAGE)))
    torch.testing.assert_close(small.eval()(IMAGE), expected)
    names = extract_state(model.state_dict(), SubmodelPlan.full(graph).drop("after blocks.0"))
    assert not any(n.startswith(("model.fc", "model.blocks.1", "heads.blocks_1")) for n in names)


def test_an_exit_at_a_module_that_is_not_there_or_is_the_last():
    with pytest.raises(EdgePruneError, match=r"'blocks\.7'"):
        Exits(Resnet(), {"blocks.7": ExitHead(8, 5)}, IMAGE)
    with pytest.raises(EdgePruneError, match="nothing with parameters"):
        Exits(Resnet(), {"fc": ExitHead(5, 5)}, IMAGE)
    twice = nn.Sequential(Basic(3, 3), nn.Conv2d(3, 4, 1))
    twice.insert(0, twice[0])
    with pytest.raises(EdgePruneError, match="'blocks.0': it runs before 'blocks.1'; order the heads"):
        Exits(Resnet(), {"blocks.1": ExitHead(12, 5), "blocks.0": ExitHead(8, 5)}, IMAGE)
    same = nn.Sequential()
    same.add_module("a", nn.Sequential(nn.Linear(4, 4)))
    same.add_module("a_0", nn.Linear(4, 4))
    same.add_module("b", nn.Linear(4, 4))
    with pytest.raises(EdgePruneError, match="exits at 'a.0' and 'a_0' would have one name"):
        Exits(same, {"a.0": ExitHead(4, 5), "a_0": ExitHead(4, 5)}, torch.zeros(2, 4))
    with pytest.raises(EdgePruneError, match="heads is a list; give a module for each path"):
        Exits(Resnet(), [ExitHead(8, 5)], IMAGE)
    with pytest.raises(EdgePruneError, match="run once"):
        Exits(twice, {"0": ExitHead(3, 4)}, IMAGE)


class Meet(nn.Module):
    """Lets threads on when all of them are here."""

    barrier: threading.Barrier | None = None

    def forward(self, x):
        if self.barrier is not None:
            self.barrier.wait(10)
        return x


def test_threads_that_share_a_model_get_their_own_outputs():
    meet = Meet()
    body = nn.Sequential(meet, nn.Linear(4, 8), nn.Linear(8, 8), meet, nn.Linear(8, 3))
    model = Exits(body, {"1": ExitHead(8, 3), "2": ExitHead(8, 3)}, torch.zeros(1, 4)).train()
    inputs = [torch.full((2, 4), float(k)) for k in range(3)]
    expected = [model(x) for x in inputs]
    meet.barrier = threading.Barrier(len(inputs))
    with ThreadPoolExecutor(len(inputs)) as pool:
        found = list(pool.map(model, inputs))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == 3 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
