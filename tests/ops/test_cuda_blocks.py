"""Masks of whole blocks: how they are found and numbered (here), and the products on the matrix units (on a GPU)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune import SparsityPattern, _core
from edgeprune.ops import masked_conv2d, masked_linear
from edgeprune.ops.masked_blocks import BlockPlan, plan_blocks

needs_gpu = pytest.mark.skipif(
    not (_core.cuda_built() and torch.cuda.is_available()), reason="needs a GPU and a core built with CUDA"
)


def mask_of(kept: np.ndarray, block: int) -> np.ndarray:
    """A mask from (rows of blocks, columns of blocks, h, w)."""
    return kept.repeat(block, 0).repeat(block, 1)


def dense_from(plan: BlockPlan, parts: tuple[np.ndarray, ...], shape: tuple[int, ...], backward: bool) -> np.ndarray:
    """What a kernel that walks ``parts`` sees of compact weights 1, 2, 3, ...: (outputs, inputs, taps)."""
    first, row, source, tap, at, step = parts
    numbers = np.arange(1, shape[0] * shape[1] * int(np.prod(shape[2:])) + 1)
    words = numbers if plan.order is None else numbers[plan.order]
    dense = np.zeros((shape[0], shape[1], int(np.prod(shape[2:]))), dtype=np.int64)
    for r in range(first.size - 1):
        for b in range(first[r], first[r + 1]):
            assert row[b] == r
            o, i = (source[b], r) if backward else (r, source[b])
            for line in range(plan.block):
                begin = at[b] + line * step[b]
                dense[o * plan.block + line, i * plan.block : (i + 1) * plan.block, tap[b]] = words[
                    begin : begin + plan.block
                ]
    return dense


@settings(max_examples=60, deadline=None)
@given(
    block=st.sampled_from([32, 64]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    taps=st.sampled_from([(), (1, 1), (2, 2), (1, 3)]),
    data=st.data(),
)
def test_every_kept_weight_is_found_where_the_compact_weights_hold_it(
    block: int, rows: int, columns: int, taps: tuple[int, ...], data: st.DataObject
) -> None:
    count = rows * columns * int(np.prod(taps))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    mask = mask_of(kept.reshape(rows, columns, *taps), block)
    plan = plan_blocks(mask)
    assert plan is not None and plan.block % block == 0
    flat = mask.reshape(-1)
    expected = np.where(flat, np.cumsum(flat), 0).reshape(mask.shape[0], mask.shape[1], -1)
    assert (dense_from(plan, plan.forward, mask.shape, False) == expected).all()
    assert (dense_from(plan, plan.backward, mask.shape, True) == expected).all()


def test_a_mask_that_breaks_a_block_has_no_plan() -> None:
    mask = mask_of(np.array([[True, False], [False, True]]), 64)
    assert plan_blocks(mask) is not None
    mask[3, 5] = False
    assert plan_blocks(mask) is None
    assert plan_blocks(np.ones((48, 64), dtype=bool)) is None


def test_smaller_blocks_are_found_where_larger_ones_are_not_kept() -> None:
    plan = plan_blocks(mask_of(np.array([[True, False], [True, True]]), 32))
    assert plan is not None and plan.block == 32


def products(product: object, dtype: torch.dtype, *leaves: Tensor) -> list[Tensor]:
    """y and the gradients of ``leaves``; what comes back to y are numbers of ``dtype``, the same for every product."""
    y = product(*leaves)  # type: ignore[operator]
    dy = torch.linspace(-1, 1, y.numel()).sin().view(y.shape).to(dtype).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def agree(got: list[Tensor], expected: list[Tensor], mask: Tensor, dtype: torch.dtype) -> None:
    unit = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-11
    for a, b in zip(got, expected, strict=True):
        if b.shape == mask.shape:
            a, b = a.double().cpu() * mask, b * mask
        error = (a.double().cpu() - b).norm() / b.norm().clamp_min(1e-12)
        assert float(error) < 2 * unit


# On the CPU sums are float32 and rounded once, as on the matrix units: what a right kernel is allowed is seen there.
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


@on_both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("samples", [1, 33, 128, 700])
def test_linear_against_double(dtype: torch.dtype, block: int, samples: int, device: str) -> None:
    generator = torch.Generator().manual_seed(samples)
    kept = torch.rand(3, 5, generator=generator) < 0.5
    kept[0, 0] = True
    mask = torch.from_numpy(mask_of(kept.numpy(), block))
    x, w = torch.randn(samples, 5 * block, generator=generator), torch.randn(mask.shape, generator=generator)
    b = torch.randn(3 * block, generator=generator)
    pattern = SparsityPattern.from_mask(mask)
    leaves = [t.to(device, dtype).requires_grad_() for t in (x, w, b)]
    got = products(lambda x, w, b: masked_linear(x, w, pattern, b, path="sparse"), dtype, *leaves)
    exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
    agree(got, products(lambda x, w, b: nn.functional.linear(x, w * mask, b), dtype, *exact), mask, dtype)


@on_both
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_conv_against_double(stride: int, channels_last: bool, device: str) -> None:
    half = torch.float16
    generator = torch.Generator().manual_seed(stride)
    kept = torch.rand(2, 2, 3, 3, generator=generator) < 0.5
    mask = torch.from_numpy(mask_of(kept.numpy(), 64))
    x, w = torch.randn(5, 128, 15, 14, generator=generator), torch.randn(mask.shape, generator=generator)
    pattern = SparsityPattern.from_mask(mask)
    leaves = [t.to(device, half) for t in (x, w)]
    if channels_last:
        leaves[0] = leaves[0].contiguous(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in leaves]
    got = products(lambda x, w: masked_conv2d(x, w, pattern, None, stride, 1, path="sparse"), half, *leaves)
    exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
    agree(got, products(lambda x, w: nn.functional.conv2d(x, w * mask, None, stride, 1), half, *exact), mask, half)


@on_both
def test_a_layer_in_half_trains(device: str) -> None:
    mask = torch.from_numpy(mask_of(np.array([[True, False], [False, True]]), 64))
    layer = edgeprune.nn.MaskedLinear(128, 128, mask, path="sparse").to(device, torch.float16)
    x = torch.randn(40, 128, device=device, dtype=torch.float16)
    first = layer(x).float().square().mean()
    first.backward()
    assert layer.weight_kept.grad is not None and layer.weight_kept.grad.shape == layer.weight_kept.shape
    with torch.no_grad():
        layer.weight_kept -= 0.5 * layer.weight_kept.grad
    assert layer(x).float().square().mean().item() < first.item()
