"""What the operators refuse, in one sentence each, for calls that the core (which checks itself) does not see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, is_number, is_whole, shown


def check_tensors(op: str, **given: object) -> None:
    """All are tensors."""
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise EdgePruneError(f"{op}: {name} is {shown(x)}; give a torch tensor")


def check_rows(op: str, **given: object) -> None:
    """All are lists of tensors."""
    for name, xs in given.items():
        if not isinstance(xs, list | tuple):
            raise EdgePruneError(f"{op}: {name} is {shown(xs)}; give a list of torch tensors")
        for x in xs:
            if not isinstance(x, Tensor):
                raise EdgePruneError(f"{op}: {name} holds {shown(x)}; give torch tensors")


def check_number(op: str, name: str, value: object) -> float:
    """A number, as a float that holds it."""
    if is_number(value):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            pass
    raise EdgePruneError(f"{op}: {name} is {shown(value)}; give a number that a float holds")


def check_whole(op: str, name: str, value: object, bits: int = 31) -> int:
    """A whole number of so many bits and a sign, as the core takes them."""
    if not is_whole(value) or not -(1 << bits) <= value < 1 << bits:  # type: ignore[operator]
        raise EdgePruneError(f"{op}: {name} is {shown(value)}; give a whole number")
    return int(value)  # type: ignore[call-overload]


def check_lengths(op: str, **lists: Sequence) -> None:
    """All lists are as long as the first."""
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise EdgePruneError(f"{op}: lists of unequal length: {said}; give one entry for each tensor")


def check_same_shape(op: str, **tensors: Tensor) -> None:
    """All tensors have the shape of the first."""
    (first, base), *others = tensors.items()
    for name, x in others:
        if x.shape != base.shape:
            raise EdgePruneError(
                f"{op}: {first} has shape {tuple(base.shape)} and {name} {tuple(x.shape)}; they must be the same"
            )


def check_same_device(op: str, **tensors: Tensor) -> None:
    """All tensors are where the first is."""
    (first, base), *others = tensors.items()
    for name, x in others:
        if x.device != base.device:
            raise EdgePruneError(f"{op}: {first} is on {base.device} and {name} on {x.device}; bring them together")


def check_written(op: str, **tensors: Tensor) -> None:
    """None is a view whose memory holds other values than its own."""
    for name, x in tensors.items():
        if not torch.compiler.is_compiling() and x.is_neg():
            raise EdgePruneError(f"{op}: {name} is a negated view of other memory, but is written to; give a copy")


def check_indices(op: str, x: Tensor, indices: Sequence[Tensor | None], increasing: bool) -> None:
    """One index for each dimension of ``x``; positions inside it and, when asked for, strictly increasing."""
    if len(indices) != x.ndim:
        raise EdgePruneError(
            f"{op}: {len(indices)} indices for x of shape {tuple(x.shape)}; "
            "give one for each dimension, None for all of it"
        )
    for dim, index in enumerate(indices):
        if index is None:
            continue
        if index.dtype is not torch.int64 or index.ndim != 1:
            raise EdgePruneError(f"{op}: an index must be a one-dimensional int64 tensor, or None")
        if index.numel() == 0:
            continue
        if int(index.min()) < 0 or int(index.max()) >= x.shape[dim]:
            outside = int(index.min()) if int(index.min()) < 0 else int(index.max())
            raise EdgePruneError(
                f"{op}: the index of dimension {dim} holds {outside}, which is outside 0..{x.shape[dim] - 1}"
            )
        if increasing and bool((index[1:] <= index[:-1]).any()):
            raise EdgePruneError(f"{op}: the index of dimension {dim} must be strictly increasing")


def check_scatter(total: Tensor, count: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    """Everything that ``scatter_accumulate_`` asks for."""
    op = "scatter_accumulate"
    check_same_shape(op, total=total, count=count)
    check_indices(op, total, indices, increasing=True)
    for name, written in (("total", total), ("count", count)):
        if any(step == 0 and size > 1 for size, step in zip(written.shape, written.stride(), strict=True)):
            raise EdgePruneError(f"{op}: {name} is an expanded tensor whose elements share memory; clone it first")
    if _overlap(total, count) or _overlap(total, x) or _overlap(count, x):
        raise EdgePruneError(f"{op}: total, count and x must not share memory")
    kept = [size if index is None else index.numel() for size, index in zip(total.shape, indices, strict=True)]
    if list(x.shape) != kept:
        raise EdgePruneError(
            f"{op}: x of shape {tuple(x.shape)} does not fit the kept positions in total of shape {tuple(total.shape)}"
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """As the core sees it: views with gaps may lie between each other's elements, so of these only ones that begin
    together are known to overlap."""
    if not (a.numel() and b.numel()):
        return False
    (start, end), (other_start, other_end) = (
        (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in (a, b)
    )
    if not (a.is_contiguous() and b.is_contiguous()):
        return start == other_start
    return start < other_end and other_start < end
