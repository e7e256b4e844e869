"""Linear layers and 2-d convolutions that compute with kept weights only: forward and both gradients.

float32 on the CPU goes to the compiled core, which touches kept weights alone, or, where that is faster
(edgeprune/ops/crossover.py), to torch's dense product with zeros at dropped weights. bfloat16 and float16 on the CPU
are computed in float32 and rounded once. On a GPU float32 goes to kernels of its own under any mask
(edgeprune/ops/masked_cuda.py), and 16-bit types to the matrix units under one that keeps whole blocks
(edgeprune/ops/masked_blocks.py). Other types and devices go through plain torch; function transforms (torch.func),
forward derivatives and torch.jit.trace take the dense product too. Dropped weights are never read, so a NaN among them
does not show, and their gradient is exactly zero. Where x is infinite or NaN the two ways differ: what meets dropped
weights alone counts for nothing in the sparse kernels, and makes NaN in the dense product, whose zeros it is multiplied
with. Finite x gives the same on both.

At a fixed thread count results are the same bits every time; with the sparse kernels at any thread count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import EdgePruneError, is_whole, shown
from edgeprune.ops import (
    _masked_core,
    crossover,
    masked_autograd,
    masked_blocks,
    masked_cuda,
    masked_dense,
    masked_library,
    observers,
)
from edgeprune.ops.sparsity import CompiledPattern, SparsityPattern, index_of

Pair = tuple[int, int]

_LARGEST = 1 << 20  # of strides, dilations and paddings: beyond it sizes overflow

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # what autocast makes another type of

_op = masked_library.forward_op


def masked_linear(
    x: Tensor, weight: Tensor, pattern: SparsityPattern, bias: Tensor | None = None, *, path: str = "auto"
) -> Tensor:
    """``x @ (weight * mask).T + bias``: ``[..., inputs]`` to ``[..., outputs]``, differentiable in x, weight and bias.

    ``weight`` is dense, (outputs, inputs), and then its gradient is dense with zeros at dropped weights; or compact,
    ``[pattern.kept]`` in the order of the dense tensor, and then so is its gradient. ``path`` "sparse" or "dense"
    overrides the automatic choice. Under autocast the result has autocast's type; on the sparse path it is computed in
    float32 and rounded once. An infinity or NaN of x that meets dropped weights alone adds nothing on the sparse
    path and makes NaN on the dense one. Raises EdgePruneError for shapes, types or devices that do not go together.
    """
    op = "masked_linear"
    _check_given(op, x, weight, bias, pattern, 2)
    compiled = pattern.compiled()
    weight = _compact(op, weight, pattern, compiled)
    if not x.ndim or x.shape[-1] != pattern.shape[1]:
        raise EdgePruneError(f"{op}: x has shape {tuple(x.shape)}; the mask takes (..., {pattern.shape[1]})")
    return linear(op, x, weight, pattern, compiled, bias, path)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    path: str = "auto",
) -> Tensor:
    """``conv2d(x, weight * mask, bias, ...)`` for x (N, inputs, H, W) or (inputs, H, W); arguments as torch's.

    ``weight`` is dense, (outputs, inputs / groups, h, w), or compact; see :func:`masked_linear`. ``padding`` may be
    "valid" or "same" (which asks for stride 1). Raises EdgePruneError for shapes, types or devices that do not go
    together.
    """
    op = "masked_conv2d"
    _check_given(op, x, weight, bias, pattern, 4)
    groups = checked_groups(op, groups)
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    compiled = pattern.compiled(groups, stride, dilation)
    weight = _compact(op, weight, pattern, compiled)
    pads, extra = pads_of(op, padding, compiled.filter)
    return conv2d(op, x, weight, pattern, compiled, bias, pads, extra, path)


# ---- shared with edgeprune.nn, which has prepared the pattern and the padding ---------------------------------------


def linear(
    op: str,
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    compiled: CompiledPattern,
    bias: Tensor | None,
    path: str,
) -> Tensor:
    """``masked_linear`` of compact weights."""
    if bias is not None and bias.shape != (compiled.outputs,):
        raise EdgePruneError(f"{op}: bias has shape {tuple(bias.shape)}; the mask has {compiled.outputs} outputs")
    plain = quick(x, weight, bias)
    out_type = _autocast_type(x) if not plain or torch._C._is_any_autocast_enabled() else None
    if not plain:
        out_type, x, weight, bias = _one_type(op, x, weight, bias, out_type)
        if _on_matrix_units(pattern, compiled, path, x, weight, bias):
            return masked_blocks.masked(pattern, compiled, None, x, weight, bias).to(out_type)
    rows = x.numel() // compiled.inputs
    if _sparse("linear", rows, pattern, path, plain, x, weight):
        if plain:
            y = masked_autograd.masked(compiled, None, x, weight, bias)
        else:
            rows_of_x = x.reshape(-1, compiled.inputs, 1, 1) if rows else x.reshape(0, compiled.inputs, 1, 1)
            y = _op(rows_of_x, weight, bias, compiled.tensors, compiled.filter, (0, 0))
            y = y.view(*x.shape[:-1], compiled.outputs)
    else:
        y = functional.linear(x, _dense(weight, pattern, compiled), bias)
    return y if out_type is None else y.to(out_type)


def conv2d(
    op: str,
    x: Tensor,
    weight: Tensor,
    pattern: SparsityPattern,
    compiled: CompiledPattern,
    bias: Tensor | None,
    pads: Pair,
    extra: Pair,
    path: str,
) -> Tensor:
    """``masked_conv2d`` of compact weights; ``pads`` on all sides and ``extra`` rows and columns behind the last."""
    filter = compiled.filter
    if bias is not None and bias.shape != (compiled.outputs,):
        raise EdgePruneError(f"{op}: bias has shape {tuple(bias.shape)}; the mask has {compiled.outputs} outputs")
    if x.ndim not in (3, 4) or x.shape[-3] != compiled.inputs:
        raise EdgePruneError(f"{op}: x has shape {tuple(x.shape)}; the mask takes (N, {compiled.inputs}, H, W)")
    if x.ndim == 3:
        return conv2d(op, x.unsqueeze(0), weight, pattern, compiled, bias, pads, extra, path).squeeze(0)
    plain = quick(x, weight, bias)
    out_type = _autocast_type(x) if not plain or torch._C._is_any_autocast_enabled() else None
    if not plain:
        out_type, x, weight, bias = _one_type(op, x, weight, bias, out_type)
    if extra != (0, 0):
        x = functional.pad(x, (0, extra[1], 0, extra[0]))
    shape = _masked_core.output_shape(filter, pads, x)
    if not plain and _on_matrix_units(pattern, compiled, path, x, weight, bias):
        return masked_blocks.masked(pattern, compiled, pads, x, weight, bias).to(out_type)
    if _sparse(compiled.kind, shape[0] * shape[2] * shape[3], pattern, path, plain, x, weight):
        if plain:
            y = masked_autograd.masked(compiled, pads, x, weight, bias)
        else:
            y = _op(x, weight, bias, compiled.tensors, filter, pads)
    else:
        y = functional.conv2d(x, _dense(weight, pattern, compiled), bias, filter[5:7], pads, filter[7:9], filter[2])
    return y if out_type is None else y.to(out_type)


def pair(op: str, name: str, value: int | Pair) -> Pair:
    """(rows, columns) of a stride, dilation or padding."""
    both: Sequence[int] = (value, value) if isinstance(value, int) else value
    if type(both) is not tuple or len(both) != 2 or type(both[0]) is not int or type(both[1]) is not int:
        both = _whole_pair(value)
    if not both or max(abs(both[0]), abs(both[1])) > _LARGEST:
        said = value if isinstance(value, tuple | list) else shown(value)
        raise EdgePruneError(
            f"{op}: {name} is {said}; give one whole number of at most {_LARGEST}, or one for rows and one for columns"
        )
    return both[0], both[1]


def _whole_pair(value: object) -> tuple[int, ...]:
    """Two of Python's numbers out of a list of one or two, or numpy's; () where they are none."""
    every: list[Any] = [value, value] if is_whole(value) else list(value) if isinstance(value, Sequence) else []
    every = every * 2 if len(every) == 1 else every
    return tuple(map(int, every)) if len(every) == 2 and all(map(is_whole, every)) else ()


def checked_groups(op: str, groups: object) -> int:
    """A number of groups; EdgePruneError where it is none."""
    if not is_whole(groups) or groups < 1:  # type: ignore[operator]
        raise EdgePruneError(f"{op}: groups is {shown(groups)}; give a whole number, at least 1")
    return int(groups)  # type: ignore[call-overload]


def pads_of(op: str, padding: int | Pair | str, filter: tuple[int, ...]) -> tuple[Pair, Pair]:
    """(rows and columns added on all sides, those added once more behind the last)."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise EdgePruneError(f"{op}: padding is {padding!r}; give numbers, 'same' or 'valid'")
        if tuple(filter[5:7]) != (1, 1):
            raise EdgePruneError(f"{op}: padding 'same' asks for stride 1, not {tuple(filter[5:7])}")
        total = [dilation * (taps - 1) for taps, dilation in zip(filter[3:5], filter[7:9], strict=True)]
        return (total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2)
    pads = pair(op, "padding", padding)
    if min(pads) < 0:
        raise EdgePruneError(f"{op}: padding is {padding}; it must not be negative")
    return pads, (0, 0)


