"""Which channels belong together; what cannot be followed is named and left whole, and nothing is silently wrong."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pruning_cases import CASES, IMAGE, conv_bn, reasons, trace, traced
from torch import nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.pruning import ChannelGraph, extract
from edgeprune.pruning.coupling import RULES
from edgeprune.pruning.rules import pointwise

# Written by hand from the networks: one entry for each set of layers whose channels must go together.
SIZES = {
    "mlp": [16, 9],
    "lenet": [6, 10, 20],
    "vgg": [8, 8, 16, 12, 10],
    "resnet": [8, 8, 12, 12, 12],  # stem + block 0; its inside; inside of block 1; blocks 1 and 2; inside of block 2
    "bottleneck": [8, 8, 8, 16, 8, 8, 12, 12, 20, 12, 12],
    "resnext": [8, 4, 4, 16, 4, 4, 6, 6, 20, 6, 6],  # half of a grouped layer's channels: both groups alike
    "mobilenet": [8, 16, 4, 20, 4, 12, 24, 4],
    "densenet": [8, 4, 4, 4],
    "inception": [8, 6, 5, 7, 4],
    "unet": [6, 10, 14, 10, 8, 6],
    "multiplier": [6, 5, 7],
    "shuffle": [6, 6],
    "padded-shortcut": [6],
}


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_of_the_network(name):
    _, _, graph = traced(name)
    assert sorted(g.size for g in graph.prunable.values()) == sorted(SIZES[name])
    assert {n: g.size for n, g in graph.prunable.items()} == dict(graph.map.groups)
    assert graph.notes == ()


def test_members_of_a_residual_group():
    _, _, graph = traced("resnet")
    vectors = ("weight", "bias", "running_mean", "running_var")
    expected = {("stem.0.weight", 0), ("blocks.0.c1.weight", 1), ("blocks.0.c2.weight", 0)}
    expected |= {("blocks.1.c1.weight", 1), ("blocks.1.short.0.weight", 1)}
    expected |= {(f"{norm}.{v}", 0) for norm in ("stem.1", "blocks.0.b2") for v in vectors}
    assert {(m.tensor, m.dim) for m in graph.groups["stem.0"].members} == expected
    roles = {(m.tensor, m.dim): m.role for m in graph.groups["stem.0"].members}
    assert roles["stem.0.weight", 0] == roles["blocks.0.c2.weight", 0] == "out"
    assert roles["blocks.0.c1.weight", 1] == "in" and roles["stem.1.weight", 0] == "scale"
    assert not graph.groups["fc"].prunable and "output" in str(graph.groups["fc"].reason)


def test_axes_say_how_a_dimension_is_made():
    assert [(s.group, s.size, s.block, s.repeat) for s in traced("lenet")[2].axes["f1.weight"][1]] == [
        ("c2", 10, 16, 1)
    ]
    dense = traced("densenet")[2].axes
    assert [(s.group, s.length) for s in dense["norm.weight"][0]] == [
        ("stem", 8), ("convs.0", 4), ("convs.1", 4), ("convs.2", 4),
    ]  # fmt: skip
    mixed = traced("inception")[2].axes["mix.weight"]
    assert mixed[0] == mixed[1] and [(s.group, s.length) for s in mixed[0]][-1] == (None, 3)
    assert [(s.group, s.size, s.repeat) for s in traced("resnext")[2].axes["layer1.0.body.0.0.weight"][0]] == [
        ("layer1.0.body.0.0", 4, 2)
    ]
    assert [(s.group, s.size, s.block) for s in traced("multiplier")[2].axes["b.weight"][0]] == [("a", 6, 3)]
    assert [(s.group, s.length) for s in traced("padded-shortcut")[2].axes["body.bias"][0]] == [
        (None, 2), ("stem.0", 6), (None, 2),
    ]  # fmt: skip


# --- sizes written into the forward pass ------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(-1, 384), (2, 384), (-1, 6 * 64)])
def test_a_view_with_its_size_written_out_keeps_its_channels_whole(sizes):
    def forward(self, x):
        return self.fc(self.b(F.relu(self.a(x))).view(sizes))

    graph = trace(forward, a=nn.Conv2d(3, 5, 3, padding=1), b=nn.Conv2d(5, 6, 1), fc=nn.Linear(384, 4))
    assert list(graph.prunable) == ["a"]
    assert "forward pass fails" in reasons(graph)["b"] and "test_channel_graph.py" in reasons(graph)["b"]
    assert any(note.startswith("b stays whole") for note in graph.notes)


def test_several_failing_groups_are_each_found():
    def forward(self, x):
        x = self.ok1(F.relu(self.a(x).reshape(2, 6, 8, 8)))
        x = self.ok2(F.relu(self.b(x).reshape(-1, 7, 64))[..., None])
        return self.c(x).reshape(2, 320) @ torch.ones(320, 3)

    layers = {"a": nn.Conv2d(3, 6, 1), "ok1": nn.Conv2d(6, 4, 1), "b": nn.Conv2d(4, 7, 1), "ok2": nn.Conv2d(7, 8, 1)}
    graph = trace(forward, **layers, c=nn.Conv2d(8, 5, 1))
    assert set(graph.prunable) == {"ok1", "ok2"}
    assert {"a", "b", "c"} <= set(reasons(graph))


def test_a_fixed_split_or_slice_keeps_its_channels_whole():
    def split(self, x):
        x, y = torch.split(self.a(x), [2, 4], 1)
        return self.b(x).mean((2, 3)) + self.c(y).mean((2, 3))

    graph = trace(split, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(2, 4, 1), c=nn.Conv2d(4, 4, 1))
    assert "forward pass fails" in reasons(graph)["a"]

    def equal(self, x):
        x, y = torch.split(self.a(x), 3, 1)
        return self.b(x + y).mean((2, 3))

    graph = trace(equal, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 4, 1))
    assert "a" in reasons(graph)

    def part(self, x):
        return self.b(self.a(x)[:, 1:4]).mean((2, 3))

    assert "by number" in reasons(trace(part, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 4, 1)))["a"]


@pytest.mark.parametrize("parts", [lambda y: y.chunk(3, 1), lambda y: y.split(3, 1), lambda y: y.tensor_split(3, 1)])
def test_a_number_of_parts_that_are_not_equal_keeps_their_channels_whole(parts):
    def forward(self, x):
        return self.b(parts(self.a(x))[0]).mean((2, 3))

    graph = trace(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 4, 1))
    assert "not of one size" in reasons(graph)["a"]


SPELLINGS = {
    "max": lambda a: a.max(1)[0],
    "min": lambda a: a.min(dim=1, keepdim=True).values,
    "median": lambda a: torch.median(a, 1).values,
    "sort": lambda a: a.sort(1)[0],
    "var_mean": lambda a: torch.cat(torch.var_mean(a, 1), -1),
    "logcumsumexp": lambda a: a.logcumsumexp(1),
    "concatenate": lambda a: torch.concatenate([a, a.sin()], -1),
    "hstack": lambda a: torch.hstack([a.mean(1), a[:, 0]]),
    "tile": lambda a: a.tile(1, 1, 3),
    "repeat_interleave": lambda a: a.repeat_interleave(2, -1),
    "swapdims": lambda a: a.swapdims(1, 2).swapdims(2, 1),
    "narrow": lambda a: a.narrow(1, 1, 2),
    "triangle": lambda a: torch.ones(3, 3, dtype=a.dtype).tril() @ a,
    "windows": lambda a: a.unfold(1, 2, 1).mean(-1),
    "patches": lambda a: F.unfold(a.permute(0, 2, 1).unsqueeze(-1), (3, 1)).flatten(1),
    "complex": lambda a: torch.view_as_real(torch.complex(a, a.sin())).sum(-1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_operations_on_other_dimensions_let_the_channels_go(name):
    width = SPELLINGS[name](torch.zeros(2, 3, 8)).shape[-1]
    layers = {"a": nn.Linear(4, 8), "out": nn.Linear(width, 2)}
    graph = trace(lambda self, x: self.out(SPELLINGS[name](self.a(x))), (2, 3, 4), **layers)
    assert dict(graph.map.groups) == {"a": 8} and not graph.notes


def test_heads_written_as_pairs_of_numbers_and_repeated_keys():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.groups, self.wide = 4, 2, 6
            self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 12), nn.Linear(24, 12)
            self.out = nn.Linear(24, 24)

        def turned(self, x):
            pairs = torch.view_as_complex(x.unflatten(-1, (self.wide // 2, 2)))
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] / torch.arange(1, 4, dtype=x.dtype)
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

        def forward(self, x):
            b, n, _ = x.shape
            q = self.turned(self.q(x).view(b, n, self.heads, self.wide)).transpose(1, 2)
            k = self.turned(self.k(x).view(b, n, self.groups, self.wide)).transpose(1, 2)
            v = self.v(x).view(b, n, self.groups, self.wide).transpose(1, 2)
            k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
            scores = (q @ k.mT * self.wide**-0.5).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))

    graph = trace(lambda self, x: self.attention(x), (2, 5, 24), attention=Attention())
    assert list(graph.map.groups.values()) == [2] and not graph.notes


def test_an_operation_without_a_rule_is_named_once():
    graph = trace(lambda self, x: self.out(sum(torch.cdist(y, y) for y in [self.a(x)] * 3)), (4, 3), a=nn.Linear(3, 8),
                  out=nn.Linear(4, 2))  # fmt: skip
    assert len(graph.notes) == 1 and "aten.cdist" in graph.notes[0]


def test_squeeze_without_a_dimension():
    def forward(self, x):
        return self.b(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())

    assert "name the dimension" in reasons(trace(forward, a=nn.Conv2d(3, 6, 1), b=nn.Linear(6, 4)))["a"]


# --- shapes of models ------------------------------------------------------------


def test_tied_weights_and_modules_used_twice_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.words.weight

        def forward(self, i):
            x = self.words(i)
            x = x + self.down(F.relu(self.up(x)))
            return self.out(x + self.down(F.relu(self.up(x))))

    torch.manual_seed(0)
    model, i = Tied(), torch.randint(0, 20, (2, 4))
    sub = edgeprune.prune(model, (i,))
    assert {n: g.size for n, g in sub.graph.prunable.items()} == {"words": 8, "up": 12}
    assert sub.model.out.weight is sub.model.words.weight and sub.model.out.weight.shape == (20, 4)
    assert sub.model.out.in_features == sub.model.words.embedding_dim == 4
    state = model.state_dict()
    merged = edgeprune.merge(state, [(sub.plan, sub.model.state_dict(), 4)])
    assert all(torch.equal(merged[n], state[n]) for n in state)


def test_both_paths_count_when_training_goes_another_way():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
            self.unused = nn.Linear(3, 3)

        def forward(self, x):
            x = F.relu(self.a(x))
            y = self.b(x).mean((2, 3))
            return (y, self.aux(x).mean((2, 3))) if self.training else y

    sub = edgeprune.prune(Auxiliary(), torch.randn(IMAGE))
    assert sub.model.aux.weight.shape == (4, 3, 1, 1) and sub.model.unused.weight.shape == (3, 3)
    y, aux = sub.model.train()(torch.randn(IMAGE))
    assert y.shape == aux.shape == (2, 4)


def test_a_batch_of_one_and_values_of_one_pixel():
    pixel = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(conv_bn(3, 6), *pixel)
    graph = ChannelGraph.trace(model, (torch.randn(1, 3, 8, 8),))
    assert sorted(g.size for g in graph.prunable.values()) == [6, 8]


def test_weights_that_hide_a_branch_do_not_hide_a_mistake():
    norm = nn.BatchNorm2d(6)
    nn.init.zeros_(norm.weight)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(F.relu(x + self.norm(self.conv(x.flip(1)))).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 6, 1), "conv": nn.Conv2d(6, 6, 1), "norm": norm, "fc": nn.Linear(6, 3)}
    assert "moves the channels" in reasons(trace(forward, **copy.deepcopy(layers)))["stem"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "aten.flip", pointwise)  # not so: the branch reads the channels in the other order
        assert "differs" in reasons(trace(forward, **layers))["stem"]


def test_several_inputs_outputs_in_a_dict_and_numbers_made_in_the_forward_pass():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("shift", torch.arange(6.0), persistent=False)

        def forward(self, x, y):
            h = F.relu(self.a(x) + self.b(y)) + self.shift
            return {"logits": self.c(h + torch.ones(x.shape[0], 1)), "count": torch.tensor(3)}

    sub = edgeprune.prune(Two(), (torch.randn(2, 4), torch.randn(2, 5)))
    assert {n: g.size for n, g in sub.graph.prunable.items()} == {"a": 6}
    assert sub.model.shift.tolist() == [float(i) for i in sub.plan.kept["a"]]


def test_layers_asked_to_stay_whole():
    model, inputs, _ = traced("resnet")
    graph = ChannelGraph.trace(model, inputs, whole=("blocks.1.*",))
    assert set(graph.prunable) == {"blocks.2.c1", "blocks.0.c1"}
    assert "asked" in str(graph.groups["blocks.1.c1"].reason)
    with pytest.raises(EdgePruneError, match="bloks"):
        ChannelGraph.trace(model, inputs, whole=("bloks.*",))


def test_a_model_that_cannot_be_captured_is_one_sentence():
    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(EdgePruneError, match="cannot capture Wild") as caught:
        ChannelGraph.trace(Wild(), torch.randn(2, 4))
    assert "\n" not in str(caught.value)


def test_a_forward_that_fails_is_blamed_on_itself():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no such thing, one of:\nmore")

    mlp = traced("mlp")[0]
    for model, inputs, says in (
        (Broken(), torch.randn(2, 4), r"no such thing, one of \(test_channel_graph.py:\d+\)"),
        (mlp, torch.randn(2, 7), "2x7"),
        (mlp, [torch.randn(2, 4)], "list"),
        (mlp, None, "None"),
    ):
        with pytest.raises(EdgePruneError, match=f"the forward pass of {type(model).__name__} fails.*{says}") as caught:
            ChannelGraph.trace(model, inputs)
        assert "control flow" not in str(caught.value) and "\n" not in str(caught.value)


def test_networks_without_anything_to_prune():
    for model in (nn.Linear(4, 3), nn.Sequential(nn.Flatten(), nn.ReLU())):
        x = torch.randn(2, 4)
        for how in ({}, {"keep": 0.99}, {"budget": {"macs": 1.0}}, {"keep": 1, "budget": {"bytes": 0.5}}):
            with pytest.raises(EdgePruneError, match="no channels that can be cut"):
                edgeprune.prune(model, x, **how)
        sub = edgeprune.prune(model, x, keep=1)
        assert sub.plan.retention == 1.0 and not sub.graph.prunable
        assert extract(model, sub.plan)(torch.zeros(2, 4)).shape == model(torch.zeros(2, 4)).shape


def test_masked_layers_are_to_be_made_dense_first():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    masked = edgeprune.sparsify(model, 0.5, skip=["2"])
    with pytest.raises(EdgePruneError, match="'0' is masked.*densify"):
        edgeprune.prune(masked, torch.randn(2, 4))
    assert edgeprune.prune(edgeprune.densify(masked), torch.randn(2, 4)).plan.counts == {"0": 3}


def test_one_pattern_needs_no_list():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)
    assert list(ChannelGraph.trace(model, x, whole="0.*").prunable) == ["2"]
    for pattern in (3, [3]):
        with pytest.raises(EdgePruneError, match="no tensor of the model matches 3"):
            ChannelGraph.trace(model, x, whole=pattern)


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "unet", "multiplier", "shuffle"])
def test_the_graph_is_the_same_in_the_form_that_older_exports_have(name, monkeypatch):
    """torch up to 2.5 exports core ATen operations (convolution, addmm, functional batch norm): the rules know both."""
    model, inputs, graph = traced(name)
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: export(*a, **k).run_decompositions())
    again = ChannelGraph.trace(model, inputs, verify=False)
    assert {n: g.size for n, g in again.prunable.items()} == {n: g.size for n, g in graph.prunable.items()}
    assert again.map == graph.map and again.notes == ()
    assert again.macs(again.map.groups) == graph.macs(graph.map.groups)
