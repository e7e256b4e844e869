"""Co-S2P's learnt masks keep what the data need, at the rate that was asked for."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from edgeprune.algorithms.mask_learning import learn_mask
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.training import LocalData
from edgeprune.pruning import ChannelGraph, SubmodelPlan


def test_a_mask_keeps_what_the_data_need():
    """Of eight hidden channels only two carry anything to the output; the task needs them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[2].weight.mul_(0.01)
        for channel, (feature, label) in {1: (0, 0), 6: (1, 1)}.items():
            model[0].weight[channel, feature] = 3.0
            model[2].weight[label, channel] = 3.0
    y = torch.arange(64) % 2
    data = LocalData(functional.one_hot(y, 4).float(), y, lambda x: x)
    graph = ChannelGraph.trace(model, (torch.zeros(2, 4),))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    recipe, full = Recipe(10, 16, 0.1, 0.9, 0.0), SubmodelPlan.full(graph)
    learnt = learn_mask(model, graph, full, data, functional.cross_entropy, recipe, Job(learn=0.25), 3)
    assert learnt.plan.kept["0"] == (1, 6)
    assert learnt.trained.steps == 40
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    again = learn_mask(model, graph, full, data, functional.cross_entropy, recipe, Job(learn=0.25), 3)
    assert all(torch.equal(p, learnt.kept[name]) for name, p in again.kept.items())


def test_the_pull_brings_the_mean_to_the_rate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
    data = LocalData(torch.randn(32, 4), torch.zeros(32, dtype=torch.int64), lambda x: x)
    graph = ChannelGraph.trace(model, (torch.zeros(2, 4),))
    found = {}
    for share in (0.2, 0.8):
        learnt = learn_mask(
            model,
            graph,
            SubmodelPlan.full(graph),
            data,
            lambda output, target: 0.0 * output.sum(),
            Recipe(12, 8, 0.1, 0.9, 0.0),
            Job(learn=share),
            0,
        )
        found[share] = float(torch.cat(list(learnt.kept.values())).mean())
        assert learnt.plan.counts["0"] == round(share * 40)
    assert found[0.2] < 0.35 and found[0.8] > 0.65


def test_weights_that_diverged_teach_no_mask_and_say_so():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e20), model[2].weight.fill_(1e20)  # what an update may hold at most
    data = LocalData(torch.ones(32, 4), torch.arange(32) % 2, lambda x: x)
    graph = ChannelGraph.trace(model, (torch.zeros(2, 4),))
    recipe, full = Recipe(2, 8, 0.1, 0.9, 0.0), SubmodelPlan.full(graph)
    learnt = learn_mask(model, graph, full, data, functional.cross_entropy, recipe, Job(learn=0.5), 0)
    assert math.isnan(learnt.trained.loss) and learnt.plan.counts["0"] == 4
