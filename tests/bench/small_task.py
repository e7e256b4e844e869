"""A small task whose inputs are made up, so that nothing is looked for on disk."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.data import DataSet
from edgeprune.tasks import Task
from edgeprune.tasks.models import BasicBlock


def no_data() -> DataSet:
    raise AssertionError("a profile on made-up inputs asks for no data")


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def small_task() -> Task:
    return Task("small", no_data, small_net, lambda: (torch.zeros(2, 3, 8, 8),), batch_size=8, lr=0.1)
