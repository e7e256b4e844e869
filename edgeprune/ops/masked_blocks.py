"""Masked products on a GPU's matrix units: float16 and bfloat16, where the mask keeps whole blocks of weights.

A mask is made of blocks when it is the same for all of 64 (or 32) outputs by as many inputs of a tap, channels being
multiples of that. It is found out once a pattern; nothing else has to be said. Sums are float32. Pictures are read and
made with channels last (torch.channels_last); others are copied once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.ops._core import core
from edgeprune.ops._masked_core import output_shape
from edgeprune.ops.masked_autograd import bias_gradient
from edgeprune.ops.sparsity import CompiledPattern, SparsityPattern

SIZES = (64, 32)
_CUDA_BUILT: bool = core.cuda_built()
_BUSY = 4  # blocks of threads for each multiprocessor that the weight gradient is split into


class BlockPlan(NamedTuple):
    """Kept blocks of a mask, on the host: int32 arrays as csrc/kernels/masked/cuda_blocks.h describes them."""

    block: int
    forward: tuple[np.ndarray, ...]
    backward: tuple[np.ndarray, ...]
    order: np.ndarray | None
    """Number among the compact weights of each word of the blocks, one block after the other; None where the compact
    weights are read as they are (one tap)."""


def plan_blocks(mask: np.ndarray) -> BlockPlan | None:
    """The blocks of a mask (outputs, inputs) or (outputs, inputs, h, w); None when it has none of a known size."""
    outputs, inputs = mask.shape[:2]
    by_tap = mask.reshape(outputs, inputs, -1)
    taps = by_tap.shape[2]
    for block in SIZES:
        if outputs % block or inputs % block:
            continue
        parts = by_tap.reshape(outputs // block, block, inputs // block, block, taps)
        kept: np.ndarray = np.any(parts, axis=(1, 3))
        if np.array_equal(kept, np.all(parts, axis=(1, 3))):
            return _plan(mask, kept, block, taps)
    return None


def _plan(mask: np.ndarray, kept: np.ndarray, block: int, taps: int) -> BlockPlan:
    outputs, inputs = mask.shape[:2]
    number = (np.cumsum(mask.reshape(-1)) - 1).reshape(outputs, inputs, taps)
    row, column, tap = np.nonzero(kept)  # rows of blocks rise
    order = None
    if taps == 1:
        at = number[row * block, column * block, 0]
        step = number[row * block + 1, column * block, 0] - at
    else:
        outs = row[:, None, None] * block + np.arange(block)[None, :, None]
        ins = column[:, None, None] * block + np.arange(block)[None, None, :]
        order = number[outs, ins, tap[:, None, None]].reshape(-1)
        at, step = np.arange(row.size) * block * block, np.full(row.size, block)

    def lists(of_row: np.ndarray, source: np.ndarray, rows: int) -> tuple[np.ndarray, ...]:
        by_row = np.argsort(of_row, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(of_row, minlength=rows))])
        parts = (first, of_row[by_row], source[by_row], tap[by_row], at[by_row], step[by_row])
        return tuple(np.ascontiguousarray(part, dtype=np.int32) for part in parts)

    forward = lists(row, column, outputs // block)
    return BlockPlan(block, forward, lists(column, row, inputs // block), order)


class _OnGpu(NamedTuple):
    block: int
    forward: list[Tensor]
    backward: list[Tensor]
    order: Tensor | None
    multiprocessors: int


def takes(pattern: SparsityPattern, compiled: CompiledPattern, *tensors: Tensor | None) -> bool:
    """Whether these tensors and this mask can go to the matrix units."""
    if not _CUDA_BUILT or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    x = tensors[0]
    assert x is not None
    if not x.is_cuda or x.dtype not in (torch.float16, torch.bfloat16) or not x.numel() or not compiled.kept:
        return False
    if any(t is not None and (t.dtype is not x.dtype or t.device != x.device) for t in tensors):
        return False
    return compiled.filter[2] == 1 and _on_gpu(pattern, compiled, x.device) is not None


def masked(
    pattern: SparsityPattern,
    compiled: CompiledPattern,
    padding: Sequence[int] | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """y = x * W + bias, differentiable once; ``padding`` None is a linear layer, as in _masked_core.py."""
    found = _on_gpu(pattern, compiled, x.device)
    assert found is not None
    y: Tensor = _MaskedBlocks.apply(found, compiled, padding, x, weight, bias)
    return y


def _on_gpu(pattern: SparsityPattern, compiled: CompiledPattern, device: torch.device) -> _OnGpu | None:
    key = ("blocks", device.index)
    if key not in compiled.on_gpu:
        plan = plan_blocks(pattern.mask().numpy())
        compiled.on_gpu[key] = None if plan is None else _brought(plan, device)
    found: _OnGpu | None = compiled.on_gpu[key]
    return found


def _brought(plan: BlockPlan, device: torch.device) -> _OnGpu:
    def bring(part: np.ndarray) -> Tensor:
        return torch.from_numpy(part).to(device)

    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    order = None if plan.order is None else bring(plan.order)
    return _OnGpu(plan.block, [*map(bring, plan.forward)], [*map(bring, plan.backward)], order, multiprocessors)


# ---- the three products ---------------------------------------------------------------------------------------------


def _rows(x: Tensor, padding: Sequence[int] | None) -> Tensor:
    """Contiguous, channels last."""
    return x.contiguous() if padding is None else x.permute(0, 2, 3, 1).contiguous()


def _four(compiled: CompiledPattern, padding: Sequence[int] | None, x: Tensor) -> list[int]:
    return [x.numel() // compiled.inputs, compiled.inputs, 1, 1] if padding is None else list(x.shape)


def _words(found: _OnGpu, weight: Tensor) -> Tensor:
    """The blocks' words, one block after the other, or the compact weights themselves."""
    return weight.contiguous() if found.order is None else weight.index_select(0, found.order)


