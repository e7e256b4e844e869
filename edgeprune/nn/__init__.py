"""Layers that compute with kept weights only, and the way there and back for a whole model."""

from __future__ import annotations

from edgeprune.nn.chain import Chain
from edgeprune.nn.convert import densify, densities, masks, set_masks, sparsify
from edgeprune.nn.densities import erdos_renyi_kernel, uniform
from edgeprune.nn.exits import ExitHead, Exits, at_every_exit, with_transfer
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear
from edgeprune.nn.rows import LinearInto

__all__ = [
    "Chain",
    "ExitHead",
    "Exits",
    "LinearInto",
    "MaskedConv2d",
    "MaskedLinear",
    "at_every_exit",
    "densify",
    "densities",
    "erdos_renyi_kernel",
    "masks",
    "set_masks",
    "sparsify",
    "uniform",
    "with_transfer",
]
