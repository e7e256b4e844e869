"""Small forms of networks with attention, and of a recommender: heads, windows, grouped queries, tied words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Sequential):
    def __init__(self, width, hidden):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))


class EncoderBlock(nn.Module):
    """Norms first, torch's own attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = nn.MultiheadAttention(width, heads, batch_first=True), Mlp(width, 2 * width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token, learnt positions."""

    def __init__(self, block=EncoderBlock):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(block(16, 4), block(16, 4))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class FusedBlock(nn.Module):
    """Query, key and value from one layer, by view; the product written out; norms of query and key."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2, self.norm_q = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(self.head_dim)
        self.qkv, self.out, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), Mlp(width, 3 * width)
        self.scale = self.head_dim**-0.5

    def attention(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((self.norm_q(q) * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WindowBlock(nn.Module):
    """Swin: attention within windows that shift, a learnt bias for each head and distance."""

    def __init__(self, width, heads, window, shift):
        super().__init__()
        self.num_heads, self.head_dim, self.window, self.shift = heads, width // heads, window, shift
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width, 2 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        far = (at[:, :, None] - at[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("index", far[..., 0] * (2 * window - 1) + far[..., 1], persistent=False)

    def attention(self, x):
        n, h, w, c = x.shape
        s, rows, columns = self.window, h // self.window, w // self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(n, rows, s, columns, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(x).view(len(x), s * s, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.flatten()].view(s * s, s * s, -1).permute(2, 0, 1)
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5 + bias).softmax(-1)
        x = self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x.view(n, rows, columns, s, s, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two stages; between them four neighbours become one of twice the width."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm0 = nn.Conv2d(3, 12, 2, 2), nn.LayerNorm(12)
        self.stage1 = nn.Sequential(WindowBlock(12, 3, 4, 0), WindowBlock(12, 3, 4, 2))
        self.norm1, self.reduce = nn.LayerNorm(48), nn.Linear(48, 24, bias=False)
        self.stage2 = WindowBlock(24, 6, 4, 0)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stage1(self.norm0(self.patches(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.norm(self.stage2(self.reduce(self.norm1(x)))).mean((1, 2)))


class DecoderBlock(nn.Module):
    """RMS norms, rotated positions, eight queries on four keys, a gated hidden layer."""

    def __init__(self, width, heads, key_heads):
        super().__init__()
        self.head_dim = width // heads
        self.groups = heads // key_heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)

    def turn(self, x):
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * 0.5 ** torch.arange(half, dtype=x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        n, g, t, e = k.shape
        k, v = (y[:, :, None].expand(n, g, self.groups, t, e).reshape(n, g * self.groups, t, e) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Gpt(nn.Module):
    """Words in and out are one table."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(DecoderBlock(16, 8, 4) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, i):
        x = self.words(i)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class SplitBlock(nn.Module):
    """GPT-2: query, key and value in one layer, split by sizes in an attribute; fewer keys than queries."""

    def __init__(self, width, heads, key_heads):
        super().__init__()
        self.head_dim = width // heads
        self.sizes = [width, key_heads * self.head_dim, key_heads * self.head_dim]
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)), nn.Linear(width, width)

    def forward(self, x):
        parts = self.qkv(self.norm(x)).split(self.sizes, dim=-1)
        q, k, v = (y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2) for y in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class Gpt2(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.blocks = nn.Embedding(20, 16), nn.Sequential(SplitBlock(16, 8, 2), SplitBlock(16, 4, 4))
        self.head = nn.Linear(16, 20)

    def forward(self, i):
        return self.head(self.blocks(self.words(i)))


class Bert(nn.Module):
    """Norms after the sum, positions added, torch's encoder layers, a pooler."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(20, 16), nn.Embedding(10, 16), nn.LayerNorm(16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, i):
        x = self.norm(self.words(i) + self.places(torch.arange(i.shape[1])))
        return self.head(torch.tanh(self.pooler(self.encoder(x)[:, 0])))


class Dlrm(nn.Module):
    """A table for each kind of thing, products of all pairs, then layers."""

    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(9, 8, mode="sum") for _ in range(3))
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x, things):
        x = self.bottom(x)
        rows = torch.stack([x, *(table(things[:, i]) for i, table in enumerate(self.tables))], 1)
        a, b = torch.tril_indices(4, 4, -1)
        return self.top(torch.cat([x, torch.bmm(rows, rows.transpose(1, 2))[:, a, b]], 1))


def _words():
    return (torch.randint(0, 20, (2, 7)),)


def _images():
    return (torch.randn(2, 3, 16, 16),)


ATTENTION = {
    "vit": (Vit, _images),
    "vit-fused": (lambda: Vit(FusedBlock), _images),
    "swin": (Swin, _images),
    "gpt-grouped-queries": (Gpt, _words),
    "gpt2-split": (Gpt2, _words),
    "bert": (Bert, _words),
    "dlrm": (Dlrm, lambda: (torch.randn(4, 6), torch.randint(0, 9, (4, 3, 2)))),
}
