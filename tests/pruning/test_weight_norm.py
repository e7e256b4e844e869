"""Weights that are computed as a gain times a direction: cut, the norm is that of what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pruning_cases import positions, random_plan
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import edgeprune
from edgeprune.pruning import ChannelGraph, extract


class Temporal(nn.Module):
    """A temporal convolution network in small: a residual, a transposed convolution, one norm over a whole matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(4, 8, 3, padding=1))
        self.second = weight_norm(nn.Conv1d(8, 8, 3, padding=1))
        self.up = weight_norm(nn.ConvTranspose1d(8, 10, 3, padding=1))
        self.dense = weight_norm(nn.Linear(10, 12), dim=None)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.second(x).relu()
        return self.head(self.dense(self.up(x).relu().mean(-1)).relu())


ROWS = torch.randn(3, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made() -> Temporal:
    torch.manual_seed(0)
    model = Temporal().double()
    with torch.no_grad():
        for name, gain in model.named_parameters():
            if name.endswith("original0"):
                gain.copy_(torch.rand_like(gain) + 0.5)
    return model


def by_hand(model: nn.Module, plan: edgeprune.SubmodelPlan, x: Tensor) -> Tensor:
    """The sub-model's answer from the full model's numbers, each weight divided by the norm of its kept part."""
    state = model.state_dict()

    def kept(name: str) -> Tensor:
        t = state[name]
        return torch.from_numpy(t.numpy()[np.ix_(*positions(plan, name))]) if t.dim() else t

    def weight(layer: str, own: bool = True) -> Tensor:
        g, v = (kept(f"{layer}.parametrizations.weight.original{i}") for i in (0, 1))
        squares = v.square()
        return g * v / (squares.flatten(1).sum(1).sqrt().reshape(g.shape) if own else squares.sum().sqrt())

    x = F.conv1d(x, weight("first"), kept("first.bias"), padding=1).relu()
    x = x + F.conv1d(x, weight("second"), kept("second.bias"), padding=1).relu()
    x = F.conv_transpose1d(x, weight("up"), kept("up.bias"), padding=1).relu().mean(-1)
    x = F.linear(x, weight("dense", own=False), kept("dense.bias")).relu()
    return F.linear(x, kept("head.weight"), kept("head.bias"))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_has_its_own_norm(seed: int) -> None:
    model = made()
    graph = ChannelGraph.trace(model, ROWS)
    assert graph.notes == () and len(graph.prunable) == 3
    plan = random_plan(graph, seed)
    small = extract(model, plan)
    torch.testing.assert_close(small(ROWS), by_hand(model, plan, ROWS), rtol=1e-12, atol=1e-12)


def test_it_is_checked_trained_merged_and_exported(tmp_path: Path) -> None:
    model = made().float()
    rows = ROWS.float()
    sub = edgeprune.prune(model, rows, 0.5)  # which compares the cut model with the full one
    assert sub.model.first.weight.shape == (4, 4, 3) and sub.model.up.weight.shape == (4, 5, 3)
    torch.optim.SGD(sub.model.parameters(), 0.1).zero_grad()
    sub.model(rows).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sub.model.parameters())
    merged = edgeprune.merge(model.state_dict(), [(sub.plan, sub.model.state_dict(), 3.0)])
    model.load_state_dict(merged)
    torch.testing.assert_close(extract(model, sub.plan)(rows), sub.model(rows))
    pytest.importorskip("onnxruntime")
    done = edgeprune.export_onnx(sub.model.eval(), rows[:2], tmp_path / "temporal.onnx")
    assert edgeprune.export.check_parity(sub.model, done.path, rows, real=True).rows >= 3


def test_norms_whole_keeps_them() -> None:
    with pytest.raises(edgeprune.EdgePruneError, match='normalises over these weights; norms="auto" cuts them'):
        edgeprune.prune(made(), ROWS, 0.5, norms="whole")
