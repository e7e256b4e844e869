"""Recurrent layers: what they read is cut, their states stay, and their multiply-adds count."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.pruning import ChannelGraph, SubmodelPlan, expand_state
from edgeprune.pruning.cost import macs, plan_macs

LAYERS: list[tuple[Callable[..., nn.Module], int, int]] = [  # layer, numbers it gives, weights of a step
    (partial(nn.GRU, bidirectional=True), 20, 2 * 30 * (8 + 10)),
    (partial(nn.LSTM, num_layers=2), 10, 40 * (8 + 10) + 40 * (10 + 10)),
    (partial(nn.LSTM, num_layers=2, bidirectional=True), 20, 2 * 40 * (8 + 10) + 2 * 40 * (20 + 10)),
    (partial(nn.LSTM, proj_size=4, bias=False), 4, 40 * (8 + 4) + 4 * 10),
    (nn.RNN, 10, 10 * (8 + 10)),
    (partial(nn.RNN, nonlinearity="relu"), 10, 10 * (8 + 10)),
]
CELLS: list[tuple[Callable[..., nn.Module], int]] = [(nn.LSTMCell, 40 * 18), (nn.GRUCell, 30 * 18), (nn.RNNCell, 180)]


class Reader(nn.Module):
    """What is read passes a linear layer; the last state another."""

    def __init__(self, layer: nn.Module, given: int) -> None:
        super().__init__()
        self.front, self.layer, self.head = nn.Linear(6, 8), layer, nn.Linear(given, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(torch.relu(self.front(x)))
        out = out[0] if isinstance(out, tuple) else out
        return self.head(out[:, -1] if x.dim() == 3 else out)


def check(model: nn.Module, x: Tensor, weights: int) -> None:
    """``weights``: multiply-adds of all for one sample."""
    graph = ChannelGraph.trace(model, (x,))
    assert macs(model, (x,)) == plan_macs(graph, SubmodelPlan.full(graph)) == weights
    assert list(graph.prunable) == ["front"] and "states of recurrent layers" in graph.notes[0]
    sub = edgeprune.prune(model, (x,), keep=0.5)
    assert macs(sub.model, (x,)) == plan_macs(graph, sub.plan) < weights
    zeroed = expand_state(sub.model.state_dict(), sub.plan, 0.0)
    model.load_state_dict(zeroed)
    torch.testing.assert_close(sub.model.eval()(x), model.eval()(x))


@pytest.mark.parametrize(("make", "given", "weights"), LAYERS)
def test_what_a_layer_reads_is_cut(make: Callable[..., nn.Module], given: int, weights: int) -> None:
    torch.manual_seed(0)
    model = Reader(make(8, 10, batch_first=True), given)
    check(model, torch.randn(2, 12, 6), 12 * (48 + weights) + 3 * given)


@pytest.mark.parametrize(("make", "weights"), CELLS)
def test_what_a_cell_reads_is_cut(make: Callable[..., nn.Module], weights: int) -> None:
    torch.manual_seed(0)
    check(Reader(make(8, 10), 10), torch.randn(2, 6), 48 + weights + 30)
