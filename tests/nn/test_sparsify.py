"""sparsify and densify: exact counts, what is kept, what stays dense."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.nn import MaskedConv2d, MaskedLinear, densities, erdos_renyi_kernel, masks, uniform


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


# ---- counts by hand -------------------------------------------------------------------------------------------------


def test_uniform_counts() -> None:
    assert uniform([(10, 10), (3, 5), (1, 2)], 0.1) == [10, 2, 1]  # 1.5 up to 2; at least one
    assert uniform([(7, 3)], 1.0) == [21]


def test_erk_counts_by_hand() -> None:
    # Sums of sizes 110 and 40 of layers of 1000 and 400 weights: at density .3 there are 420 weights for 150 parts,
    # 2.8 each: 308 and 112.
    assert erdos_renyi_kernel([(100, 10), (20, 20)], 0.3) == [308, 112]
    # (4, 1, 3, 3): 11 parts of 36 weights. 518 of 1036 weights, 231 parts, 2.2424 each: .69 of the first, .49 of the
    # second. Of (2, 1): 3 parts of 2 weights, and at 2.24 a part that is more than it has: dense, and so left out.
    assert erdos_renyi_kernel([(2, 1), (100, 10)], 0.5) == [2, 499]
    assert erdos_renyi_kernel([(100, 10), (20, 20)], 1.0) == [1000, 400]


def test_erk_of_rigls_example_is_dense_in_the_first_layer() -> None:
    shapes = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (1000, 2048)]
    counts = erdos_renyi_kernel(shapes, 0.1)
    total = sum(math.prod(shape) for shape in shapes)
    assert sum(counts) == math.floor(0.1 * total + 0.5)
    parts = [sum(shape) for shape in shapes]
    for count, shape in zip(counts, shapes, strict=True):
        assert count <= math.prod(shape)
    free = [i for i, count in enumerate(counts) if count < math.prod(shapes[i])]
    rates = [counts[i] / parts[i] for i in free]
    assert max(rates) - min(rates) < 2 / min(parts)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    density=st.floats(0.001, 1.0),
)
def test_erk_counts_add_up(shapes: list[tuple[int, int]], density: float) -> None:
    counts = erdos_renyi_kernel(shapes, density)
    sizes = [math.prod(shape) for shape in shapes]
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert sum(counts) == max(len(shapes), math.floor(density * sum(sizes) + 0.5))


# ---- what is kept ---------------------------------------------------------------------------------------------------


def largest(weight: Tensor, k: int) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().argsort(descending=True, stable=True)[:k]] = True
    return mask.view(weight.shape)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_the_largest_magnitudes_of_each_layer_are_kept(distribution: str) -> None:
    dense = network()
    sparse = edgeprune.sparsify(dense, density=0.3, distribution=distribution)
    names = ["0", "3", "6"]
    shapes = [tuple(dense.get_submodule(name).weight.shape) for name in names]  # type: ignore[union-attr]
    counts = (uniform if distribution == "uniform" else erdos_renyi_kernel)(shapes, 0.3)
    for name, k in zip(names, counts, strict=True):
        weight, layer = dense.get_submodule(name).weight.detach(), sparse.get_submodule(name)  # type: ignore[union-attr]
        assert torch.equal(layer.mask, largest(weight, k))
        assert torch.equal(layer.weight, weight * layer.mask)
    assert isinstance(sparse[0], MaskedConv2d) and isinstance(sparse[6], MaskedLinear)


def test_global_keeps_the_largest_of_all() -> None:
    dense = network()
    sparse = edgeprune.sparsify(dense, density=0.2, distribution="global")
    every = torch.cat([dense.get_submodule(name).weight.detach().flatten() for name in ("0", "3", "6")])
    kept = torch.cat([mask.flatten() for mask in masks(sparse).values()])
    assert torch.equal(kept, largest(every, math.floor(0.2 * every.numel() + 0.5)))


def test_complex_weights_are_compared_by_magnitude() -> None:
    layer = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1 + 0j, 3j], [-2 + 0j, 0.5 - 4j]]))
    assert edgeprune.sparsify(layer, 0.5).mask.tolist() == [[False, True], [False, True]]
    assert edgeprune.sparsify(layer, 0.5, "global").mask.tolist() == [[False, True], [False, True]]


def test_masks_are_obeyed_and_come_back() -> None:
    dense = network()
    wanted = {"6": torch.rand(10, 128) < 0.5, "0": torch.rand(8, 3, 3, 3) < 0.5}
    sparse = edgeprune.sparsify(dense, masks=wanted)
    found = masks(sparse)
    assert list(found) == ["0", "6"] and all(torch.equal(found[name], mask) for name, mask in wanted.items())
    assert type(sparse[3]) is nn.Conv2d


class Aliases(nn.Module):
    """Holds its layers in plain rows, which its forward goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers, self.pair, self.by_name = [self.a, self.b], ((self.a, 3), "b"), {"b": [self.b]}

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, self.pair[0][0], *self.by_name["b"]):
            x = layer(x)
        return x


