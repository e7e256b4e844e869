"""Chain is nn.Sequential to the bit, and leaves to it what it cannot run together."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.nn import MaskedConv2d, MaskedLinear, chain
from edgeprune.nn.chain import Chain
from edgeprune.nn.pooling import MaxPool2d


def mask(*shape: int, density: float = 0.2, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def pictures() -> list[nn.Module]:
    """A network of which all but the batch-norm's kind can run together."""
    return [
        MaskedConv2d(3, 6, 5, mask(6, 3, 5, 5, density=0.9), path="sparse"),
        nn.ReLU(inplace=True),
        MaxPool2d(3, 1),
        MaskedConv2d(6, 5, 3, mask(5, 6, 3, 3), stride=2, padding=1, bias=False, path="sparse"),
        nn.ReLU(),
        nn.ReLU(),
        nn.Flatten(),
        MaskedLinear(45, 12, mask(12, 45), path="sparse"),
        nn.ReLU(),
        MaskedLinear(12, 7, torch.ones(7, 12)),
        nn.Linear(7, 4),
    ]


NETWORKS = {
    "pictures": (pictures, (3, 12, 12)),
    "vectors": (lambda: [MaskedLinear(20, 9, mask(9, 20), path="sparse"), nn.ReLU(), nn.Linear(9, 3)], (20,)),
    "dense end": (
        lambda: [MaskedLinear(20, 9, mask(9, 20), path="sparse"), MaskedLinear(9, 3, mask(3, 9), path="dense")],
        (20,),
    ),
    "a layer that is not known": (
        lambda: [
            MaskedConv2d(3, 4, 3, mask(4, 3, 3, 3), path="sparse"),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(4),
            MaskedConv2d(4, 4, 3, mask(4, 4, 3, 3), path="sparse"),
        ],
        (3, 8, 8),
    ),
    "activation first": (lambda: [nn.ReLU(), nn.Flatten(), MaskedLinear(12, 4, mask(4, 12), path="sparse")], (3, 2, 2)),
    "nothing masked": (lambda: [nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3)], (20,)),
}


