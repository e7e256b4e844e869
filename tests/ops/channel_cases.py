"""Shapes and kept positions for the channels operators: around the ends of vectors, words of 16 positions, and zero."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = [
    (),
    (1,),
    (0, 3),
    (3, 0),
    (7,),
    (5, 15),
    (8, 16),
    (9, 17),
    (64, 33),
    (6, 5, 1, 1),
    (6, 5, 3, 3),
    (12, 20, 5, 5),
    (2, 3, 2, 3, 2, 2, 2, 3),
    (70, 900),
]


def kept_positions(size: int, share: float, generator: torch.Generator) -> Tensor:
    """About ``share`` of 0..size-1, increasing."""
    return torch.nonzero(torch.rand(size, generator=generator) < share).flatten()


def make_case(shape: tuple[int, ...], share: float, which: int, seed: int) -> tuple[Tensor, list[Tensor | None]]:
    """A random tensor and indices; bit d of ``which`` says whether dimension d has one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x, [kept_positions(n, share, generator) if which >> d & 1 else None for d, n in enumerate(shape)]