def test_layers_in_plain_rows_are_exchanged_too() -> None:
    dense, x = Aliases(), torch.randn(2, 8)
    sparse = edgeprune.sparsify(dense, 0.25)
    assert sparse.layers == [sparse.a, sparse.b] and sparse.pair == ((sparse.a, 3), "b")
    assert sparse.by_name == {"b": [sparse.b]} and dense.layers == [dense.a, dense.b]
    full = edgeprune.densify(sparse)
    assert full.layers == [full.a, full.b] and type(full.a) is nn.Linear
    torch.testing.assert_close(sparse(x), full(x))


def test_original_is_untouched_unless_in_place() -> None:
    dense, x = network().eval(), torch.randn(2, 3, 9, 9)
    y = dense(x)
    sparse = edgeprune.sparsify(dense, density=0.5)
    assert torch.equal(dense(x), y) and not sparse.training and not sparse[0].training
    full = edgeprune.sparsify(dense, density=1.0, path="sparse")
    assert torch.allclose(full(x), y, atol=1e-5)
    assert edgeprune.sparsify(dense, in_place=True) is dense and isinstance(dense[0], MaskedConv2d)


def test_densify_gives_the_dense_model_back() -> None:
    sparse = edgeprune.sparsify(network(), density=0.3).eval()
    sparse[0].weight_kept.requires_grad_(False)
    dense, x = edgeprune.densify(sparse), torch.randn(2, 3, 9, 9)
    assert type(dense[0]) is nn.Conv2d and type(dense[6]) is nn.Linear and not dense.training
    assert torch.allclose(dense(x), sparse(x), atol=1e-5)
    assert not dense[0].weight.requires_grad and dense[6].weight.requires_grad
    other = network()
    other.load_state_dict(sparse.state_dict())  # it loads anywhere
    assert list(other.state_dict()) == list(sparse.state_dict())
    assert torch.equal(other.eval()(x), dense(x))
    assert isinstance(sparse[0], MaskedConv2d)


def test_a_single_layer_and_a_layer_used_twice() -> None:
    assert isinstance(edgeprune.sparsify(nn.Linear(4, 3)), MaskedLinear)
    layer = nn.Linear(3, 3)
    twice = edgeprune.sparsify(nn.Sequential(layer, nn.ReLU(), layer), density=0.5)
    assert isinstance(twice[0], MaskedLinear) and twice[0] is twice[2]


# ---- what stays dense -----------------------------------------------------------------------------------------------


def test_skip_by_name_pattern_and_function() -> None:
    for skip in ("0", ["0"], ["[0-2]"], lambda name, layer: name == "0"):
        sparse = edgeprune.sparsify(network(), density=0.3, skip=skip)
        assert [type(sparse[i]) for i in (0, 3, 6)] == [nn.Conv2d, MaskedConv2d, MaskedLinear]
        assert sparse[6].pattern.kept == 384


