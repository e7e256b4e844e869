"""Masks of 64 x 64 blocks on the matrix units, float16, against dense torch on the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from cuda_timing import beside, forward_and_step_ms
from torch import Tensor
from torch.nn import functional

from edgeprune import SparsityPattern
from edgeprune.ops import masked_conv2d, masked_linear

BLOCK = 64
DENSITIES = (0.5, 0.25, 0.2, 0.1, 0.05)
LINEAR = ((4096, 4096, 4096), (1024, 4096, 4096), (8192, 1024, 4096))
CONV = ((128, 256, 32), (128, 512, 16))  # samples, channels, size


def _mask(outputs: int, inputs: int, density: float, taps: int) -> Tensor:
    blocks = torch.rand(outputs // BLOCK, inputs // BLOCK, taps, taps) < density
    whole = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole if taps > 1 else whole[:, :, 0, 0]


def _dense(forward: Any, leaves: list[Tensor], dy: Tensor) -> dict[str, float]:
    return {f"fp16 {work}": ms for work, ms in forward_and_step_ms(forward, leaves, dy).items()}


def rows(copy: float) -> Iterator[dict[str, Any]]:
    """``copy`` is not asked for: these products are bound by arithmetic or by the second-level cache."""
    half = {"device": "cuda", "dtype": torch.float16}
    for samples, inputs, outputs in LINEAR:
        x, dy = torch.randn(samples, inputs, **half), torch.randn(samples, outputs, **half)
        weight = torch.randn(outputs, inputs, **half) / inputs**0.5
        dense = _dense(functional.linear, [x, weight], dy)
        for density in DENSITIES:
            pattern = SparsityPattern.from_mask(_mask(outputs, inputs, density, 1))

            def linear(x: Tensor, w: Tensor) -> Tensor:
                return masked_linear(x, w, pattern, path="sparse")  # noqa: B023

            ours = forward_and_step_ms(linear, [x, pattern.compact(weight)], dy)
            yield beside("blocks of 64, linear", f"{samples} x {inputs} by {inputs} x {outputs}", density, ours, dense)
    for samples, channels, size in CONV:
        x = torch.randn(samples, channels, size, size, **half).contiguous(memory_format=torch.channels_last)
        dy = torch.randn_like(x)
        weight = torch.randn(channels, channels, 3, 3, **half) / (9 * channels) ** 0.5
        last = weight.contiguous(memory_format=torch.channels_last)
        dense = _dense(lambda x, w: functional.conv2d(x, w, None, 1, 1), [x, last], dy)
        for density in DENSITIES:
            pattern = SparsityPattern.from_mask(_mask(channels, channels, density, 3))

            def conv(x: Tensor, w: Tensor) -> Tensor:
                return masked_conv2d(x, w, pattern, None, 1, 1, path="sparse")  # noqa: B023

            ours = forward_and_step_ms(conv, [x, pattern.compact(weight)], dy)
            yield beside("blocks of 64, conv 3x3", f"{samples} x {channels} x {size} x {size}", density, ours, dense)
