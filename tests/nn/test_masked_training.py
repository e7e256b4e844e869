"""Training compact weights equals dense training under a mask: SGD with momentum, decay and Nesterov, and Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.nn import masks

OPTIMISERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=5e-3),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 4),
    )


def train(model: nn.Module, make: Any, mask: dict[str, Tensor], steps: int) -> list[float]:
    """Masked-dense training where ``mask`` names dense layers: gradients are masked before each step."""
    optimizer = make(model.parameters())
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 2, 8, 8, generator=generator).to(next(model.parameters()).dtype)
        labels = (x.mean((1, 2, 3)) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        for name, kept in mask.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor) and weight.grad is not None
            weight.grad *= kept
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_masked_training_is_masked_dense_training(name: str) -> None:
    """In double the two differ by rounding alone over 30 steps; in float32 the sparse kernels stay near."""
    make = OPTIMISERS[name]
    sparse = edgeprune.sparsify(network(), density=0.3, path="sparse")
    dense, kept = edgeprune.densify(sparse).double(), masks(sparse)
    double = edgeprune.sparsify(edgeprune.densify(sparse), masks=kept).double()
    expected = train(dense, make, kept, 30)
    assert train(double, make, {}, 30) == pytest.approx(expected, rel=1e-9)
    for layer, mask in kept.items():
        weight = dense.get_submodule(layer).weight
        assert isinstance(weight, Tensor) and weight[~mask].eq(0).all()
        assert torch.allclose(double.get_submodule(layer).weight, weight, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]
    assert train(sparse, make, {}, 10) == pytest.approx(expected[:10], rel=1e-3)


def test_weights_gradients_and_momentum_cost_their_density() -> None:
    model = edgeprune.sparsify(nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100)), density=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    for layer in model:
        weight = layer.weight_kept
        assert weight.shape == weight.grad.shape == optimizer.state[weight]["momentum_buffer"].shape == (2000,)
