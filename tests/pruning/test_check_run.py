"""Operations that mix channels or are unknown, and what the check run that ends a trace sees of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pruning_cases import IMAGE, reasons, trace
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning.coupling import RULES, rule
from edgeprune.pruning.rules import pointwise


def normed(norms):
    def forward(self, x):
        x = self.b(F.relu(self.norm(self.a(x))))
        return self.fc(self.last(self.c(x).mean((2, 3))))

    net = type("Net", (nn.Module,), {"forward": forward})()
    net.a, net.norm, net.b = nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 8, 1)
    net.c, net.last, net.fc = nn.Conv2d(8, 10, 1), nn.LayerNorm(10), nn.Linear(10, 4)
    sub = edgeprune.prune(net, torch.randn(IMAGE), norms=norms)
    assert sub.model(torch.randn(IMAGE)).shape == (2, 4)
    return sub.graph


def test_norms_over_channels_are_cut_or_named_and_left_whole():
    assert {n: g.size for n, g in normed("cut").prunable.items()} == {"a": 3, "b": 8, "c": 10}
    assert list(normed("auto").prunable) == ["a", "b"]
    graph = normed("whole")
    assert list(graph.prunable) == ["b"]
    assert "aten.group_norm in norm" in reasons(graph)["a"] and "aten.layer_norm in last" in reasons(graph)["c"]
    with pytest.raises(EdgePruneError, match="norms must be"):
        normed("none")


def test_a_number_of_heads_written_into_the_forward_pass_keeps_attention_whole():
    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))

    layers = {name: nn.Linear(8, 8) for name in "qkvo"}
    graph = trace(forward, (2, 5, 8), **layers, up=nn.Linear(8, 16), down=nn.Linear(16, 8), head=nn.Linear(8, 3))
    assert list(graph.prunable) == ["up"]
    assert "differs" in reasons(graph)["q"] and any(n.startswith("q stays whole") for n in graph.notes)


def test_a_width_in_the_arithmetic_is_found_in_a_forward_that_makes_its_own_tensors():
    def forward(self, x):
        h = torch.zeros(x.shape[0], self.b.in_features)
        for step in x.unbind(1):
            h = torch.tanh(self.a(step) + self.b(h))
        return self.out(h / h.shape[1])

    layers = {"a": nn.Linear(8, 16), "b": nn.Linear(16, 16), "out": nn.Linear(16, 3)}
    graph = trace(forward, (2, 4, 8), **layers)
    assert not graph.prunable and "output differs" in str(graph.groups["a"].reason)
    assert torch.get_default_dtype() == torch.float32


def test_a_forward_that_asks_for_float32_is_compared_as_closely_as_that_allows():
    def forward(self, x):
        h = F.relu(self.a(x.float()))
        return self.out(h) * (1 + 1e-3 * h.shape[1])

    graph = trace(forward, (2, 8), a=nn.Linear(8, 16), out=nn.Linear(16, 3))
    assert not graph.prunable and "output differs" in str(graph.groups["a"].reason)


@pytest.mark.parametrize("scaled", [False, True])
def test_networks_that_are_random_in_evaluation_are_compared(scaled):
    def forward(self, x):
        h = F.dropout(F.rrelu(self.a(x), training=True), 0.5, True)
        mean, spread = self.mean(h), self.spread(h).exp()
        z = mean + spread * torch.randn_like(spread)
        z = torch.where(torch.rand(len(x), 1) < 0.3, z, z + torch.empty(len(x), 1).bernoulli_(0.5))
        return self.out(z) * (z.shape[1] if scaled else 1) + torch.randint(0, 4, (len(x), 1))

    layers = {"a": nn.Linear(8, 16), "mean": nn.Linear(16, 6), "spread": nn.Linear(16, 6), "out": nn.Linear(6, 3)}
    graph = trace(forward, (2, 8), **layers)
    assert list(graph.prunable) == (["a"] if scaled else ["a", "mean"])
    assert len(graph.notes) == scaled and not any("shapes of its outputs" in note for note in graph.notes)


@pytest.mark.parametrize("slopes", [(), (0.1,), (0.1, 0.2)])
def test_random_slopes_of_any_range_are_compared(slopes):
    graph = trace(lambda self, x: self.out(self.act(self.a(x))), (2, 8), a=nn.Linear(8, 16), act=nn.RReLU(*slopes),
                  out=nn.Linear(16, 3))  # fmt: skip
    assert list(graph.prunable) == ["a"] and not graph.notes


def test_a_random_operation_that_is_not_known_is_said_to_be_compared_by_shapes():
    with torch.library._scoped_library("edgeprune_test", "FRAGMENT") as library:
        library.define("noise(Tensor x) -> Tensor", tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pointwise))
        library.impl("noise", lambda x: x + torch.rand(1, generator=torch.default_generator), "CPU")
        library.impl("noise", torch.empty_like, "Meta")

        def forward(self, x):
            return self.out(torch.ops.edgeprune_test.noise(self.a(x)))

        graph = trace(forward, (2, 8), a=nn.Linear(8, 16), out=nn.Linear(16, 3))
    assert list(graph.prunable) == ["a"]
    assert len(graph.notes) == 2 and all("shapes of its outputs only" in note for note in graph.notes)


def test_what_topk_selects_from_stays_whole():
    def router(self, x):
        scores = self.router(x)
        value, index = scores.topk(2, -1)
        gates = torch.zeros_like(scores).scatter(-1, index, value.softmax(-1))
        return torch.einsum("ne,eho,neh->no", gates, self.down, F.relu(torch.einsum("nd,edh->neh", x, self.up)))

    up, down = nn.Parameter(torch.randn(6, 8, 16)), nn.Parameter(torch.randn(6, 16, 3))
    graph = trace(router, (2, 8), router=nn.Linear(8, 6), up=up, down=down)
    assert list(graph.prunable) == ["up"] and "selects the largest" in reasons(graph)["router"]

    def largest(self, x):
        return self.b(torch.tanh(self.a(x)).topk(3, 1)[0])

    graph = trace(largest, (2, 8), a=nn.Linear(8, 16), b=nn.Linear(3, 3))
    assert not graph.prunable and "selects the largest" in reasons(graph)["a"]


@pytest.mark.parametrize("follows", [True, False])
def test_gates_behind_a_relu_may_be_fewer_where_the_number_that_is_on_follows(follows):
    def forward(self, x):
        gates = F.relu(self.a(x))
        value, index = gates.topk(min(5, self.a.out_features) if follows else 5, 1)
        return self.b(torch.zeros_like(gates).scatter(1, index, value))

    graph = trace(forward, (2, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 3))
    assert list(graph.prunable) == ["a"] * follows
    assert follows or "with one channel the forward pass fails: selected index" in reasons(graph)["a"]


def test_squeezed_channels_stay_whole():
    def forward(self, x):
        return self.b(F.relu(self.a(x)).squeeze(-1)) + self.d(self.c(x).squeeze((0, 1)))

    graph = trace(forward, (2, 8), **{name: nn.Linear(8, 8) for name in "abcd"})
    assert not graph.prunable and all("aten.squeeze" in reasons(graph)[name] for name in "ac")


def test_an_unknown_operation_is_named_and_a_rule_can_be_supplied():
    def forward(self, x):
        x = torch.special.bessel_j0(self.a(x))
        return self.b(torch.cummax(F.relu(x), 3)[0]).mean((2, 3))

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 1)}
    assert "aten.cummax" in reasons(trace(forward, **copy.deepcopy(layers)))["a"]
    assert "aten.cummax" not in RULES
    try:
        rule("aten.cummax")(lambda c, call: [c.layout(call["self"])[1:]] * 2)
        with pytest.raises(EdgePruneError, match="rule of aten.cummax"):
            trace(forward, **copy.deepcopy(layers))
        rule("aten.cummax")(lambda c, call: [c.layout(call["self"])] * 2)
        graph = trace(forward, **layers)
        assert list(graph.prunable) == ["a"] and graph.notes == ()
    finally:
        del RULES["aten.cummax"]


def test_a_wrong_rule_is_caught_by_the_check_run():
    def forward(self, x):
        return self.b(F.relu(self.c(self.a(x)).softmax(1))).mean((2, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "aten.softmax", pointwise)  # not so: the channels share one sum
        graph = trace(forward, a=nn.Conv2d(3, 6, 1), c=nn.Conv2d(6, 5, 1), b=nn.Conv2d(5, 4, 1))
    assert list(graph.prunable) == ["a"] and "differs" in reasons(graph)["c"]


def test_channels_under_a_softmax_or_a_mean_stay():
    def forward(self, x):
        return self.c(self.b(self.a(x).softmax(1)).mean(1, keepdim=True)).mean((2, 3))

    graph = trace(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 5, 1), c=nn.Conv2d(1, 4, 1))
    assert graph.prunable == {} and "mixes" in reasons(graph)["a"] and "reduces" in reasons(graph)["b"]
