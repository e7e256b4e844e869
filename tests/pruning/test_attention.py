"""Heads, their width, sizes held in attributes, and torch's own attention with fewer heads."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import REPAIRS, ChannelGraph, SubmodelPlan, extract
from edgeprune.pruning.attention import SlimMultiheadAttention

TOKENS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def attention(**how):
    torch.manual_seed(0)
    return nn.MultiheadAttention(12, 4, **how).double().eval()


def cut_by_hand(full, heads):
    """A SlimMultiheadAttention with some heads of a full one, sliced here."""
    rows = torch.cat([torch.arange(h * 3, h * 3 + 3) for h in heads])
    small, wide = copy.deepcopy(full), full.out_proj.weight.shape[1]
    if full.in_proj_weight is not None:
        small.in_proj_weight = nn.Parameter(full.in_proj_weight[torch.cat([rows + part * wide for part in range(3)])])
    else:
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            setattr(small, name, nn.Parameter(getattr(full, name)[rows]))
    if full.in_proj_bias is not None:
        small.in_proj_bias = nn.Parameter(full.in_proj_bias[torch.cat([rows + part * wide for part in range(3)])])
    if full.bias_k is not None:
        small.bias_k, small.bias_v = nn.Parameter(full.bias_k[..., rows]), nn.Parameter(full.bias_v[..., rows])
    small.out_proj.weight = nn.Parameter(full.out_proj.weight[:, rows])
    REPAIRS[nn.MultiheadAttention](small)
    return small


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 7, "vdim": 5},
    ],
    ids=str,
)
def test_fewer_heads_give_what_the_full_attention_gives_with_silent_heads(how, weights):
    full = attention(**how)
    q, k, v = torch.randn(4, 2, 12).double(), torch.randn(6, 2, how.get("kdim", 12)).double(), None
    v = torch.randn(6, 2, how.get("vdim", 12)).double()
    if how.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    closed = torch.zeros(8, 4, 6, dtype=torch.bool)
    closed[:, 0, 1:] = True
    silent = copy.deepcopy(full)
    with torch.no_grad():
        silent.out_proj.weight[:, 3:6] = 0  # head 1
        silent.out_proj.weight[:, 9:] = 0  # head 3
    small = cut_by_hand(full, [0, 2])
    assert type(small) is SlimMultiheadAttention and (small.num_heads, small.head_dim) == (2, 3)
    for mask in (None, closed[0], closed):
        given = {"key_padding_mask": padding, "need_weights": weights}
        theirs = silent(q, k, v, attn_mask=mask, **given)
        mine = small(q, k, v, attn_mask=mask if mask is None or mask.dim() == 2 else mask[:4], **given)
        torch.testing.assert_close(mine[0], theirs[0])
        assert (mine[1] is None) == (theirs[1] is None)
    each = silent(q, k, v, average_attn_weights=False)[1]
    torch.testing.assert_close(small(q, k, v, average_attn_weights=False)[1], each[:, [0, 2]])


def test_one_sequence_without_a_batch_and_boolean_masks():
    full = attention()
    x, causal = torch.randn(5, 12).double(), torch.ones(5, 5).triu(1).bool()
    small = cut_by_hand(full, [0, 1, 2, 3])
    assert type(small) is nn.MultiheadAttention  # nothing was cut, so it stays torch's
    small = cut_by_hand(cut_by_hand(full, [0, 1]), [0, 1])
    with torch.no_grad():
        full.out_proj.weight[:, 6:] = 0
    torch.testing.assert_close(small(x, x, x, attn_mask=causal)[0], full(x, x, x, attn_mask=causal)[0])


class Written(nn.Module):
    """Attention with its scale in the code, so that heads may grow narrower."""

    def __init__(self):
        super().__init__()
        self.heads, self.scale = 3, 0.5
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


def test_heads_or_their_width():
    model = Written()
    heads = ChannelGraph.trace(model, TOKENS)
    assert {n: g.size for n, g in heads.prunable.items()} == {"q": 3}
    assert [m.tensor for m in heads.groups["q"].members if m.dim == 1] == ["o.weight"]
    small = extract(model, SubmodelPlan(heads.map, {"q": (0, 2)}))
    assert small.heads == 2 and small.q.out_features == small.o.in_features == 8
    width = ChannelGraph.trace(model, TOKENS, attention="width")
    assert {n: g.size for n, g in width.prunable.items()} == {"q": 4, "v": 4}
    small = extract(model, SubmodelPlan(width.map, {"q": (1,), "v": (0, 1, 3)}))
    assert small.heads == 3 and small.q.out_features == 3 and small.o.in_features == 9
    assert small(TOKENS).shape == model(TOKENS).shape
    with pytest.raises(EdgePruneError, match="attention 'heads' or 'width'"):
        ChannelGraph.trace(model, TOKENS, attention="both")


def test_the_width_of_a_head_stays_where_the_scale_is_the_default_one():
    model = Written()
    model.scale = None
    graph = ChannelGraph.trace(model, TOKENS, attention="width")
    assert list(graph.prunable) == ["v"] and "width of a head" in str(graph.groups["q"].reason)


class Limits(nn.Module):
    """A size, and three numbers that equal it by chance and matter only for inputs unlike the example."""

    def __init__(self):
        super().__init__()
        self.hidden = self.context = self.most = self.embed_dim = 16
        self.a, self.clip, self.out = nn.Linear(8, 16), nn.Hardtanh(0, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = x[:, -self.most :]
        if x.shape[1] > self.context:
            x = x[:, : self.context]
        return self.out(self.clip(self.a(x)).view(len(x), -1, self.hidden)).mean(1)


def test_a_number_that_only_equals_a_width_stays_and_is_named():
    sub = edgeprune.prune(Limits(), torch.randn(2, 10, 8))
    small = sub.model
    assert (small.hidden, small.context, small.most, small.clip.max_val) == (8, 16, 16, 16)
    assert small.embed_dim == 8  # nothing reads it, but it says what it is
    (note,) = sub.graph.notes
    assert set(note.split(":")[0].split(", ")) == {"Limits.context", "Limits.most", "Hardtanh.max_val"}


def test_attributes_that_hold_sizes_follow_and_numbers_that_are_equal_by_chance_do_not():
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.other, self.times, self.shape = 6, 8, 6, [4, 6]
            self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x).reshape(-1, self.hidden)
            for _ in range(self.times):  # six by chance
                x = x + 0.1
            return self.c(self.b(F.relu(x)).view(-1, self.other))

    sub = edgeprune.prune(Sizes(), TOKENS)
    assert (sub.model.hidden, sub.model.other, sub.model.times, sub.model.shape) == (3, 4, 6, [4, 6])
    assert [note.split(":")[0] for note in sub.graph.notes] == ["Sizes.shape.1"]  # nothing reads it
    assert SubmodelPlan.from_json(sub.plan.to_json()) == sub.plan
    assert SubmodelPlan.from_json(sub.plan.to_json()).map.sizes == sub.plan.map.sizes
    other = Sizes()
    other.hidden = 7
    with pytest.raises(EdgePruneError, match="'hidden' does not hold"):
        extract(other, sub.plan)


@pytest.mark.parametrize("sizes", ["[]", '{"a": 3}', '{"a": "#9"}', '{"a": "x"}'])
def test_a_text_with_wrong_sizes_is_refused(sizes):
    text = '{"format":"edgeprune.plan/1","groups":{"g":[3,""]},"kinds":[],"axes":{},"sizes":' + sizes + "}"
    with pytest.raises(EdgePruneError):
        SubmodelPlan.from_json(text)


def test_a_repair_by_hand():
    class Table(nn.Module):
        """Computes a size once, in a form that no attribute shows."""

        def __init__(self):
            super().__init__()
            self.up, self.down, self.note = nn.Linear(12, 6), nn.Linear(6, 12), "6"

        def forward(self, x):
            return self.down(F.relu(self.up(x)).view(*x.shape[:2], int(self.note)))

    assert "up" not in ChannelGraph.trace(Table(), TOKENS).prunable
    REPAIRS[Table] = lambda layer: setattr(layer, "note", str(layer.up.weight.shape[0]))
    try:
        assert edgeprune.prune(Table(), TOKENS).model.note == "3"
    finally:
        del REPAIRS[Table]


def test_halves_by_slices_and_a_table_of_numbers():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(12, 16), nn.Linear(8, 12)
            self.table = nn.Parameter(torch.randn(9, 12))
            self.register_buffer("at", torch.tensor([3, 1, 4, 1, 5]))

        def forward(self, x):
            y = self.up(x + self.table[self.at])
            half = y.shape[-1] // 2
            return self.down(y[..., :half] * y[..., half:].sigmoid())

    graph = ChannelGraph.trace(Halves(), TOKENS)
    assert {n: (g.size) for n, g in graph.prunable.items()} == {"up": 8}
    assert [s.repeat for s in graph.axes["up.weight"][0]] == [2]


class OneKeyHead(nn.Module):
    """Multi-query attention, written in the ways that people write it: all heads read one head of keys and values."""

    def __init__(self, form, width=32, heads=4):
        super().__init__()
        self.form, self.heads, self.each = form, heads, width // heads
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, self.each), nn.Linear(width, self.each)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.each).transpose(1, 2)
        k, v = self.k(x).view(n, 1, t, self.each), self.v(x).view(n, 1, t, self.each)
        if self.form == "matmul":
            y = ((q @ k.transpose(-1, -2)) * self.each**-0.5).softmax(-1) @ v
        elif self.form == "einsum":
            a = torch.einsum("nhtd,nsd->nhts", q, k[:, 0]).mul(self.each**-0.5).softmax(-1)
            y = torch.einsum("nhts,nsd->nhtd", a, v[:, 0])
        else:
            if self.form == "expand":
                k, v = (z.expand(n, self.heads, t, self.each) for z in (k, v))
            elif self.form == "repeat":
                k, v = (z.repeat_interleave(self.heads, 1) for z in (k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize("form", ["matmul", "einsum", "broadcast", "expand", "repeat"])
def test_heads_that_share_one_key_are_cut(form):
    torch.manual_seed(0)
    model, x = OneKeyHead(form).double(), torch.randn(2, 5, 32, dtype=torch.float64)
    graph = ChannelGraph.trace(model, x)
    assert list(graph.map.groups.values()) == [4]
    plan = SubmodelPlan(graph.map, dict.fromkeys(graph.map.groups, (1, 3)))
    small = extract(model, plan)
    assert small.q.weight.shape == (16, 32) and small.k.weight.shape == (8, 32) and small.o.weight.shape == (32, 16)
    with torch.no_grad():
        model.o.weight.view(32, 4, 8)[:, [0, 2]] = 0.0  # what the removed heads say is not heard
    torch.testing.assert_close(small(x), model(x))
