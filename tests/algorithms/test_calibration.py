"""Batch-norm statistics pooled from many devices are those of all data together."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.algorithms.calibration import MEAN, VAR, local_statistics, pooled
from edgeprune.nn import Exits


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
    ).double()


def exact(model: nn.Sequential, x: torch.Tensor) -> None:
    """Layer by layer: each batch-norm gets the mean and variance of its input over all of ``x`` at once."""
    model.eval()
    for layer in model:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            flat = x.transpose(0, 1).flatten(1)
            layer.running_mean.copy_(flat.mean(1))
            layer.running_var.copy_(flat.var(1, unbiased=False))
        x = layer(x)


def test_as_many_passes_as_norms_give_the_statistics_of_all_data():
    # Three devices with very different data and sizes.
    parts = [torch.randn(n, 2, 6, 6, dtype=torch.float64) * scale + shift for n, scale, shift in
             ((8, 1.0, 0.0), (40, 0.3, 2.0), (16, 2.0, -1.0))]  # fmt: skip
    model, reference = network(), network()
    with torch.no_grad():
        exact(reference, torch.cat(parts))
    for number in range(3):
        found = [(len(x), local_statistics(model, x.split(8), own=number == 0)) for x in parts]
        model.load_state_dict({**model.state_dict(), **pooled(found)})
    for name, value in reference.state_dict().items():
        if "num_batches" in name:
            continue
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_pooled_by_hand():
    # 1 sample of mean 0, variance 1 and 3 of mean 4, variance 2: mean 3, variance (1 + 3 (2 + 16)) / 4 - 9 = 4.75
    found = [
        (1, {MEAN: torch.tensor([0.0]), VAR: torch.tensor([1.0])}),
        (3, {MEAN: torch.tensor([4.0]), VAR: torch.tensor([2.0])}),
    ]
    both = pooled(found)
    assert both[MEAN].item() == 3.0 and both[VAR].item() == 4.75


def test_no_weight_and_no_statistic_of_the_model_changes():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momenta = [m.momentum for m in model if hasattr(m, "momentum")]
    for own in (True, False):
        local_statistics(model, torch.randn(8, 2, 6, 6, dtype=torch.float64).split(4), own=own)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "num_batches" not in name)
    assert momenta == [m.momentum for m in model if hasattr(m, "momentum")] and not model.training


def test_a_norm_that_evaluation_does_not_run_keeps_its_statistics():
    """A head with a batch-norm behind an exit: in every pass but the first it sees nothing."""
    head = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(8, 2, 6, 6)
    model = Exits(body, {"0": head}, x)
    model(x)  # the lazy layers take their shapes
    first = local_statistics(model, x.split(4), own=True)
    model.load_state_dict({**model.state_dict(), **first})
    second = local_statistics(model, x.split(4), own=False)
    assert second.keys() == first.keys() and all(torch.equal(first[n], second[n]) for n in first if "heads" in n)
    assert all(bool(t.isfinite().all()) for t in second.values())


def test_a_norm_without_weights_is_measured_as_any_other():
    x = torch.randn(8, 2, 6, 6)
    found = local_statistics(nn.Sequential(nn.BatchNorm2d(2, affine=False)), x.split(4), own=True)
    torch.testing.assert_close(found[f"0.{MEAN}"], x.mean((0, 2, 3)))
    torch.testing.assert_close(found[f"0.{VAR}"], x.var((0, 2, 3), unbiased=False))
