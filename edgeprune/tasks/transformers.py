"""Small transformers with exits: pictures (ViT) and characters. A device may hold their first quarters alone.

Blocks are pre-norm. What a block adds to the residual stream goes through ``LinearInto``, so heads, hidden channels and
the rows of both projections can be cut while the stream keeps its width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.nn import ExitHead, Exits, LinearInto


class Attention(nn.Module):
    """Self-attention of ``stream`` [N, T, width], added to it. ``causal``: positions see only what is before them."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.head_width, self.causal = width // heads, causal
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = LinearInto(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        n, t, _ = stream.shape
        qkv = self.qkv(self.norm(stream)).view(n, t, 3, -1, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).flatten(2), stream)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, added to ``stream``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = LinearInto(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(stream))), stream)


def block(width: int, heads: int, causal: bool = False) -> nn.Module:
    """Attention, then the MLP."""
    return nn.Sequential(Attention(width, heads, causal), Mlp(width, 4 * width))


class ViT(nn.Module):
    """[N, 3, side, side] -> [N, classes]: the mean over all patches is classified; learnt positions."""

    def __init__(self, width: int, heads: int, depth: int, patch: int, side: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.head = pooled_head(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for each in self.blocks:
            x = each(x)
        return self.head(x)


class CharTransformer(nn.Module):
    """Character numbers [N, T] -> logits of the next character [N, T, characters]."""

    def __init__(self, width: int, heads: int, depth: int, window: int, characters: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, window, width))
        self.blocks = nn.ModuleList(block(width, heads, causal=True) for _ in range(depth))
        self.head = each_head(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.letters(x) + self.positions
        for each in self.blocks:
            x = each(x)
        return self.head(x)


def pooled_head(width: int, classes: int) -> nn.Module:
    """[N, T, width] -> [N, classes]: norm, mean over positions, linear."""
    return nn.Sequential(nn.LayerNorm(width), ExitHead(width, classes, channels_last=True))


def each_head(width: int, classes: int) -> nn.Module:
    """[N, T, width] -> [N, T, classes]: norm, linear."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))


def quarters(depth: int) -> tuple[str, ...]:
    """The blocks after the first, second and third quarter of ``depth`` (a multiple of 4)."""
    return tuple(f"blocks.{depth * i // 4 - 1}" for i in (1, 2, 3))


def vit(
    width: int = 64, heads: int = 4, depth: int = 12, patch: int = 8, side: int = 32, classes: int = 10
) -> nn.Module:
    """A ViT with an exit behind each quarter of its blocks. Width 864 with 12 heads has 0.11 billion parameters."""
    heads_at = {at: pooled_head(width, classes) for at in quarters(depth)}
    return Exits(ViT(width, heads, depth, patch, side, classes), heads_at, torch.zeros(1, 3, side, side))


def char_transformer(
    width: int = 64, heads: int = 4, depth: int = 8, window: int = 80, characters: int = 65
) -> nn.Module:
    """A causal transformer over characters with an exit behind each quarter of its blocks."""
    heads_at = {at: each_head(width, characters) for at in quarters(depth)}
    example = torch.zeros(1, window, dtype=torch.int64)
    return Exits(CharTransformer(width, heads, depth, window, characters), heads_at, example)
