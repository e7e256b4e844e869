"""Whole channels: norms, gather of kept indices, weighted scatter-accumulate, and the division that ends a merge.

float32 tensors on the CPU, or on a GPU when the core was built with CUDA, go through the compiled core; every other
type and device through ``edgeprune.ops.reference``. On the CPU every instruction set gives the same bits.

``indices`` is one entry for each dimension: a one-dimensional int64 tensor of kept positions, or None for all of it.
On a GPU index tensors may stay on the CPU, where they are checked; those already on the GPU are not (that would wait
for it): a position outside the tensor then reads as NaN, or is left out.

The ``torch.library`` operators are ``torch.ops.edgeprune.{gather, scatter_accumulate_, channel_norms, merge_finish}``.
The functions here go around the dispatcher when nothing needs it (plain tensors, no gradient asked for, not compiling):
a network has hundreds of small tensors, and the dispatcher costs more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError, shown
from edgeprune.ops import _checks, memory, observers, reference
from edgeprune.ops._core import core

Index = Sequence[Tensor | None]

_CUDA_BUILT: bool = core.cuda_built()


# ---- which way a call goes ------------------------------------------------------------------------------------------


def _direct(*groups: Sequence[Tensor]) -> bool:
    """The core can take all of these at once, and nobody else has to hear of it, autograd neither."""
    if not observers.unobserved():
        return False
    device = None
    for xs in groups:
        for x in xs:
            if not observers.plain(x):
                return False
            if x.layout is not torch.strided:
                raise EdgePruneError(f"ops: a tensor with layout {x.layout} has no channels to walk; give a dense one")
            if x.dtype is not torch.float32 or x.is_neg() or x.requires_grad and torch.is_grad_enabled():
                return False
            if device is None:
                device = x.device
            elif x.device != device:
                return False
    return device is None or device.type == "cpu" or (device.type == "cuda" and _CUDA_BUILT)


def _for_core(*xs: Tensor) -> bool:
    """The same question inside an operator, where the dispatcher has dealt with gradients and subclasses."""
    device = xs[0].device
    if device.type != "cpu" and not (device.type == "cuda" and _CUDA_BUILT):
        return False
    return all(x.dtype is torch.float32 and x.device == device and not x.is_neg() for x in xs)


def _stream(x: Tensor) -> int | None:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None


def _capsules(x: Tensor, index: Index, op: str, increasing: bool) -> list[object]:
    """Index tensors for the core, brought to the device of ``x``."""
    if x.is_cuda:
        _checks.check_indices(op, x, [None if i is None or i.is_cuda else i for i in index], increasing)
        index = [None if i is None else i.to(x.device, non_blocking=True) for i in index]
    try:
        return [None if i is None else to_dlpack(i) for i in index]
    except (BufferError, RuntimeError):
        raise EdgePruneError(f"{op}: an index is sparse or on another device than x; give int64 positions") from None


# ---- gather ---------------------------------------------------------------------------------------------------------


def gather(x: Tensor, indices: Index) -> Tensor:
    """Kept positions over several dimensions at once: ``x[np.ix_(*indices)]``, contiguous. Differentiable in ``x``.

    Positions may come in any order and repeat. Raises EdgePruneError for a wrong number of indices, one that is not a
    one-dimensional int64 tensor, or a position outside the tensor.
    """
    if _direct((x,)):
        return _gather_direct([x], [indices])[0]
    return _gather_seen(x, indices)


def gather_many(xs: Sequence[Tensor], indices: Sequence[Index]) -> list[Tensor]:
    """``[gather(x, index) for x, index in zip(xs, indices)]``, in one crossing of the border."""
    _checks.check_lengths("gather_many", xs=xs, indices=indices)
    if _direct(xs):
        return _gather_direct(xs, indices)
    return [_gather_seen(x, index) for x, index in zip(xs, indices, strict=True)]


def _gather_seen(x: Tensor, index: Index) -> Tensor:
    _checks.check_tensors("gather", x=x)
    _kept_shape(x, index)
    if torch.compiler.is_compiling() or not observers.followed_by_torchs_operators_alone():
        return torch.ops.edgeprune.gather(x, list(index))
    _checks.check_indices("gather", x, index, increasing=False)
    return reference.gather(x, index)


def _kept_shape(x: Tensor, index: Index) -> list[int]:
    shape = list(x.shape)
    if not isinstance(index, Sequence | Tensor):
        raise EdgePruneError(f"gather: indices is {shown(index)}; give one for each dimension, None for all of it")
    if len(index) != len(shape):
        raise EdgePruneError(
            f"gather: {len(index)} indices for x of shape {tuple(shape)}; "
            "give one for each dimension, None for all of it"
        )
    for dim, kept in enumerate(index):
        if kept is not None:
            if not isinstance(kept, Tensor):
                raise EdgePruneError("gather: an index must be a one-dimensional int64 tensor, or None")
            shape[dim] = kept.numel()
    return shape


def _new(shape: Sequence[int], like: Tensor) -> Tensor:
    return memory.empty(shape, dtype=like.dtype, device=like.device)


def _gather_direct(xs: Sequence[Tensor], indices: Sequence[Index]) -> list[Tensor]:
    if not xs:
        return []
    outs = [_new(_kept_shape(x, index), x) for x, index in zip(xs, indices, strict=True)]
    core.gather_many(
        [to_dlpack(x) for x in xs],
        [_capsules(x, index, "gather", False) for x, index in zip(xs, indices, strict=True)],
        [to_dlpack(out) for out in outs],
        torch.get_num_threads(),
        "",
        _stream(xs[0]),
    )
    return outs


@torch.library.custom_op("edgeprune::gather", mutates_args=(), schema="(Tensor x, Tensor?[] indices) -> Tensor")
def _gather_op(x: Tensor, indices: Index) -> Tensor:
    if _for_core(x):
        return _gather_direct([x], [indices])[0]
    _checks.check_indices("gather", x, indices, increasing=False)
    return reference.gather(x, indices)


@_gather_op.register_fake
def _gather_fake(x: Tensor, indices: Index) -> Tensor:
    return x.new_empty(_kept_shape(x, indices))


def _gather_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, indices = inputs
    ctx.shape = x.shape
    ctx.kept_dims = [dim for dim, index in enumerate(indices) if index is not None]
    ctx.save_for_backward(*(index for index in indices if index is not None))


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    indices: list[Tensor | None] = [None] * len(ctx.shape)
    for dim, index in zip(ctx.kept_dims, ctx.saved_tensors, strict=True):
        indices[dim] = index
    if not indices:
        return grad, None
    into = grad.new_zeros(ctx.shape)
    return into.index_put(reference.open_mesh(into, indices), grad, accumulate=True), None


_gather_op.register_autograd(_gather_backward, setup_context=_gather_setup_context)


# ---- scatter --------------------------------------------------------------------------------------------------------


def scatter_accumulate_(total: Tensor, count: Tensor, x: Tensor, indices: Index, weight: float) -> None:
    """``total[np.ix_(*indices)] += weight * x`` and ``count[np.ix_(*indices)] += weight``, in place, no gradient.

    ``total`` and ``count`` have one shape, ``x`` the shape that the indices give. Each index is strictly increasing.
    ``weight * x`` is rounded to float32 before it is added. Raises EdgePruneError, and then nothing was written.
    """
    scatter_accumulate_many_([total], [count], [x], [indices], weight)


def scatter_accumulate_many_(
    totals: Sequence[Tensor], counts: Sequence[Tensor], xs: Sequence[Tensor], indices: Sequence[Index], weight: float
) -> None:
    """``scatter_accumulate_`` of many tensors in one crossing of the border; tensors may not share memory."""
    _checks.check_lengths("scatter_accumulate_many_", totals=totals, counts=counts, xs=xs, indices=indices)
    _checks.check_rows("scatter_accumulate", totals=totals, counts=counts, xs=xs)
    weight = _checks.check_number("scatter_accumulate", "weight", weight)
    if not all(i is None or isinstance(i, Tensor) for index in indices for i in index):
        raise EdgePruneError("scatter_accumulate: an index must be a one-dimensional int64 tensor, or None")
    with torch.no_grad():
        if _direct(totals, counts, xs):
            return _scatter_direct(totals, counts, xs, indices, weight)
        for total, count, x, index in zip(totals, counts, xs, indices, strict=True):
            _checks.check_same_device("scatter_accumulate", total=total, count=count, x=x)
            _checks.check_written("scatter_accumulate", total=total, count=count)
            torch.ops.edgeprune.scatter_accumulate_(total, count, x, list(index), weight)


def _scatter_direct(
    totals: Sequence[Tensor], counts: Sequence[Tensor], xs: Sequence[Tensor], indices: Sequence[Index], weight: float
) -> None:
    if not totals:
        return
    core.scatter_accumulate_many(
        [to_dlpack(observers.told_of_writing(total)) for total in totals],
        [to_dlpack(observers.told_of_writing(count)) for count in counts],
        [to_dlpack(x) for x in xs],
        [_capsules(total, index, "scatter_accumulate", True) for total, index in zip(totals, indices, strict=True)],
        weight,
        torch.get_num_threads(),
        "",
        _stream(totals[0]),
    )


@torch.library.custom_op(
    "edgeprune::scatter_accumulate_",
    mutates_args=("total", "count"),
    schema="(Tensor(a!) total, Tensor(b!) count, Tensor x, Tensor?[] indices, float weight) -> ()",
)
def _scatter_op(total: Tensor, count: Tensor, x: Tensor, indices: Index, weight: float) -> None:
    if _for_core(total, count, x):
        return _scatter_direct([total], [count], [x], [indices], weight)
    _checks.check_scatter(total, count, x, indices)
    reference.scatter_accumulate_(total, count, x, indices, weight)


@_scatter_op.register_fake
def _scatter_fake(total: Tensor, count: Tensor, x: Tensor, indices: Index, weight: float) -> None:
    return None


# ---- norms ----------------------------------------------------------------------------------------------------------


def channel_norms(x: Tensor, dim: int, p: int) -> Tensor:
    """The norm of each channel of ``x`` along ``dim``: float32 ``[x.shape[dim]]``, no gradient.

    p = 1: sum of magnitudes; p = 2: Euclidean norm; over all other dimensions, summed in double. ``x`` is copied
    when it is not contiguous.
    """
    return channel_norms_many([x], [dim], p)[0]


def channel_norms_many(xs: Sequence[Tensor], dims: Sequence[int], p: int) -> list[Tensor]:
    """``[channel_norms(x, dim, p) for x, dim in zip(xs, dims)]``, in one crossing of the border."""
    _checks.check_lengths("channel_norms_many", xs=xs, dims=dims)
    _checks.check_rows("channel_norms", xs=xs)
    xs = [x.detach() for x in xs]
    p = int(p) if p in (1, 2) else p
    if _direct(xs):
        return _norms_many(xs, dims, p)
    if not torch.compiler.is_compiling() and observers.followed_by_torchs_operators_alone():
        return [reference.channel_norms(x, _channel_dim(x, dim, p), p) for x, dim in zip(xs, dims, strict=True)]
    dims = [_channel_dim(x, dim, p) for x, dim in zip(xs, dims, strict=True)]
    return [torch.ops.edgeprune.channel_norms(x, dim, p) for x, dim in zip(xs, dims, strict=True)]


def _channel_dim(x: Tensor, dim: int, p: int) -> int:
    dim = _checks.check_whole("channel_norms", "dim", dim)
    if not -x.ndim <= dim < x.ndim:
        raise EdgePruneError(f"channel_norms: dim {dim} does not exist in x of shape {tuple(x.shape)}")
    if p not in (1, 2):
        raise EdgePruneError(f"channel_norms: p is {p}; only 1 and 2 are known")
    if x.is_complex():
        raise EdgePruneError(f"channel_norms: x is {x.dtype}; give real numbers, such as torch.view_as_real(x)")
    return dim % x.ndim


def _norms_many(xs: Sequence[Tensor], dims: Sequence[int], p: int) -> list[Tensor]:
    if not xs:
        return []
    dims = [_channel_dim(x, dim, p) for x, dim in zip(xs, dims, strict=True)]
    outs = [x.new_empty(x.shape[dim]) for x, dim in zip(xs, dims, strict=True)]
    dense = [x.contiguous() for x in xs]
    if not xs[0].is_cuda:
        core.channel_norms_many(
            [to_dlpack(x) for x in dense], dims, p, [to_dlpack(out) for out in outs], torch.get_num_threads()
        )
        return outs
    device, stream = xs[0].device, _stream(xs[0]) or 0
    lent, to = [to_dlpack(x) for x in dense], [to_dlpack(out) for out in outs]
    room = torch.empty(core.channel_norms_many_cuda(lent, dims, p, to, None, stream), dtype=torch.uint8, device=device)
    core.channel_norms_many_cuda(lent, dims, p, to, to_dlpack(room), stream)
    return outs


@torch.library.custom_op("edgeprune::channel_norms", mutates_args=(), schema="(Tensor x, int dim, int p) -> Tensor")
def _norms_op(x: Tensor, dim: int, p: int) -> Tensor:
    return _norms_many([x], [dim], p)[0] if _for_core(x) else reference.channel_norms(x, _channel_dim(x, dim, p), p)


@_norms_op.register_fake
def _norms_fake(x: Tensor, dim: int, p: int) -> Tensor:
    return x.new_empty([x.shape[_channel_dim(x, dim, p)]], dtype=torch.float32)


# ---- finish ---------------------------------------------------------------------------------------------------------


def merge_finish(base: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """``total / count`` where ``count > 0``, else ``base`` bit for bit. One shape for all; contiguous; no gradient."""
    return merge_finish_many([base], [total], [count])[0]


def merge_finish_many(bases: Sequence[Tensor], totals: Sequence[Tensor], counts: Sequence[Tensor]) -> list[Tensor]:
    """``merge_finish`` of many tensors in one crossing of the border."""
    _checks.check_rows("merge_finish", bases=bases, totals=totals, counts=counts)
    _checks.check_lengths("merge_finish_many", bases=bases, totals=totals, counts=counts)
    with torch.no_grad():
        if _direct(bases, totals, counts):
            return _finish_direct(bases, totals, counts)
        for base, total, count in zip(bases, totals, counts, strict=True):
            _checks.check_same_device("merge_finish", base=base, total=total, count=count)
        finish = torch.ops.edgeprune.merge_finish
        return [finish(base.detach(), t, c) for base, t, c in zip(bases, totals, counts, strict=True)]


def merge_finish_many_(
    bases: Sequence[Tensor],
    totals: Sequence[Tensor],
    counts: Sequence[Tensor],
    outs: Sequence[Tensor] | None = None,
) -> None:
    """``merge_finish`` of many tensors written into ``totals``, no second copy of a large model's sums, or into
    ``outs``, which have the same shapes."""
    outs = totals if outs is None else outs
    _checks.check_rows("merge_finish", bases=bases, totals=totals, counts=counts, outs=outs)
    _checks.check_lengths("merge_finish_many_", bases=bases, totals=totals, counts=counts, outs=outs)
    with torch.no_grad():
        if _direct(bases, totals, counts, outs) and all(out.is_contiguous() for out in outs):
            _finish_into(outs, bases, totals, counts)
            return
        for out, base in zip(outs, bases, strict=True):
            _checks.check_same_shape("merge_finish", base=base, out=out)
        for out, result in zip(outs, merge_finish_many(bases, totals, counts), strict=True):
            out.copy_(result)


def _finish_direct(bases: Sequence[Tensor], totals: Sequence[Tensor], counts: Sequence[Tensor]) -> list[Tensor]:
    outs = [_new(base.shape, base) for base in bases]
    _finish_into(outs, bases, totals, counts)
    return outs


def _finish_into(
    outs: Sequence[Tensor], bases: Sequence[Tensor], totals: Sequence[Tensor], counts: Sequence[Tensor]
) -> None:
    if not bases:
        return
    core.merge_finish_many(
        [to_dlpack(base.contiguous()) for base in bases],
        [to_dlpack(total.contiguous()) for total in totals],
        [to_dlpack(count.contiguous()) for count in counts],
        [to_dlpack(observers.told_of_writing(out)) for out in outs],
        torch.get_num_threads(),
        "",
        _stream(bases[0]),
    )


@torch.library.custom_op(
    "edgeprune::merge_finish", mutates_args=(), schema="(Tensor base, Tensor total, Tensor count) -> Tensor"
)
def _finish_op(base: Tensor, total: Tensor, count: Tensor) -> Tensor:
    if _for_core(base, total, count):
        return _finish_direct([base], [total], [count])[0]
    _checks.check_same_shape("merge_finish", base=base, total=total, count=count)
    return reference.merge_finish(base, total, count).contiguous()


@_finish_op.register_fake
def _finish_fake(base: Tensor, total: Tensor, count: Tensor) -> Tensor:
    return base.new_empty(base.shape)
