"""Taylor importance against what really happens to the loss."""

from __future__ import annotations

import pytest
import torch
from pruning_cases import traced
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import scores
from edgeprune.pruning.taylor import saliencies


def test_of_a_positive_linear_network_it_is_the_change_of_the_loss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 2, bias=False)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    data = [(torch.rand(3, 5, dtype=torch.float64), torch.zeros(3)) for _ in range(2)]

    def loss(output, target):
        return output.sum()

    graph = edgeprune.pruning.ChannelGraph.trace(net, data[0][0])
    (name,) = graph.prunable
    found = scores(net, graph, "taylor", data, loss)[name]
    with torch.no_grad():
        whole = sum(float(loss(net(x), y)) for x, y in data) / 2
        for channel in range(6):
            kept = net[0].weight[channel].clone()
            net[0].weight[channel] = 0
            without = sum(float(loss(net(x), y)) for x, y in data) / 2
            net[0].weight[channel] = kept
            assert float(found[channel]) == pytest.approx(whole - without, rel=1e-5)


def test_it_keeps_what_the_data_use_where_norms_keep_what_is_large():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 9.0]]))  # channel 1 is large and reads an input that is 0
    x, y = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 2])
    by_norm = edgeprune.prune(net, x, keep=0.5, importance="l2").plan
    by_data = edgeprune.prune(net, x, keep=0.5, importance="taylor", batches=[(x, y)]).plan
    assert list(by_norm.kept.values()) == [(1,)] and list(by_data.kept.values()) == [(0,)]


def test_the_model_is_left_alone_and_batch_norm_does_not_hide_the_filters():
    model, x, graph = traced("resnet")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    found = scores(model, graph, "taylor", [(x, torch.zeros(len(x[0]), dtype=torch.int64))])
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(float(v.max()) > 1e-6 for v in found.values())


def test_bad_data_is_one_sentence():
    net, x = nn.Linear(3, 3), torch.randn(2, 3)
    with pytest.raises(EdgePruneError, match="needs data"):
        saliencies(net, [])
    with pytest.raises(EdgePruneError, match="batch 0 is not one finite number"):
        saliencies(net, [(x * float("nan"), torch.tensor([0, 1]))])
    with pytest.raises(EdgePruneError, match="batch 0 is not one finite number"):
        saliencies(net, [(x, x)], lambda output, target: output)
