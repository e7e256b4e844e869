"""The operators of ``edgeprune.ops`` in plain PyTorch, accumulated in float64: slow, and plain enough to need no test.

Same names, shapes and results as ``edgeprune.ops`` (which documents them); any device, any floating or integer dtype.
Nothing is checked here beyond what torch itself checks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Index = Sequence[Tensor | None]


def open_mesh(x: Tensor, indices: Index) -> tuple[Tensor, ...]:
    """The index tensors broadcast against each other, as numpy's ``ix_`` makes them."""
    mesh = []
    for dim, index in enumerate(indices):
        full = torch.arange(x.shape[dim], device=x.device) if index is None else index.to(x.device)
        mesh.append(full.reshape([-1 if d == dim else 1 for d in range(x.ndim)]))
    return tuple(mesh)


def channel_norms(x: Tensor, dim: int, p: int) -> Tensor:
    rows = x.detach().movedim(dim, 0).unsqueeze(-1).flatten(1).double()
    norms = rows.abs().sum(1) if p == 1 else rows.square().sum(1).sqrt()
    return norms.to(torch.float32)


def gather(x: Tensor, indices: Index) -> Tensor:
    return x[open_mesh(x, indices)].contiguous() if x.ndim else x.clone()


def gather_many(xs: Sequence[Tensor], indices: Sequence[Index]) -> list[Tensor]:
    return [gather(x, index) for x, index in zip(xs, indices, strict=True)]


def scatter_accumulate_(total: Tensor, count: Tensor, x: Tensor, indices: Index, weight: float) -> None:
    where = open_mesh(total, indices) if total.ndim else ...
    with torch.no_grad():
        total[where] = (total[where].double() + weight * x.double()).to(total.dtype)
        count[where] = (count[where].double() + weight).to(count.dtype)


def scatter_accumulate_many_(
    totals: Sequence[Tensor], counts: Sequence[Tensor], xs: Sequence[Tensor], indices: Sequence[Index], weight: float
) -> None:
    for total, count, x, index in zip(totals, counts, xs, indices, strict=True):
        scatter_accumulate_(total, count, x, index, weight)


def merge_finish(base: Tensor, total: Tensor, count: Tensor) -> Tensor:
    held = count > 0
    mean = total.double() / torch.where(held, count.double(), 1.0)
    return torch.where(held, mean.to(base.dtype), base)


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight`` is dense here; differentiable, in double throughout."""
    kept = torch.where(mask, weight.double(), 0.0)
    return functional.linear(x.double(), kept, None if bias is None else bias.double()).to(x.dtype)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``weight`` is dense here; differentiable, in double throughout."""
    kept = torch.where(mask, weight.double(), 0.0)
    wide = None if bias is None else bias.double()
    return functional.conv2d(x.double(), kept, wide, stride, padding, dilation, groups).to(x.dtype)
