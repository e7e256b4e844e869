"""The three masked products on a GPU, straight into the core: plain contiguous float32 tensors, no gradient.

What depends on shapes and mask alone (which tile each kept weight falls into) is worked out on the host at the first
call of a shape and kept with the pattern on the device. Every call then launches on the current stream, does not wait,
and takes memory only from torch, so that it can be captured in a CUDA graph after one call of the same shape.
Results are the same bits every time on one kind of GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.ops import masked_dense
from edgeprune.ops._core import core
from edgeprune.ops.sparsity import CompiledPattern

Padding = Sequence[int] | None

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 0, 1, 2

_NONE = (0, 0)
_CUDA_BUILT: bool = core.cuda_built()
_limits: dict[int, tuple[int, int]] = {}


class _Launch(NamedTuple):
    arrangement: Any
    parts: tuple[Tensor, ...]  # the plan on the device
    capsules: tuple[Any, ...]
    longest: int
    workspace: int  # floats


class _Shapes(NamedTuple):
    """What a cached choice depends on."""

    device: int
    work: int
    padding: tuple[int, int]
    x: tuple[int, int, int, int]


def takes(x: Tensor) -> bool:
    """Whether the core has kernels for tensors like this one."""
    return _CUDA_BUILT and x.is_cuda and x.dtype is torch.float32


# ---- the products ---------------------------------------------------------------------------------------------------


def forward(
    compiled: CompiledPattern, padding: Padding, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor
) -> Tensor:
    """y = x * W + bias; x (N, inputs, H, W) or, with ``padding`` None, (..., inputs). Returns y."""
    if not _run(compiled, FORWARD, padding, x, weight, bias, y):
        y.copy_(masked_dense.forward(x, weight, bias, compiled.tensors, compiled.filter, _pads(padding)))
    return y


def input_gradient(compiled: CompiledPattern, padding: Padding, dy: Tensor, weight: Tensor, dx: Tensor) -> Tensor:
    """dx from dy. Returns dx."""
    if not _run(compiled, INPUT_GRADIENT, padding, dx, weight, None, dy):
        dx.copy_(
            masked_dense.input_gradient(
                dy, weight, compiled.tensors, compiled.filter, _pads(padding), list(dx.shape[2:])
            )
        )
    return dx


def weight_gradient(compiled: CompiledPattern, padding: Padding, x: Tensor, dy: Tensor, dw: Tensor) -> Tensor:
    """dw at kept weights, from x and dy. Returns dw."""
    if not _run(compiled, WEIGHT_GRADIENT, padding, x, dw, None, dy):
        dw.copy_(masked_dense.weight_gradient(x, dy, compiled.tensors, compiled.filter, _pads(padding)))
    return dw


def _run(
    compiled: CompiledPattern,
    work: int,
    padding: Padding,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
) -> bool:
    """False, and nothing done, where a patch of the picture does not fit into the GPU's shared memory."""
    if not x.numel() or not y.numel():
        return True
    if padding is None:
        x = x.view(x.numel() // compiled.inputs, compiled.inputs, 1, 1)
        y = y.view(x.shape[0], compiled.outputs, 1, 1)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    lent = (to_dlpack(x), to_dlpack(weight), None if bias is None else to_dlpack(bias), to_dlpack(y))
    one_pixel = x.shape[2] * x.shape[3] * y.shape[2] * y.shape[3] == 1 and compiled.filter[3:7] == (1, 1, 1, 1)
    if one_pixel and x.shape[0] <= core.CUDA_FEW_SAMPLES:
        columns, order, starts = _few_parts(compiled, work, x.device)
        core.masked_cuda_run_few(compiled.filter, columns, order, starts, *lent, work, stream)
        return True
    launches = _launches(compiled, _Shapes(x.device.index, work, _pads(padding), _four(x.shape)))
    if launches is None:
        return False
    for launch in launches:
        workspace = to_dlpack(x.new_empty(launch.workspace)) if launch.workspace else None
        core.masked_cuda_run(launch.arrangement, launch.capsules, launch.longest, *lent, workspace, work, stream)
    return True


# ---- what is kept with a pattern ------------------------------------------------------------------------------------


def _pads(padding: Padding) -> tuple[int, int]:
    return _NONE if padding is None else (int(padding[0]), int(padding[1]))


def _four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    n, c, h, w = shape
    return int(n), int(c), int(h), int(w)


def _limits_of(device: int) -> tuple[int, int]:
    found = _limits.get(device)
    if found is None:
        multiprocessors, shared = core.masked_cuda_limits(device)
        found = _limits[device] = (multiprocessors, shared)
    return found


def _few_parts(compiled: CompiledPattern, work: int, device: torch.device) -> tuple[object, object | None, object]:
    key = ("few", device.index)
    found = compiled.on_gpu.get(key)
    if found is None:
        found = compiled.on_gpu[key] = [part.to(device) for part in compiled.tensors]
    columns, starts, t_columns, t_order, t_starts = found
    if work == INPUT_GRADIENT:
        return to_dlpack(t_columns), to_dlpack(t_order), to_dlpack(t_starts)
    return to_dlpack(columns), None, to_dlpack(starts)


def _launches(compiled: CompiledPattern, shapes: _Shapes) -> list[_Launch] | None:
    """One launch, or one for each phase of the stride; None where a patch does not fit."""
    if shapes not in compiled.on_gpu:
        compiled.on_gpu[shapes] = _all_arranged(compiled, shapes)
    found: list[_Launch] | None = compiled.on_gpu[shapes]
    return found


def _all_arranged(compiled: CompiledPattern, shapes: _Shapes) -> list[_Launch] | None:
    phases = compiled.filter[5] * compiled.filter[6] if shapes.work == INPUT_GRADIENT else 1
    launches = []
    for phase in range(phases):
        if _arrange(compiled, shapes, phase).empty:
            continue
        launch = _arranged(compiled, shapes, phase)
        if launch is None:
            return None
        launches.append(launch)
    return launches


def _arrange(compiled: CompiledPattern, shapes: _Shapes, phase: int, channels: int = 0) -> Any:
    limits = _limits_of(shapes.device)
    return core.masked_cuda_arrange(
        compiled.filter, shapes.padding, shapes.x, shapes.work, phase, compiled.kept, limits, channels
    )


def _arranged(compiled: CompiledPattern, shapes: _Shapes, phase: int) -> _Launch | None:
    limits, work = _limits_of(shapes.device), shapes.work
    channels = 0
    while True:
        arrangement = _arrange(compiled, shapes, phase, channels)
        if not arrangement.channels_per_block:
            return None
        parts, capsules, longest = _plan(compiled, shapes.device, arrangement, work, phase)
        if arrangement.shared_bytes(work, longest) <= limits[1]:
            break
        # One tile keeps more weights than the average: smaller blocks.
        if arrangement.channels_per_block == 1:
            return None
        channels = max(1, arrangement.channels_per_block * 3 // 4)
    entries = parts[0].numel()
    if work == WEIGHT_GRADIENT:
        workspace = arrangement.splits * entries if arrangement.splits > 1 else 0
    else:
        workspace = 2 * entries
    return _Launch(arrangement, parts, capsules, longest, workspace)


def _plan(
    compiled: CompiledPattern, device: int, arrangement: Any, work: int, phase: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...], int]:
    # Forward and weight gradient walk the same pattern, but pad segments differently.
    rows = core.CUDA_WARPS * arrangement.rows_per_thread
    key = ("plan", device, work, phase, rows, arrangement.channels_per_block)
    found = compiled.on_gpu.get(key)
    if found is None:
        columns, starts, t_columns, t_order, t_starts = compiled.capsules
        walked, order, lines = (t_columns, t_order, t_starts) if work == INPUT_GRADIENT else (columns, None, starts)
        *arrays, longest = core.masked_cuda_plan(
            compiled.filter, walked, order, lines, work, phase, rows, arrangement.channels_per_block
        )
        parts = tuple(torch.from_numpy(array).to(f"cuda:{device}") for array in arrays)
        found = compiled.on_gpu[key] = (parts, tuple(to_dlpack(part) for part in parts), longest)
    return found