# ---- which way a call goes ------------------------------------------------------------------------------------------


def quick(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Plain float32 tensors that the core takes, and nobody but autograd has to hear of the call."""
    if not observers.unobserved():
        return False
    for t in (x, weight) if bias is None else (x, weight, bias):
        if not observers.plain(t) or t.dtype is not torch.float32 or t.is_neg() or t.layout is not torch.strided:
            return False
        if not t.is_cpu and not (masked_cuda.takes(t) and t.device == x.device):
            return False
    return True


def sparse_in_training(kind: str, positions: int, pattern: SparsityPattern, path: str) -> bool:
    """Whether quick tensors of the CPU go to the sparse kernels while gradients are recorded."""
    return crossover.sparse_wins(kind, positions, pattern.density, True, path)


def _sparse(
    kind: str, positions: int, pattern: SparsityPattern, path: str, quick: bool, x: Tensor, weight: Tensor
) -> bool:
    if not quick and not (x.dtype is torch.float32 and x.device.type == "cpu" or masked_cuda.takes(x)):
        crossover.check_path("masked", path)
        return False  # the core has no kernel for it
    if not quick and not torch.compiler.is_compiling() and observers.followed_by_torchs_operators_alone():
        return False
    if not quick and torch.onnx.is_in_onnx_export():
        return False  # a file has torch's operators
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.is_cuda:
        return crossover.sparse_wins_on_gpu(kind, pattern.density, path)
    return crossover.sparse_wins(kind, positions, pattern.density, training, path)


def _on_matrix_units(
    pattern: SparsityPattern, compiled: CompiledPattern, path: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> bool:
    """float16 or bfloat16 on a GPU under a mask of blocks, where skipping blocks pays."""
    if not masked_blocks.takes(pattern, compiled, x, weight, bias):
        return False
    return crossover.blocks_win_on_gpu(pattern.density, path)


def _check_given(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, pattern: SparsityPattern, dims: int) -> None:
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        raise EdgePruneError(
            f"{op}: x is {shown(x)}, weight {shown(weight)} and bias {shown(bias)}; give torch tensors, of which the "
            "bias may be None"
        )
    if weight.layout is not torch.strided:
        raise EdgePruneError(f"{op}: weight is a {weight.layout} tensor; give a dense one, the mask says what is kept")
    if not isinstance(pattern, SparsityPattern):
        raise EdgePruneError(
            f"{op}: pattern is a {type(pattern).__name__}; make one with edgeprune.SparsityPattern.from_mask(mask)"
        )
    if len(pattern.shape) != dims:
        raise EdgePruneError(f"{op}: the mask has shape {pattern.shape}; it must have {dims} dimensions")


def _compact(op: str, weight: Tensor, pattern: SparsityPattern, compiled: CompiledPattern) -> Tensor:
    if weight.ndim == 1 and weight.shape[0] == pattern.kept:
        return weight
    if tuple(weight.shape) != pattern.shape:
        raise EdgePruneError(
            f"{op}: weight has shape {tuple(weight.shape)}; the mask has shape {pattern.shape} and keeps "
            f"{pattern.kept}, so give one of shape {pattern.shape} or ({pattern.kept},)"
        )
    if torch.compiler.is_compiling():
        index = index_of(compiled.tensors[0], compiled.tensors[1], compiled.filter)
        return weight.reshape(-1).index_select(0, index.to(weight.device))
    return pattern.compact(weight)


def _dense(weight: Tensor, pattern: SparsityPattern, compiled: CompiledPattern) -> Tensor:
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        with observers.untraced():
            return _dense(weight.detach(), pattern, compiled)
    if torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export():
        # The compiler cannot follow a mask that unpacks itself.
        return masked_dense.dense_weight(weight, compiled.tensors, compiled.filter).view(pattern.shape)
    if pattern.kept == pattern.numel():
        return weight.view(pattern.shape)
    return pattern.dense(weight)


def _autocast_type(x: Tensor) -> torch.dtype | None:
    """The type of the result under autocast, that of torch's own products, whichever way ours goes. None: no matter."""
    device = x.device.type
    if device == "meta" or x.dtype not in _CAST or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _one_type(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None
) -> tuple[torch.dtype, Tensor, Tensor, Tensor | None]:
    """(type of the result, and x, weight, bias in the type to compute in)."""
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, t in tensors.items():
        if t.device != x.device:
            raise EdgePruneError(f"{op}: x is on {x.device} and {name} on {t.device}; they must be on one device")
        if not (t.is_floating_point() or t.is_complex()) or t.layout is not torch.strided:
            raise EdgePruneError(f"{op}: {name} is {t.dtype}, {t.layout}; give a dense floating-point tensor")
    types = {t.dtype for t in tensors.values()}
    if len(types) > 1 and autocast is None:
        said = ", ".join(f"{name} {t.dtype}" for name, t in tensors.items())
        raise EdgePruneError(f"{op}: {said}; they must have one type")
    out = x.dtype if autocast is None else autocast
    if x.device.type == "cpu" and (len(types) > 1 or x.dtype in (torch.bfloat16, torch.float16)):
        return out, x.float(), weight.float(), None if bias is None else bias.float()
    if len(types) > 1:
        return out, x.to(out), weight.to(out), None if bias is None else bias.to(out)
    return out, x, weight, bias
