"""What tells whether stored weights are still those that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256, in hex digits, over ``text`` and every tensor's name, type, shape and values, in the order of names."""
    digest = hashlib.sha256(text.encode())
    for name, t in sorted(tensors.items()):
        flat = t.detach().cpu().contiguous()
        digest.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