def test_other_layers_stay_dense_and_are_named() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "deconv": nn.ConvTranspose2d(2, 3, 3),
            "conv1d": nn.Conv1d(2, 3, 3),
            "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "linear": nn.Linear(4, 4),
        }
    )
    sparse = edgeprune.sparsify(model, density=0.25)
    rows = {row["name"]: row for row in densities(sparse)}
    assert (rows["linear"]["kept"], rows["linear"]["density"], rows["linear"]["note"]) == (4, 0.25, "")
    assert "no masked form of ConvTranspose2d" in rows["deconv"]["note"]
    assert "no masked form of Conv1d" in rows["conv1d"]["note"]
    assert "attention.out_proj" in rows
    sparse["attention"](*[torch.randn(3, 1, 8)] * 3)
    assert type(sparse["normed"]) is type(model["normed"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


REFUSED: list[tuple[Any, str]] = [
    (lambda: edgeprune.sparsify(nn.ReLU()), "no nn.Linear or nn.Conv2d is left to mask"),
    (lambda: edgeprune.sparsify(network(), skip="*"), "no nn.Linear or nn.Conv2d is left to mask"),
    (lambda: edgeprune.sparsify(network(), density=0.0), "density is 0.0"),
    (lambda: edgeprune.sparsify(network(), density=1.5), "density is 1.5"),
    (lambda: edgeprune.sparsify(network(), density=math.nan), "density is nan"),
    (lambda: edgeprune.sparsify(network(), distribution="erdos"), "distribution is 'erdos'"),
    (lambda: edgeprune.sparsify(network(), masks={"7": torch.ones(1)}), "masks names '7'"),
    (lambda: edgeprune.sparsify(network(), masks={"6": torch.ones(1, 1)}), "the mask has shape (1, 1)"),
    (lambda: edgeprune.sparsify(Tied()), "embed and head share a weight"),
    (lambda: edgeprune.sparsify(nan_network()), "NaN"),
    (lambda: edgeprune.sparsify(network().to("meta")), "the weight of '0' is on meta"),
]


def nan_network() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[6].weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_refusals_are_sentences(call: Any, sentence: str) -> None:
    with pytest.raises(EdgePruneError) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


NETWORK = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "how", [{}, {"distribution": "global"}, {"masks": {"4": torch.ones(4, 32)}}], ids=["uniform", "global", "masks"]
)
def test_weights_that_are_not_finite_are_named(value, how):
    model = nn.Sequential(*copy.deepcopy(NETWORK))
    with torch.no_grad():
        model[4].weight[1, 2] = value
    with pytest.raises(EdgePruneError, match="the weight of '4' holds NaN or infinity"):
        edgeprune.sparsify(model, **how)
    assert masks(edgeprune.sparsify(model, skip=["4"])).keys() == {"0"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": None}, "the model is None"),
        ({"density": None}, "density is None"),
        ({"density": "a"}, "density is 'a'"),
        ({"distribution": None}, "distribution is None"),
        ({"distribution": []}, "distribution is a list"),
        ({"skip": 3}, "skip is 3"),
        ({"skip": [3]}, "skip names 3"),
        ({"skip": ["zzz"]}, "skip names 'zzz', which is no layer"),
        ({"skip": "zz*"}, "skip names 'zz[*]'"),
        ({"masks": [1]}, "masks is a list"),
        ({"masks": {"0": 1}}, "the mask is 1"),
        ({"masks": {3: torch.ones(1)}}, "masks names 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_sparsify_is_given_wrongly_is_one_sentence(arguments, says):
    with pytest.raises(EdgePruneError, match=says):
        edgeprune.sparsify(**{"model": nn.Sequential(*NETWORK), **arguments})


def test_a_container_is_no_layer_to_skip_but_its_layers_are():
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), head=nn.Linear(4, 2)))
    with pytest.raises(EdgePruneError, match="skip names 'body', which is no layer; did you mean 'body.0'"):
        edgeprune.sparsify(model, skip="body")
    assert masks(edgeprune.sparsify(model, skip="body*")).keys() == {"head"}
