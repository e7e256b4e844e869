"""Local training: as many steps as are planned for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.algorithms import training
from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import LocalData, planned_steps, train_local
from edgeprune.data.normalise import Standardise
from edgeprune.nn import MaskedLinear, at_every_exit
from edgeprune.tasks.builtin import characters_loss


@settings(deadline=None)
@given(samples=st.integers(1, 20), batch=st.integers(1, 8), epochs=st.integers(1, 3), most=st.integers(0, 9))
def test_planned_steps_are_those_that_are_done(samples, batch, epochs, most):
    data = LocalData(torch.randn(samples, 3), torch.zeros(samples, dtype=torch.int64), lambda x: x)
    recipe = Recipe(epochs, batch, 0.1, 0.0, 0.0, steps=most)
    done = train_local(nn.Linear(3, 2), data, nn.functional.cross_entropy, recipe, seed=0)
    assert planned_steps(samples, recipe) == done.steps > 0


def trained(normalise, samples: int = 13) -> tuple[list[torch.Tensor], list[int]]:
    """The weights that came of it, and how many samples were normalised at once."""
    torch.manual_seed(3)
    x, y = torch.randint(0, 255, (samples, 2, 4), dtype=torch.uint8), torch.arange(samples) % 3
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), []

    def counted(batch):
        seen.append(len(batch))
        return normalise(batch)

    if hasattr(normalise, "by_value"):
        counted.by_value = normalise.by_value
    train_local(model, LocalData(x, y, counted), nn.functional.cross_entropy, Recipe(2, 5, 0.1, 0.9, 0.0), seed=0)
    return [p.detach() for p in model.parameters()], seen


def test_what_is_normalised_value_by_value_is_so_once_with_the_same_result(monkeypatch):
    standardise = Standardise((0.2, 0.5), (0.3, 0.4))
    once, seen = trained(standardise)
    assert seen == [13]
    monkeypatch.setattr(training, "_NORMALISED_ONCE", 13 * 8 - 1)
    each_time, seen = trained(standardise)
    assert seen == [5, 5, 3] * 2
    assert all(torch.equal(a, b) for a, b in zip(once, each_time, strict=True))


def test_a_function_that_may_draw_anew_is_asked_for_every_batch():
    assert trained(lambda x: x.float() + torch.rand(()))[1] == [5, 5, 3] * 2


def test_a_mask_that_moves_without_its_momentum_stops_the_next_step():
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    for kept in (50, 8):
        layer = MaskedLinear(8, 8, torch.arange(64).view(8, 8) < 20)
        step = training.make_step(layer, lambda out, _: out.sum(), Recipe(1, 4, 0.1, 0.9, 0.0))
        step(x, x)
        layer.set_mask(torch.arange(64).view(8, 8) < kept)
        with pytest.raises(RuntimeError, match="a mask moved without the optimizer"):
            step(x, x)


def beside_others() -> nn.Linear:
    """Its weight is every second column of a larger tensor."""
    layer = nn.Linear(8, 3)
    layer.weight = nn.Parameter(torch.randn(3, 16)[:, ::2])
    return layer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("layers", ["dense", "masked", "strided", "sparse embedding"])
def test_steps_are_those_of_the_formula(layers, momentum):
    """Momentum and weight decay as SGD with momentum is written down, in float64."""
    torch.manual_seed(1)
    decay = 0.0 if layers == "sparse embedding" else 0.05
    model = {
        "dense": lambda: nn.Linear(8, 3),
        "masked": lambda: MaskedLinear(8, 3, torch.rand(3, 8) < 0.5),
        "strided": beside_others,
        "sparse embedding": lambda: nn.Sequential(nn.Embedding(8, 3, sparse=True), nn.Flatten()),
    }[layers]()
    x = torch.randint(0, 8, (6, 1)) if layers == "sparse embedding" else torch.randn(6, 8)
    y = torch.arange(6) % 3
    step = training.make_step(model, nn.functional.cross_entropy, Recipe(1, 6, 0.1, momentum, decay))
    parameters = list(model.parameters())
    expected = [p.detach().double() for p in parameters]
    velocity = [torch.zeros_like(p) for p in expected]
    for _ in range(5):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
        gradients = [
            g.to_dense().double() + decay * p.detach().double() for g, p in zip(gradients, parameters, strict=True)
        ]
        step(x, y)
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        expected = [p - 0.1 * v for p, v in zip(expected, velocity, strict=True)]
        for p, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_parameter_may_get_its_first_gradient_later():
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(4, 3), nn.Linear(4, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.a(x) if self.calls < 3 else self.a(x) + self.b(x)

    torch.manual_seed(0)
    model, x, y = Later(), torch.randn(5, 4), torch.arange(5) % 3
    step = training.make_step(model, nn.functional.cross_entropy, Recipe(1, 5, 0.1, 0.9, 0.01))
    first = model.b.weight.detach().clone()
    for _ in range(2):
        step(x, y)
    assert torch.equal(model.b.weight, first)
    step(x, y)
    assert not torch.equal(model.b.weight, first)


def test_a_buffer_called_sparse_is_nobody_elses_business():
    model = nn.Linear(4, 3)
    model.register_buffer("sparse", torch.ones(2))
    training.make_step(model, nn.functional.cross_entropy, Recipe(1, 5, 0.1, 0.9, 0.0))(
        torch.randn(2, 4), torch.arange(2)
    )


def test_softmax_is_put_in_front_of_the_loss_at_every_exit_and_over_the_classes():
    torch.manual_seed(0)
    rows, y = (torch.randn(4, 3), torch.randn(4, 3)), torch.tensor([0, 1, 2, 1])
    loss = nn.functional.cross_entropy
    by_hand = at_every_exit(loss)(tuple(each.softmax(1) for each in rows), y)
    assert torch.equal(training.on_softmax(at_every_exit(loss))(rows, y), by_hand)
    texts, letters = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    by_hand = characters_loss(texts.softmax(2), letters)
    assert torch.equal(training.on_softmax(characters_loss)(texts, letters), by_hand)
    maps, places = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    assert torch.equal(training.on_softmax(loss)(maps, places), loss(maps.softmax(1), places))
