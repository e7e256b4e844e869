"""New memory for large results, in large pages where the system has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.ops._core import core

MOST_ELEMENTS = 1 << 28  # of an input that is made up, or that a file insists on
_LEAST = 4 << 20  # bytes, as in csrc/base/pages.h: below it no page of 2 MB need lie inside


def empty(
    shape: int | Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """``torch.empty``, contiguous, on the CPU where no device is given, whatever torch's default is. The first writing
    of memory of 4 MB or more costs a fraction of the page faults."""
    return advised(torch.empty(shape, dtype=dtype, device="cpu" if device is None else device))


def advised(new: Tensor) -> Tensor:
    """``new``, contiguous and not written yet, with its pages asked to be large where that can pay."""
    size = new.numel() * new.element_size()
    if size >= _LEAST and new.is_cpu and type(new) is Tensor:
        core.ask_large_pages(new.data_ptr(), size)
    return new


def zeros(
    shape: int | Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """``torch.zeros`` in such memory."""
    return empty(shape, dtype=dtype, device=device).zero_()
