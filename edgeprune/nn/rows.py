"""A linear layer that adds its result into a wider stream, so that it may have fewer rows than the stream has channels.

Pruning a transformer leaves the width of its residual stream alone. What a projection or the second half of an MLP adds
to it can still be less than all of its channels: rows that are cut are not computed, and those channels pass by.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearInto(nn.Linear):
    """``stream`` [..., width] plus ``x`` [..., inputs] W^T + b at the channels ``index`` of the stream.

    ``index`` (int64 [rows], a buffer) counts 0 .. width - 1 while all rows are there; a sub-model keeps those of its
    rows, in global numbers.
    """

    index: Tensor

    def __init__(self, inputs: int, width: int, bias: bool = True) -> None:
        super().__init__(inputs, width, bias)
        self.register_buffer("index", torch.arange(width))

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:  # type: ignore[override]
        added = functional.linear(x, self.weight, self.bias)
        if added.dtype != stream.dtype:  # as under autocast: what a sum of them has
            both = torch.promote_types(added.dtype, stream.dtype)
            added, stream = added.to(both), stream.to(both)
        return stream.index_add(-1, self.index, added)
