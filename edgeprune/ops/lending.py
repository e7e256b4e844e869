"""Tensors that the core is lent: read, or written to, without a copy where that can be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError, shown
from edgeprune.ops import observers
from edgeprune.ops._checks import check_written


def plain(*xs: Tensor | None) -> bool:
    """Nothing here needs the dispatcher: no compiler or dispatch mode at work, no fake tensors or other subclasses."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(x is None or observers.plain(x) for x in xs)


def lend(x: Tensor | None) -> object:
    """A tensor to be read; EdgePruneError for one without values in memory."""
    return None if x is None else _lent(x)


def lend_written(op: str, name: str, x: Tensor) -> object:
    """A tensor to be written; EdgePruneError where a copy would be written in its place."""
    if not isinstance(x, Tensor):
        raise EdgePruneError(f"{op}: {name} is {shown(x)}; give a torch tensor")
    if not x.is_contiguous():
        raise EdgePruneError(f"{op}: {name} must be contiguous, for it is written to")
    check_written(op, **{name: x})
    return _lent(observers.told_of_writing(x))


def _lent(x: Tensor) -> object:
    """A copy where ``x`` is not contiguous or a negated view."""
    given = x
    if not isinstance(given, Tensor):
        raise EdgePruneError(f"ops: {shown(given)} is given where a tensor is due; give one on the CPU")
    try:
        given = x.detach().contiguous().resolve_neg()
        # a tensor that Python works on (a fake one, say) has no memory, and torch lends it all the same
        if type(given).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
            return to_dlpack(given)
    except (BufferError, RuntimeError):
        pass
    kind = "" if observers.plain(given) else f"{type(given).__name__} "
    raise EdgePruneError(
        f"ops: a {kind}tensor on {x.device} with layout {x.layout} cannot reach the core; give a dense one on the CPU"
    )


def check_apart(op: str, written: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    """No tensor that is written shares memory with another; all contiguous and on one device."""
    spans = [
        (start, start + x.numel() * x.element_size(), name, changes)
        for group, changes in ((written, True), (read, False))
        for name, x in group.items()
        if x.numel()
        for start in (x.data_ptr(),)
    ]
    ends: dict[bool, tuple[int, str]] = {True: (0, ""), False: (0, "")}
    for start, end, name, changes in sorted(spans):
        for kind, (last, other) in ends.items():
            if start < last and (kind or changes):
                raise EdgePruneError(f"{op}: {other} and {name} share memory, and one is written to; give it a copy")
        ends[changes] = max(ends[changes], (end, name))
