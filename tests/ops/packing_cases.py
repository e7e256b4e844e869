"""Sizes, values and masks for the packing operators: around bytes, words, vectors, scale blocks, chunks and pieces."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 255, 256, 257, 2047, 2049, 65_537, 140_001]
DENSITIES = [0.0, 0.004, 0.3, 1.0]
DTYPES = ["f32", "bf16", "f16", "i8"]

ODD = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-39, 1.1754944e-38, 65504.0, 65519.9, -65520.0, 3.4e38, 6e-8, 1.0], np.float32
)


def values(n: int, seed: int, odd: bool = False) -> Tensor:
    """Normal numbers; with ``odd`` every third one a zero, a denormal, or at an edge of float16."""
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    if odd:
        x[::3] = np.resize(ODD, len(x[::3]))
    return torch.from_numpy(x)


def mask_of(kept: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.packbits(kept, bitorder="little"))


def random_mask(n: int, density: float, seed: int) -> Tensor:
    return mask_of(np.random.default_rng(seed).random(n) < density)


def clustered_mask(n: int, density: float, seed: int, run: int = 50) -> Tensor:
    """Kept elements in runs."""
    kept = np.random.default_rng(seed).random(n // run + 1) < density
    return mask_of(np.repeat(kept, run)[:n])


def raw(x: Tensor | None) -> bytes | None:
    return None if x is None else x.contiguous().numpy().tobytes()


floats = st.floats(width=32, allow_nan=False)


def tensors(elements: st.SearchStrategy[float] = floats, most: int = 300) -> st.SearchStrategy[Tensor]:
    return hnp.arrays(np.float32, st.integers(0, most), elements=elements).map(torch.from_numpy)


def masks(n: int) -> st.SearchStrategy[Tensor]:
    return hnp.arrays(np.bool_, n).map(mask_of)
