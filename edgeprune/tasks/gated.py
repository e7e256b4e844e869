"""Networks with gated convolutions, and the same without gates for comparison (tasks/models.py's vgg_like)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgeprune.nn.gated import GatedConv2d, GatedNet

SMALL: tuple[int | str, ...] = (32, 32, "pool", 64, 64, "pool", 128, 128)
VGG_16: tuple[int | str, ...] = (
    64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512,
)  # fmt: skip


def gated_vgg(widths: Sequence[int | str] = SMALL, classes: int = 10, keep: float = 0.7, inputs: int = 3) -> nn.Module:
    """[N, inputs, 32, 32] -> [N, classes]: VGG's pattern, every convolution gated."""
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(GatedConv2d(inputs, width, keep=keep))
            inputs = width
    return GatedNet(layers, classes)
