"""The layers of edgeprune.nn that are fast or sparse in torch, as the operators that every runtime has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.nn import LinearInto, densify
from edgeprune.nn.pooling import MaxPool2d


def plain(model: nn.Module) -> nn.Module:
    """``model`` itself, changed: masked layers dense, our pooling torch's, additions into a stream without a scatter.

    It computes the same as before, to the bit but for the masked layers.
    """
    model = densify(model, in_place=True)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LinearInto):
                setattr(parent, name, _Into(child))
    for layer in model.modules():
        if type(layer) is MaxPool2d:
            layer.__class__ = nn.MaxPool2d  # type: ignore[assignment]  # the same attributes, torch's forward
    return model


class _Into(nn.Module):
    """LinearInto: each channel of the stream fetches its row of the product, or the zero behind the last one."""

    def __init__(self, layer: LinearInto) -> None:
        super().__init__()
        self.weight, self.bias, self.index = layer.weight, layer.bias, layer.index
        self.rows: Tensor | None = None  # per channel of the stream; made in the first run, before an exporter looks

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        if self.rows is None:
            self.rows = torch.full((stream.shape[-1],), len(self.index))
            self.rows[self.index] = torch.arange(len(self.index))
        added = functional.pad(functional.linear(x, self.weight, self.bias), (0, 1))
        return stream + added.index_select(-1, self.rows)
