"""Who else has to hear of a call: what goes straight to the core is seen by nobody but its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import Parameter


def unobserved() -> bool:
    """No compiler, tracer, dispatch mode, function transform or forward derivative follows what is called now."""
    return not (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or followed_by_torchs_operators_alone()
    )


def followed_by_torchs_operators_alone() -> bool:
    """A function transform, forward derivative or torch.jit.trace is at work: ours would be refused, left out of the
    derivative, or written into the graph as what they gave this time. Not to be asked while compiling."""
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


@contextmanager
def untraced() -> Iterator[None]:
    """torch.jit's tracer takes what is computed here for constants."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def batched(*xs: Tensor) -> bool:
    """One of these stands for many gradients at once (``is_grads_batched``, ``jacobian(vectorize=True)``): torch's own
    operators know how to go on, and nobody else."""
    return any(map(torch._C._functorch.is_legacy_batchedtensor, xs))


def plain(x: object) -> bool:
    """Neither a fake tensor nor another subclass."""
    return type(x) is Tensor or type(x) is Parameter


def told_of_writing(x: Tensor) -> Tensor:
    """``x``, which the core is about to write to: autograd, where it saved it, refuses to use what it finds."""
    if not x.is_inference():  # those have no count of changes, for nobody saves them
        increment_version(x)
    return x
