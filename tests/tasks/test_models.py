"""The built-in networks: what they promise to pruning, and that they learn."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import tasks
from edgeprune.pruning import cost
from edgeprune.tasks import models
from edgeprune.tasks.builtin import TASKS

NAMES = sorted(TASKS)
EXITS = {"cifar10-vit": (10,), "shakespeare": (80, 65), "uci-har": (6,)}  # with their output for one sample
# FedDST's network is its paper's: no batch-norm; nor have transformers.
OURS = [name for name in NAMES if not name.endswith("feddst") and name not in EXITS]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_one_score_a_class(name):
    task = tasks.get(name)
    (x,) = task.example_inputs()
    assert x.shape[0] == 2
    model = task.make_model().eval()
    shape = EXITS.get(name, (10,))
    assert model(x).shape == (2, *shape)
    assert model(torch.cat([x] * 3)).shape == (6, *shape)


@pytest.mark.parametrize("name", OURS)
def test_every_convolution_has_its_own_batch_norm(name):
    """AdaptCL ranks channels by the batch-norm's scale: as many scales as convolution outputs, layer by layer."""
    modules = [m for m in tasks.get(name).make_model().modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    widths = [m.out_channels if isinstance(m, nn.Conv2d) else -m.num_features for m in modules]
    assert all(conv == -norm for conv, norm in zip(widths[::2], widths[1::2], strict=True))
    assert all(m.bias is None for m in modules if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", OURS)
def test_a_quarter_of_the_channels_costs_less_than_a_tenth(name):
    task = tasks.get(name)
    model = task.make_model()
    part = edgeprune.prune(model, task.example_inputs(), keep=0.25, importance="bn")
    assert part.model(*task.example_inputs()).shape == (2, 10)
    whole, small = (cost.macs(m, task.example_inputs()) for m in (model, part.model))
    assert small < whole / 10


def test_multiply_adds_of_the_digits_network_by_hand():
    convolutions = 64 * 9 * 64 + 16 * 9 * 64 * 128 + 16 * 9 * 128 * 256
    assert cost.macs(models.digits_cnn(), (torch.zeros(1, 1, 8, 8),)) == convolutions + 256 * 10


def test_multiply_adds_of_the_fashion_network_by_hand():
    convolutions = 196 * 9 * 32 + 196 * 9 * 32 * 64 + 49 * 9 * 64 * 192
    assert cost.macs(models.fashion_cnn(), (torch.zeros(1, 1, 28, 28),)) == convolutions + 192 * 9 * 10


def test_full_width_resnet_is_resnet_18():
    """11,173,962 parameters: ResNet-18 with a 3x3 stem and ten classes."""
    model = models.resnet_like((64, 128, 256, 512))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 20


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_global_generator(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in tasks.get(name).make_model().parameters()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


def train(task, data, samples, epochs):
    torch.manual_seed(0)
    model = task.make_model().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay)
    for _ in range(epochs):
        for batch in torch.randperm(samples).split(task.batch_size):
            optimiser.zero_grad()
            task.loss(model(data.normalise(data.train.x[batch])), data.train.y[batch]).backward()
            optimiser.step()
    return tasks.evaluate(model, data, task)


def test_digits_are_learnt():
    task = tasks.get("digits")
    accuracy, loss = train(task, task.load_data(), 1437, 4)
    assert accuracy > 0.95 and loss < 0.3


def test_clothes_are_learnt():
    if not os.environ.get("EDGEPRUNE_DATA"):
        pytest.skip("EDGEPRUNE_DATA does not say where real data sets are")
    task = tasks.get("fashion-cnn")
    accuracy, _ = train(task, task.load_data(), 2000, 4)
    assert accuracy > 0.7


def test_the_cifar_networks_can_fit():
    """Eight pictures of noise are learnt by heart: gradients reach every layer."""
    for name in ("cifar10-vgg", "cifar10-resnet"):
        torch.manual_seed(0)
        task = tasks.get(name)
        model, x, y = task.make_model().train(), torch.randn(8, 3, 32, 32), torch.arange(8)
        optimiser = torch.optim.SGD(model.parameters(), lr=task.lr, momentum=task.momentum)
        first = task.loss(model(x), y)
        for _ in range(25):
            optimiser.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            optimiser.step()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())
        assert float(loss.detach()) < float(first.detach()) / 4
