"""nn.MultiheadAttention with fewer heads than its width would hold."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose heads lost channels or left: the projections' own sizes count, not ``embed_dim``.

    Same parameters, same arguments and results as nn.MultiheadAttention. ``head_dim`` is the width of a head;
    ``qk_scale`` what products of query and key are multiplied with (that of the full model). Made by ``slim``.
    """

    qk_scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        single = query.dim() == 2
        if single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._mask(key_padding_mask, attn_mask, q, single)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            products = q @ k.transpose(-2, -1) * self.qk_scale
            weights = torch.softmax(products if mask is None else products + mask, -1)
            weights = F.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if single else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.qk_scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if single:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as [batch, heads, positions, width]."""
        if self.in_proj_weight is not None:
            parts = self.in_proj_weight.chunk(3)
        else:
            parts = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), parts, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(len(x), 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor, single: bool) -> Tensor | None:
        """Both masks as one to be added, [batch or 1, heads or 1, queries, keys]; columns of added keys are open."""
        extra = int(self.bias_k is not None) + int(self.add_zero_attn)
        total: Tensor | None = None
        if mask is not None:
            mask = _added(mask, q.dtype)
            total = mask.unflatten(0, (len(q), -1)) if mask.dim() == 3 else mask
        if padding is not None:
            padding = _added(padding, q.dtype)
            padding = (padding.unsqueeze(0) if single else padding)[:, None, None, :]
            total = padding if total is None else total + padding
        return total if total is None or not extra else F.pad(total, (0, extra))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added; True means that a position is not looked at."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask


def slim(m: nn.MultiheadAttention) -> None:
    """Let the module follow its cut tensors; it becomes a SlimMultiheadAttention where torch's own cannot."""
    inner = m.out_proj.weight.shape[1]
    if not isinstance(m, SlimMultiheadAttention):
        if inner == m.embed_dim and m.out_proj.weight.shape[0] == m.embed_dim:
            return
        m.__class__ = SlimMultiheadAttention
        m.qk_scale = 1.0 / math.sqrt(m.head_dim)  # type: ignore[assignment]
        m._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer off its fused path
    m.num_heads = inner // m.head_dim
    m.embed_dim = m.out_proj.weight.shape[0]