def pair(name: str, batch: int = 6) -> tuple[Chain, nn.Sequential, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(5)
    layers = make()
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    return Chain(*layers), nn.Sequential(*copy.deepcopy(layers)), x


def same_step(ours: nn.Module, theirs: nn.Module, x: Tensor, for_x: bool = False) -> None:
    """Values and gradients are equal, to the bit."""
    results = []
    for net in (ours, theirs):
        net.zero_grad()
        given = x.clone().requires_grad_(for_x)
        y = net(given)
        weights = torch.linspace(-1, 2, y.numel()).view_as(y)
        if y.requires_grad:
            (y * weights).sum().backward()
        results.append([y.detach(), given.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("for_x", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 8, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_sequentials_to_the_bit(name, batch, for_x):
    ours, theirs, x = pair(name, batch)
    for _ in range(2):  # the second time by the plan of the first
        same_step(ours, theirs, x, for_x)


def test_most_of_the_network_is_one_node():
    ours, theirs, x = pair("pictures")
    together = ours(x).grad_fn
    assert type(together).__name__ == "_TogetherBackward"
    assert len(ours._plans[tuple(x.shape)].rest) == 0
    assert type(theirs(x).grad_fn).__name__ != "_TogetherBackward"


@pytest.mark.parametrize("frozen", ["0.weight_kept", "0.bias", "3.weight_kept", "7.bias", "10.weight"])
def test_frozen_parts(frozen):
    ours, theirs, x = pair("pictures")
    for net in (ours, theirs):
        net.get_parameter(frozen).requires_grad_(False)
    same_step(ours, theirs, x)


def test_freezing_after_a_step_is_noticed():
    ours, theirs, x = pair("pictures")
    same_step(ours, theirs, x)
    for net in (ours, theirs):
        net.get_parameter("3.weight_kept").requires_grad_(False)
    same_step(ours, theirs, x)


def test_a_mask_that_moves_between_steps_is_noticed():
    ours, theirs, x = pair("pictures")
    for seed in range(3):
        same_step(ours, theirs, x)
        for net in (ours, theirs):
            net[7].set_mask(mask(12, 45, seed=seed))
            net[9].set_mask(mask(7, 12, density=0.5, seed=seed) if seed else torch.ones(7, 12))
            net[3].path = "dense" if seed == 1 else "sparse"
    same_step(ours, theirs, x)


def test_a_layer_put_in_another_ones_place_is_noticed():
    ours, theirs, x = pair("pictures")
    same_step(ours, theirs, x)
    for net in (ours, theirs):
        net[4] = nn.Tanh()
    same_step(ours, theirs, x)


def test_a_mask_that_moves_between_forward_and_backward_is_refused():
    ours, _, x = pair("vectors")
    y = ours(x).sum()
    ours[0].set_mask(mask(9, 20, seed=4))
    with pytest.raises((EdgePruneError, RuntimeError)):
        y.backward()


def test_a_weight_written_over_between_forward_and_backward_is_refused():
    ours, _, x = pair("vectors")
    y = ours(x).sum()
    with torch.no_grad():
        ours[0].weight_kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_of_gradients():
    found = []
    for net in pair("pictures")[:2]:
        x = pair("pictures")[2].requires_grad_()
        (dx,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, *net.parameters()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("twice", [False, True])
def test_many_gradients_at_once(twice):
    ours, _, x = pair("pictures")
    x.requires_grad_()
    of = [x, *ours.parameters()]
    y = ours(x)
    if twice:
        (y,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    many = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(y, of, many, retain_graph=True, allow_unused=True, is_grads_batched=True)
    each = [torch.autograd.grad(y, of, one, retain_graph=True, allow_unused=True) for one in many]
    for a, b in zip(got, zip(*each, strict=True), strict=True):
        assert (a is None) == (b[0] is None)
        assert a is None or torch.allclose(a, torch.stack(b), rtol=1e-4, atol=1e-4)


def test_hooks_are_called():
    ours, _, x = pair("pictures")
    seen = []
    handle = ours[3].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    ours(x)
    assert seen == [(6, 5, 3, 3)]
    handle.remove()
    ours[3].register_full_backward_hook(lambda module, gave, got: seen.append(got[0].shape))
    ours(x).sum().backward()
    assert len(seen) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_the_layers_own_way(dtype):
    ours, theirs, x = pair("pictures")
    same_step(ours, theirs, x)
    same_step(ours.to(dtype), theirs.to(dtype), x.to(dtype))


def test_without_gradients_and_under_autocast():
    ours, theirs, x = pair("pictures")
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu"):
        assert torch.equal(ours(x), theirs(x))


def test_functional_calls_and_transforms():
    ours, theirs, x = pair("vectors")
    weights = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(net):
        return lambda w: torch.func.functional_call(net, w, (x,)).square().sum()

    a, b = torch.func.grad(loss(ours))(weights), torch.func.grad(loss(theirs))(weights)
    assert all(torch.allclose(a[name], b[name]) for name in weights)


def test_weights_that_are_lent_for_one_call():
    ours, _, x = pair("pictures")
    own = {name: p.detach().clone().requires_grad_() for name, p in ours.named_parameters()}
    lent = {name: (2 * p.detach()).requires_grad_() for name, p in ours.named_parameters()}
    torch.func.functional_call(ours, lent, (x,)).square().sum().backward()  # the layers have their own again by now
    with torch.no_grad():
        for name, p in ours.named_parameters():
            p.copy_(2 * own[name])
    ours(x).square().sum().backward()
    for name, p in ours.named_parameters():
        assert torch.equal(p.grad, lent[name].grad), name


def test_a_layer_that_comes_twice():
    torch.manual_seed(2)
    layer = MaskedLinear(16, 16, mask(16, 16), path="sparse")
    twin = copy.deepcopy(layer)
    same_step(Chain(layer, nn.ReLU(), layer), nn.Sequential(twin, nn.ReLU(), twin), torch.randn(5, 16))


def test_copies_and_pickles_have_plans_of_their_own():
    ours, theirs, x = pair("pictures")
    same_step(ours, theirs, x)
    for net in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert not net._plans
        same_step(net, theirs, x)


def test_the_input_stays_as_it_is():
    ours, _, x = pair("activation first")
    before = x.clone()
    ours(x).sum().backward()
    assert torch.equal(x, before)


def test_plans_are_few():
    ours, _, _ = pair("vectors")
    for batch in range(1, 12):
        ours(torch.randn(batch, 20))
    assert len(ours._plans) == chain._MOST


def test_wrong_shapes_are_the_layers_sentence():
    ours, _, _ = pair("pictures")
    with pytest.raises(EdgePruneError, match="x has shape"):
        ours(torch.randn(2, 4, 12, 12))


def tied() -> list[nn.Module]:
    """Two layers with one weight."""
    layers = [MaskedLinear(16, 16, mask(16, 16), path="sparse") for _ in range(2)]
    layers[1].weight_kept = layers[0].weight_kept
    return [layers[0], nn.ReLU(), layers[1]]


def twice() -> list[nn.Module]:
    """One layer at two places."""
    layer = MaskedLinear(16, 16, mask(16, 16), path="sparse")
    return [layer, nn.ReLU(), layer]


@pytest.mark.parametrize("make", [tied, twice])
@pytest.mark.parametrize("create_graph", [False, True])
def test_weights_that_are_shared(make, create_graph):
    torch.manual_seed(1)
    x, layers = torch.randn(5, 16), make()
    found = []
    for net in (Chain(*layers), nn.Sequential(*layers)):
        y = net(net(x)).square().sum()  # and x made of the weights, the second time
        found.append(torch.autograd.grad(y, list(net.parameters()), create_graph=create_graph))
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*found, strict=True))


def test_an_activation_in_place_in_front_is_in_place():
    layers = [nn.ReLU(inplace=True), MaskedLinear(8, 8, mask(8, 8), path="sparse")]
    x = torch.randn(3, 8)
    mine = x.clone()
    Chain(*layers)(mine)
    assert torch.equal(mine, x.relu())


class Doubled(MaskedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_compute_otherwise_are_asked():
    first, other = (MaskedLinear(8, 8, mask(8, 8), path="sparse"), Doubled(8, 8, mask(8, 8), path="sparse"))
    layers, x = [first, nn.ReLU(), other], torch.randn(3, 8)
    same_step(Chain(*layers), nn.Sequential(*copy.deepcopy(layers)), x)
    patched = nn.ReLU()
    patched.forward = lambda x: x * 0  # type: ignore[method-assign]
    assert not Chain(first, patched)(x).any()


def test_what_leaves_a_run_may_be_written_to():
    conv = MaskedConv2d(3, 4, 3, mask(4, 3, 3, 3), path="sparse")
    Chain(conv, nn.Flatten())(torch.randn(2, 3, 6, 6)).mul_(2).sum().backward()
    Chain(conv, nn.MaxPool2d(2), nn.Flatten(), nn.LeakyReLU(inplace=True))(torch.randn(2, 3, 6, 6)).sum().backward()
    Chain(conv, nn.Flatten(), nn.LeakyReLU(inplace=True))(torch.randn(2, 3, 6, 6)).sum().backward()


CHANGES = {
    "pool": lambda net: setattr(net[2], "stride", 2),
    "padding": lambda net: setattr(net[3], "padding_mode", "circular"),
    "flatten": lambda net: setattr(net[6], "start_dim", 2),
    "linear": lambda net: setattr(net[10], "weight", nn.Parameter(torch.ones(2, 7))),
    "bias": lambda net: setattr(net[7], "bias", nn.Parameter(torch.ones(3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_about_a_layer_is_noticed(change):
    results = []
    for net in pair("pictures")[:2]:
        x = pair("pictures")[2]
        net(x).sum().backward()
        CHANGES[change](net)
        try:
            results.append(net(x))
        except (RuntimeError, EdgePruneError) as error:
            results.append(str(error))
    ours, theirs = results
    assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_the_input_and_the_biases_may_be_written_over_after_the_forward_pass():
    layers = [MaxPool2d(3, 1), MaskedConv2d(3, 4, 3, mask(4, 3, 3, 3), path="sparse"), nn.ReLU()]
    net, x = Chain(*layers), torch.randn(2, 3, 8, 8)
    y = net(x).sum()
    with torch.no_grad():
        x.zero_()
        layers[1].bias.zero_()
    y.backward()


def test_a_mask_that_moved_is_refused_for_gradients_of_gradients_too():
    ours, _, x = pair("vectors")
    x.requires_grad_()
    y = ours(x).sum()
    ours[0].set_mask(mask(9, 20).roll(1, dims=1))
    with pytest.raises((EdgePruneError, RuntimeError)):
        torch.autograd.grad(y, x, create_graph=True)


def test_inputs_that_are_not_contiguous_and_two_passes_backward():
    ours, theirs, x = pair("pictures")
    for given in (x.to(memory_format=torch.channels_last), x[:1].expand(6, -1, -1, -1), x.transpose(2, 3)):
        same_step(ours, theirs, given)
    ours.zero_grad()
    y = ours(x).sum()
    y.backward(retain_graph=True)
    once = [p.grad.clone() for p in ours.parameters()]
    y.backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(ours.parameters(), once, strict=True))
