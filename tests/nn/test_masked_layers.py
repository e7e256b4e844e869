"""MaskedLinear and MaskedConv2d: the dense layer's results and state_dict, masks that change, copies, the compiler."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeprune import EdgePruneError, SparsityPattern
from edgeprune.nn import Chain, MaskedConv2d, MaskedLinear, densify, set_masks, sparsify

CONVS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular", "groups": 4},
    {"padding": 1, "padding_mode": "replicate", "stride": 2},
]


def twins(how: dict[str, Any]) -> tuple[MaskedConv2d, nn.Conv2d]:
    """A masked layer and a dense one with the same weights, NaN at dropped places of what the masked one loads."""
    dense = nn.Conv2d(4, 8, (3, 2), **how)
    mask = torch.rand(dense.weight.shape) < 0.4
    masked = MaskedConv2d(4, 8, (3, 2), mask, **how)
    state = dense.state_dict()
    state["weight"] = torch.where(mask, state["weight"], math.nan)
    assert masked.load_state_dict(state).missing_keys == []
    dense.load_state_dict(masked.state_dict())
    return masked, dense


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("how", CONVS, ids=[str(number) for number in range(len(CONVS))])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_conv_is_the_dense_layer_with_zeros(how: dict[str, Any], path: str) -> None:
    masked, dense = twins(how)
    masked.path = path
    x = torch.randn(3, 4, 9, 8, requires_grad=True)
    y, expected = masked(x), dense(x)
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(masked(x[0]), expected[0], atol=1e-5)
    dy = torch.randn(y.shape)
    got, wanted = (
        torch.autograd.grad(y, (x, masked.weight_kept), dy),
        torch.autograd.grad(expected, (x, dense.weight), dy),
    )
    assert torch.allclose(got[0], wanted[0], atol=1e-4)
    assert torch.allclose(got[1], masked.pattern.compact(wanted[1]), atol=1e-4)


def test_linear_is_the_dense_layer_with_zeros() -> None:
    mask = torch.rand(6, 9) < 0.4
    masked, dense = MaskedLinear(9, 6, mask), nn.Linear(9, 6)
    dense.load_state_dict(masked.state_dict())
    x = torch.randn(2, 5, 9)
    assert torch.allclose(masked(x), dense(x), atol=1e-6)
    assert torch.equal(masked.weight, dense.weight) and torch.equal(masked.mask, mask)
    assert dict(masked.named_parameters())["weight_kept"].shape == (int(mask.sum()),)
    assert f"density={masked.density:.4g}" in repr(masked)


def test_a_gradient_that_is_a_negated_view() -> None:
    layer, x = MaskedLinear(6, 5, torch.rand(5, 6) < 0.5, path="sparse"), torch.randn(3, 6, requires_grad=True)
    dy = torch._neg_view(torch.randn(3, 5))
    for net in (layer, Chain(layer, nn.ReLU())):
        given = (x, layer.weight_kept)
        found = [torch.autograd.grad(net(x), given, each) for each in (dy, dy.clone().resolve_neg())]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_fresh_weights_have_the_dense_layers_range() -> None:
    masked, dense = MaskedLinear(64, 200, torch.ones(200, 64)), nn.Linear(64, 200)
    for mine, torchs in ((masked.weight_kept, dense.weight), (masked.bias, dense.bias)):
        assert mine is not None and mine.abs().max() <= 1 / 8
        assert (mine.std() - torchs.std()).abs() < 0.02


# ---- state_dict -----------------------------------------------------------------------------------------------------


def test_state_dict_is_the_dense_layers() -> None:
    masked, dense = twins({"padding": 1})
    state = masked.state_dict()
    assert list(state) == list(dense.state_dict()) == ["weight", "bias"]
    assert state["weight"].shape == dense.weight.shape and not state["weight"].requires_grad
    assert state["weight"][~masked.mask].eq(0).all()
    other = MaskedConv2d(4, 8, (3, 2), masked.mask, padding=1)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.weight_kept, masked.weight_kept)
    assert nn.Sequential(masked).state_dict(prefix="net.").keys() == {"net.0.weight", "net.0.bias"}
    assert masked.state_dict(keep_vars=True)["weight"].requires_grad


def test_loading_takes_kept_places_and_keeps_the_mask() -> None:
    masked = MaskedLinear(3, 2, torch.tensor([[1, 0, 1], [0, 1, 0]]), bias=False)
    masked.load_state_dict({"weight": torch.tensor([[1.0, 9.0, 2.0], [9.0, 0.0, 9.0]])})
    assert masked.weight.tolist() == [[1, 0, 2], [0, 0, 0]] and masked.pattern.kept == 3
    before = masked.weight_kept
    masked.load_state_dict({"weight": torch.ones(2, 3)}, assign=True)
    assert masked.weight_kept is not before and masked.weight_kept.tolist() == [1, 1, 1]


def test_what_load_state_dict_says() -> None:
    network = nn.Sequential(MaskedLinear(3, 2, torch.eye(2, 3)))
    found = network.load_state_dict({"0.bias": torch.zeros(2), "1.weight": torch.zeros(1)}, strict=False)
    assert found.missing_keys == ["0.weight"] and found.unexpected_keys == ["1.weight"]
    with pytest.raises(RuntimeError, match="size mismatch for 0.weight"):
        network.load_state_dict({"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2)})
    with pytest.raises(RuntimeError, match="0.weight is a list, not a tensor"):
        network.load_state_dict({"0.weight": [1.0], "0.bias": torch.zeros(2)})


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_parametrised_weight_is_saved_as_torch_saves_it() -> None:
    network = nn.Sequential(MaskedLinear(3, 2, torch.eye(2, 3)))
    before = network[0].weight.detach()
    parametrize.register_parametrization(network[0], "weight_kept", Twice())
    state = network.state_dict()
    assert list(state) == ["0.bias", "0.parametrizations.weight_kept.original"]
    other = copy.deepcopy(network)
    nn.init.zeros_(other[0].parametrizations["weight_kept"].original)
    other.load_state_dict(state)
    full = densify(other)
    assert torch.equal(full[0].weight, 2 * before) and torch.equal(other[0].weight, 2 * before)
    with pytest.raises(EdgePruneError, match="set_masks: weight_kept is computed by a parametrisation"):
        set_masks(network, {"0": torch.ones(2, 3)})
    parametrize.remove_parametrizations(network[0], "weight_kept")
    assert torch.equal(network.state_dict()["0.weight"], 2 * before)


# ---- masks that change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=0.1),
])  # fmt: skip
def test_set_mask_carries_values_and_optimiser_state(make: Any) -> None:
    masked = MaskedLinear(3, 1, torch.tensor([[1, 1, 0]]), bias=False)
    masked.load_state_dict({"weight": torch.tensor([[5.0, 7.0, 0.0]])})
    optimizer, parameter = make(masked.parameters()), masked.weight_kept
    masked(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    optimizer.step()
    value = masked.weight.detach().clone()
    state = {name: t.clone() for name, t in optimizer.state[parameter].items() if isinstance(t, Tensor) and t.ndim == 1}
    assert state
    masked.set_mask(torch.tensor([[0, 1, 1]]), optimizer)
    assert masked.weight_kept is parameter and parameter.grad is None
    assert masked.weight.tolist() == [[0, float(value[0, 1]), 0]] and masked.mask.tolist() == [[False, True, True]]
    for name, t in state.items():
        assert optimizer.state[parameter][name].tolist() == [float(t[1]), 0]
    masked(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert parameter.grad is not None and parameter.grad.tolist() == [2, 3]
    optimizer.step()
    masked.set_mask(torch.ones(1, 3), [optimizer])  # another number of kept weights
    masked(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert parameter.shape == (3,)


@pytest.mark.parametrize("net", [nn.Sequential, Chain])
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_another_number_of_weights_while_the_last_loss_lives_on(path: str, net: Any) -> None:
    layer = MaskedLinear(4, 3, torch.eye(3, 4), path=path)
    network, x, calls = net(layer, nn.ReLU()), torch.randn(5, 4), []
    layer.weight_kept.register_hook(lambda grad: calls.append(tuple(grad.shape)))
    optimizer = torch.optim.AdamW(network.parameters())
    for mask in (torch.ones(3, 4), torch.eye(3, 4), torch.eye(3, 4).flip(0)):
        loss = network(x).square().sum()  # the one before is there until now, and its graph
        loss.backward()
        optimizer.step()
        set_masks(network, {"0": mask}, optimizer)
    assert calls == [(3,), (12,), (3,)]


def test_a_state_over_all_parameters_cannot_follow_a_mask() -> None:
    layer = MaskedLinear(4, 3, torch.ones(3, 4))
    optimizer = torch.optim.LBFGS(layer.parameters())
    set_masks(nn.Sequential(layer), {"0": torch.ones(3, 4)}, optimizer)  # nothing held yet

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = layer(torch.ones(2, 4)).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(EdgePruneError, match="LBFGS holds its state in rows over all parameters"):
        set_masks(nn.Sequential(layer), {"0": torch.eye(3, 4)}, optimizer)
    assert layer.pattern.kept == 12


def test_set_masks_names_layers_and_changes_all_or_nothing() -> None:
    network = nn.Sequential(MaskedLinear(2, 2, torch.eye(2)), MaskedLinear(2, 1, torch.ones(1, 2)))
    for masks, sentence in (
        ({"0": torch.ones(2, 2), "2": torch.ones(1, 2)}, "'2' is no masked layer"),
        ({"0": torch.ones(2, 2), "1": torch.ones(2, 1)}, r"the mask of '1' has shape \(2, 1\)"),
    ):
        with pytest.raises(EdgePruneError, match=sentence):
            set_masks(network, masks)
        assert network[0].pattern.kept == 2
    set_masks(network, {"0": torch.ones(2, 2)})
    assert network[0].pattern.kept == 4


# ---- copies ---------------------------------------------------------------------------------------------------------


def test_copies_are_independent() -> None:
    masked, _ = twins({})
    x = torch.randn(1, 4, 5, 5)
    y = masked(x).detach()
    for other in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert torch.equal(other(x), y)
        other.set_mask(torch.ones(8, 4, 3, 2))
        nn.init.zeros_(other.weight_kept)
        assert torch.equal(masked(x), y)


def test_share_memory_and_other_types() -> None:
    masked, _ = twins({})
    x = torch.randn(1, 4, 5, 5)
    y = masked(x).detach()
    assert all(p.is_shared() for p in masked.share_memory().parameters())
    assert torch.equal(masked(x), y)
    double = copy.deepcopy(masked).double()
    assert torch.allclose(double(x.double()).float(), y, atol=1e-5)
    assert torch.allclose(copy.deepcopy(masked).bfloat16()(x.bfloat16()).float(), y, atol=0.1)
    assert copy.deepcopy(masked).to("meta")(x.to("meta")).shape == y.shape


@pytest.mark.parametrize("path", ["auto", "sparse", "dense"])
def test_under_torch_compile(path: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        conv = MaskedConv2d(2, 4, 3, torch.rand(4, 2, 3, 3) < 0.5, padding="same", path=path)
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), MaskedLinear(36, 3, torch.rand(3, 36) < 0.5, path=path))

    eager, x = network(), torch.randn(4, 2, 3, 3)
    compiled = torch.compile(network(), backend="aot_eager", fullgraph=True)  # its patterns were never used eagerly
    for samples in (x, x[:2]):
        losses = [net(samples).square().sum() for net in (eager, compiled)]
        assert torch.allclose(*losses, rtol=1e-6)
        for net, loss in zip((eager, compiled), losses, strict=True):
            net.zero_grad()
            loss.backward()
        for mine, other in zip(eager.parameters(), compiled.parameters(), strict=True):
            assert mine.grad is not None and other.grad is not None and torch.allclose(mine.grad, other.grad, atol=1e-5)


# ---- what torch is set to -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch before 2.7 does not say")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", ["auto", "sparse", "dense"])
def test_exported_for_batches_of_any_size(path: str) -> None:
    kept = torch.rand(8, 3, 3, 3) < 0.1, torch.rand(6, 288) < 0.1
    net = nn.Sequential(
        MaskedConv2d(3, 8, 3, kept[0], path=path), nn.ReLU(), nn.Flatten(), MaskedLinear(288, 6, kept[1], path=path)
    )
    any_size = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(net, (torch.randn(4, 3, 8, 8),), dynamic_shapes=any_size, strict=False).module()
    for batch in (1, 4, 300):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_a_mask_first_used_in_inference_mode_trains(path: str) -> None:
    x, mask = torch.randn(3, 6), torch.rand(5, 6) < 0.5
    with torch.inference_mode():
        pattern = SparsityPattern.from_mask(mask)
        first = MaskedLinear(6, 5, pattern, path=path)(x)
        assert first.shape == (3, 5) and pattern.index().numel() == pattern.kept
    layer = MaskedLinear(6, 5, pattern, path=path)
    for net in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        net(x).sum().backward()
        assert layer.weight_kept.grad is not None
        assert torch.allclose(layer.weight_kept.grad, pattern.compact(x.sum(0).expand(5, 6)), atol=1e-5)
    layer.weight.square().sum().backward()


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_under_another_default_device(path: str) -> None:
    x, mask, dense = torch.randn(3, 6), torch.rand(5, 6) < 0.5, nn.Linear(6, 5)
    with torch.device("meta"):
        empty = MaskedLinear(6, 5, mask, path=path)
        layer = sparsify(dense, masks={"": mask}, path=path)
        y = layer(x)
    assert empty.weight_kept.is_meta and y.device == x.device
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), y) and torch.equal(y, layer(x))


def test_under_another_default_type() -> None:
    layer, x = MaskedLinear(6, 5, torch.rand(5, 6) < 0.5, path="sparse"), torch.randn(3, 6)
    torch.set_default_dtype(torch.float64)
    try:
        for net in (layer, torch.compile(layer, backend="aot_eager")):
            net(x).sum().backward()
            net(x[:0]).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.weight_kept.grad is not None and layer.weight_kept.grad.dtype is torch.float32


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [
    (lambda: MaskedLinear(3, 2, torch.ones(3, 2)), "the mask has shape (3, 2), not (2, 3)"),
    (lambda: MaskedLinear(3, 2, torch.ones(2, 3), path="slow"), "path is 'slow'"),
    (lambda: MaskedLinear(3, 2, torch.ones(2, 3))(torch.ones(2, 2)), "x has shape (2, 2); it takes (..., 3)"),
    (lambda: MaskedLinear(3, 2, torch.ones(2, 3)).set_mask(torch.ones(3, 2)), "a mask of shape (3, 2)"),
    (lambda: MaskedLinear(1, 1, torch.ones(1, 1)).set_mask(torch.ones(1, 1), "adam"), "optimizer is 'a'"),
    (lambda: MaskedLinear(1, 1, torch.ones(1, 1)).set_mask(torch.ones(1, 1), 5), "optimizer is 5"),  # type: ignore
    (lambda: set_masks(nn.Sequential(), {}, [None]), "optimizer is None"),  # type: ignore[list-item]
    (lambda: MaskedConv2d(4, 2, 3, torch.ones(2, 4, 3, 3), groups=2), "not (2, 2, 3, 3) (4 inputs in 2 groups)"),
    (lambda: MaskedConv2d(3, 2, 1, torch.ones(2, 1, 1, 1), groups=2), "(3 inputs in 2 groups)"),
    (lambda: MaskedConv2d(1, 1, 1, torch.ones(1, 1, 1, 1), padding=-1), "must not be negative"),
    (lambda: MaskedConv2d(1, 1, 1, torch.ones(1, 1, 1, 1), padding_mode="mirror"), "padding_mode is 'mirror'"),
    (lambda: MaskedConv2d(1, 1, 3, torch.ones(1, 1, 3, 3), padding="same", stride=2), "asks for stride 1"),
    (lambda: MaskedConv2d(1, 1, 3, torch.ones(1, 1, 3, 3))(torch.ones(1, 1, 2, 5)), "smaller than the filter"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_refusals_are_sentences(call: Any, sentence: str) -> None:
    with pytest.raises(EdgePruneError) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
