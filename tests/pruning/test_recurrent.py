"""Recurrent layers: what they read and the units of their states are cut, and their multiply-adds count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pruning_cases import random_plan
from torch import Tensor, nn

import edgeprune
from edgeprune.pruning import ChannelGraph, SubmodelPlan, expand_state, extract
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
    if getattr(model.layer, "proj_size", 0):
        assert list(graph.prunable) == ["front"] and "that are projected stay whole" in graph.notes[0]
    else:
        assert graph.map.groups == {"front": 8, "layer": 10} and graph.notes == ()
    sub = edgeprune.prune(model, (x,), keep=0.5)
    assert macs(sub.model, (x,)) == plan_macs(graph, sub.plan) < weights
    same_as_zeroed(model, sub.model, sub.plan, x)
    for seed in range(3):
        plan = random_plan(graph, seed)
        same_as_zeroed(model, extract(model, plan), plan, x)


def same_as_zeroed(model: nn.Module, small: nn.Module, plan: SubmodelPlan, *inputs: Tensor) -> None:
    """The sub-model computes what the full one does with zeros for all that was cut."""
    full = copy.deepcopy(model).eval()
    full.load_state_dict(expand_state(small.state_dict(), plan, 0.0))
    torch.testing.assert_close(small.eval()(*inputs), full(*inputs))


@pytest.mark.parametrize(("make", "given", "weights"), LAYERS)
def test_a_layer_is_cut(make: Callable[..., nn.Module], given: int, weights: int) -> None:
    torch.manual_seed(0)
    model = Reader(make(8, 10, batch_first=True), given)
    check(model, torch.randn(2, 12, 6), 12 * (48 + weights) + 3 * given)


@pytest.mark.parametrize(("make", "weights"), CELLS)
def test_a_cell_is_cut(make: Callable[..., nn.Module], weights: int) -> None:
    torch.manual_seed(0)
    check(Reader(make(8, 10), 10), torch.randn(2, 6), 48 + weights + 30)


class Begun(nn.Module):
    """States that the model makes itself, of its own numbers, and a state that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 10
        self.first, self.second = nn.LSTM(6, 10, batch_first=True), nn.GRU(10, 12, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, 12))
        self.step, self.head = nn.LSTMCell(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros(1, x.shape[0], self.width)
        y, _ = self.first(x, (zero, zero))
        y, _ = self.second(y, self.start.expand(-1, x.shape[0], -1).contiguous())
        h = c = x.new_zeros(x.shape[0], self.step.hidden_size)
        for t in range(x.shape[1]):
            h, c = self.step(y[:, t], (h, c))
        return self.head(h)


def test_states_that_are_given_follow() -> None:
    torch.manual_seed(0)
    model, x = Begun(), torch.randn(2, 4, 6)
    graph = ChannelGraph.trace(model, (x,))
    assert sorted(graph.map.groups.values()) == [9, 10, 12]
    for seed in range(4):
        plan = random_plan(graph, seed)
        same_as_zeroed(model, extract(model, plan), plan, x)
    sub = edgeprune.prune(model, (x,), keep=0.5)
    assert (sub.model.first.hidden_size, sub.model.second.input_size, sub.model.width) == (5, 5, 5)
    assert sub.model.start.shape == (1, 1, 6) and sub.model.step.hidden_size == 5
    sub.model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in sub.model.parameters())
    merged = edgeprune.merge(model.state_dict(), [(sub.plan, sub.model.state_dict(), 1.0)])
    model.load_state_dict(merged)
    torch.testing.assert_close(extract(model, sub.plan).eval()(x), sub.model.eval()(x))


def test_a_state_that_the_caller_gives_keeps_its_units() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(6, 10, batch_first=True), nn.Linear(10, 3)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.head(self.layer(x, h)[0][:, -1])

    with pytest.raises(edgeprune.EdgePruneError, match="no channels that can be cut"):
        edgeprune.prune(Given(), (torch.randn(2, 4, 6), torch.randn(1, 2, 10)), keep=0.5)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_a_cut_recurrent_network_in_onnx(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x = Reader(make(8, 10, num_layers=2, batch_first=True), 10), torch.randn(7, 12, 6)
    sub = edgeprune.prune(model, (x,), keep=0.5)
    done = edgeprune.export_onnx(sub.model.eval(), x, tmp_path / "net.onnx")
    assert edgeprune.export.check_parity(sub.model, done.path, x, real=True).rows >= 7


def test_a_norm_over_the_last_state() -> None:
    """The full model's graph is run in double there, with the zeros that the states begin with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(6, 10, num_layers=2, batch_first=True), Last(), nn.LayerNorm(10), nn.Linear(10, 3))
    assert edgeprune.prune(model, (torch.randn(2, 4, 6),), keep=0.5, norms="cut").model[0].hidden_size == 5
    with pytest.raises(edgeprune.EdgePruneError, match="normalises over these channels"):
        edgeprune.prune(model, (torch.randn(2, 4, 6),), keep=0.5)


class Last(nn.Module):
    def forward(self, states: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
        return states[1][0][-1]
