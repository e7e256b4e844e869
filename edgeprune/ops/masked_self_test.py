"""The masked operators on a small input against plain torch: what ``edgeprune doctor`` runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgeprune.ops import masked, reference
from edgeprune.ops.sparsity import SparsityPattern


def cases(device: torch.device | str = "cpu") -> dict[str, Callable[[], bool]]:
    """Forward and both gradients, through the sparse kernels."""

    def values(*shape: int) -> Tensor:
        return torch.linspace(-1, 1, torch.Size(shape).numel(), device=device).reshape(shape).sin().requires_grad_()

    def agree(x: Tensor, mask: Tensor, product: Callable[..., Tensor], expected: Callable[..., Tensor]) -> bool:
        weight, bias = values(*mask.shape), values(mask.shape[0])
        results = []
        for y in (
            product(x, weight, SparsityPattern.from_mask(mask), bias),
            expected(x, weight, mask.to(device), bias),
        ):
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))))
        # Sums of up to a hundred products in float32, of magnitudes up to a few hundred.
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(*results, strict=True))

    def linear() -> bool:
        mask = torch.arange(19 * 40).reshape(19, 40) % 3 == 0
        product = partial(masked.masked_linear, path="sparse")
        return all(agree(values(n, 40), mask, product, reference.masked_linear) for n in (1, 17))

    def conv2d() -> bool:
        mask = torch.arange(10 * 3 * 9).reshape(10, 3, 3, 3) % 4 == 0
        how: dict[str, Any] = {"stride": (1, 2), "padding": 1, "groups": 2}
        product = partial(masked.masked_conv2d, path="sparse", **how)
        expected = partial(reference.masked_conv2d, **how)
        return all(agree(values(n, 6, 8, 9), mask, product, expected) for n in (1, 9))

    return {"masked_linear": linear, "masked_conv2d": conv2d}