def _product(
    found: _OnGpu,
    compiled: CompiledPattern,
    padding: Sequence[int] | None,
    read: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_shape: Sequence[int],
    made: Sequence[int],
    backward: bool,
) -> Tensor:
    """y of shape ``made`` from x, or dx from dy."""
    source = _rows(read, padding)
    shape = list(made) if padding is None else [made[0], made[2], made[3], made[1]]
    out = source.new_empty(shape)
    x, y = (out, source) if backward else (source, out)
    core.masked_blocks_run(
        compiled.filter,
        padding or (0, 0),
        x_shape,
        found.block,
        [to_dlpack(part) for part in (found.backward if backward else found.forward)],
        to_dlpack(x),
        to_dlpack(_words(found, weight)),
        None if bias is None else to_dlpack(bias.float()),
        to_dlpack(y),
        backward,
        torch.cuda.current_stream(read.device).cuda_stream,
    )
    return out if padding is None else out.permute(0, 3, 1, 2)


def _weight_gradient(
    found: _OnGpu, compiled: CompiledPattern, padding: Sequence[int] | None, x: Tensor, dy: Tensor
) -> Tensor:
    source, gradient = _rows(x, padding), _rows(dy, padding)
    blocks = found.forward[1].numel()
    positions = gradient.numel() // compiled.outputs
    splits = max(1, min(-(-_BUSY * found.multiprocessors // blocks), positions // 256, 64))
    partial = torch.empty(splits * compiled.kept, device=x.device)
    words = x.new_empty(compiled.kept)
    core.masked_blocks_dots_run(
        compiled.filter,
        padding or (0, 0),
        _four(compiled, padding, x),
        found.block,
        [to_dlpack(part) for part in found.forward],
        to_dlpack(source),
        to_dlpack(words),
        to_dlpack(gradient),
        to_dlpack(partial),
        splits,
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    return words if found.order is None else torch.empty_like(words).index_copy_(0, found.order.long(), words)


class _MaskedBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: _OnGpu, compiled: CompiledPattern, padding: Any, x: Tensor, *rest: Any) -> Tensor:
        weight, bias = rest
        ctx.save_for_backward(x, weight)
        ctx.how = found, compiled, padding
        shape = output_shape(compiled.filter, padding, x)
        four = _four(compiled, padding, x)
        return _product(found, compiled, padding, x, weight, bias, four, shape, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found, compiled, padding = ctx.how
        *_, for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = dw = db = None
        if for_x:
            four = _four(compiled, padding, x)
            dx = _product(found, compiled, padding, dy, weight, None, four, x.shape, backward=True)
        if for_weight:
            dw = _weight_gradient(found, compiled, padding, x, dy)
        if for_bias:
            db = bias_gradient(dy, padding is None)
        return None, None, None, dx, dw, db
