"""How stored samples become a network's input. Plain values, so that they pickle and print."""

from __future__ import annotations

from dataclasses import dataclass
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
        shape = (-1,) + (1,) * (x.dim() - 2)
        # One multiplication and one addition a value; the constants are folded in double.
        scale = [1 / (self.unit * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        out = x.to(torch.float32) * torch.tensor(scale, dtype=torch.float32, device=x.device).view(shape)
        return out.add_(torch.tensor(shift, dtype=torch.float32, device=x.device).view(shape))

    @classmethod
    def of(cls, x: Tensor, unit: float) -> Standardise:
        """From the statistics of the training samples ``x`` [N, C, ...], computed in double."""
        channels = x.transpose(0, 1).flatten(1).to(torch.float64) / unit
        std, mean = torch.std_mean(channels, dim=1, correction=0)
        # A channel that never changes carries nothing; it is centred and left at its own scale.
        std = torch.where(std > 0, std, torch.ones_like(std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()), unit)


@dataclass(frozen=True)
class Indices:
    """Character ids for an embedding: int64 of the same shape."""

    by_value: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(torch.int64)
