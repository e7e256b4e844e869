"""How stored samples become a network's input. Plain values, so that they pickle and print."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardise:
    """``(x / unit - mean) / std`` in float32, ``mean`` and ``std`` one number a channel.

    ``x`` is [N, C, ...] of any type; the numbers are the training split's, never the test split's.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: float = 255.0

    by_value: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        scale, shift = _constants(self, x.dim(), x.device)
        return (x.to(torch.float32) * scale).add_(shift)

    @classmethod
    def of(cls, x: Tensor, unit: float) -> Standardise:
        """From the statistics of the training samples ``x`` [N, C, ...], computed in double."""
        channels = x.transpose(0, 1).flatten(1).to(torch.float64) / unit
        std, mean = torch.std_mean(channels, dim=1, correction=0)
        # A channel that never changes carries nothing; it is centred and left at its own scale.
        std = torch.where(std > 0, std, torch.ones_like(std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()), unit)


@lru_cache(maxsize=64)
def _constants(how: Standardise, dims: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift of x of so many dimensions: one multiplication and one addition a value, folded in double."""
    shape = (-1,) + (1,) * (dims - 2)
    scale = [1 / (how.unit * std) for std in how.std]
    shift = [-mean / std for mean, std in zip(how.mean, how.std, strict=True)]
    made = (torch.tensor(constants, dtype=torch.float32, device=device).view(shape) for constants in (scale, shift))
    return next(made), next(made)


@dataclass(frozen=True)
class Indices:
    """Character ids for an embedding: int64 of the same shape."""

    by_value: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(torch.int64)
