"""Batch-norm statistics estimated anew, with numbers that can be worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.export.recalibrate import has_statistics, recalibrated


def test_statistics_are_the_mean_over_batches() -> None:
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(50.0)
    norm.running_var.fill_(7.0)
    # Means 2 and 6; unbiased variances ((1 + 1) / 1 = 2) and ((4 + 4) / 1 = 8).
    fresh = recalibrated(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[4.0], [8.0]])])
    assert isinstance(fresh, nn.BatchNorm1d)
    assert fresh.running_mean.item() == 4.0 and fresh.running_var.item() == 5.0
    assert fresh.momentum == norm.momentum and not fresh.training


def test_the_original_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = list(torch.randn(4, 8, 3))
    first, second = recalibrated(model, batches), recalibrated(model, batches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first.state_dict()[name], before[name]) for name in weights)
    # Dropout stays off, so that two passes agree.
    assert torch.equal(first[1].running_var, second[1].running_var)  # type: ignore[index]


def test_nothing_to_do_without_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    assert not has_statistics(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(recalibrated(model, []).state_dict().values(), model.state_dict().values(), strict=True)
    )
