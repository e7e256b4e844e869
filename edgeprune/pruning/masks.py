"""Masks of weights, bit-packed: how many each layer keeps, which at the start, and how a mask moves.

A mask is a uint8 bitmap (lowest bit first, as in ops.packing), by the name of its dense weight in the state dict.
Counts are exact: a layer keeps as many weights after a move as before it. Ties go to the earlier weight.

    prune    of the kept weights the smallest magnitudes go            w -> |w| among m = 1
    grow     of the others those with the largest gradient come        |dL/dw| among m = 0, at value 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.nn.densities import check_density, erdos_renyi_kernel, uniform

Distribution = Literal["erk", "uniform", "public"]
Start = Literal["magnitude", "random"]
Masks = Mapping[str, Tensor]


def kept_counts(shapes: Sequence[tuple[int, ...]], density: float, how: Distribution = "erk") -> list[int]:
    """How many weights each layer keeps of ``density`` times all. "erk", "uniform": nn/densities.py; "public" below."""
    table: dict[str, Callable[[Sequence[tuple[int, ...]], float], list[int]]] = {
        "erk": erdos_renyi_kernel,
        "uniform": uniform,
        "public": public_counts,
    }
    if how not in table:
        raise EdgePruneError(f"masks: distribution is {how!r}{nearest(how, get_args(Distribution))}")
    return table[how](shapes, density)


def public_counts(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """FedDST's public code: *sparsities*, not densities, are in proportion to 1 - (sum of sizes) / (their product).

    So layer densities come out nearly equal. One factor makes the mean sparsity right; counts are rounded down. The
    public code counts a layer's biases as weights here, which adds at most a handful of weights; this does not.
    """
    check_density("public_counts", density)
    sizes = [math.prod(shape) for shape in shapes]
    raw = [1 - sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    factor = (1 - density) * sum(sizes) / max(sum(r * n for r, n in zip(raw, sizes, strict=True)), 1e-300)
    return [min(n, max(1, math.floor((1 - factor * r) * n))) for r, n in zip(raw, sizes, strict=True)]


def start(
    weights: Mapping[str, Tensor], density: float, distribution: Distribution, how: Start, seed: int
) -> dict[str, Tensor]:
    """The first masks: of every layer the largest magnitudes, or as many places at random (from ``seed``)."""
    counts = kept_counts([tuple(weight.shape) for weight in weights.values()], density, distribution)
    if how == "magnitude":
        each = zip(weights.items(), counts, strict=True)
        return {name: ops.select_largest([_flat(weight)], k)[0] for (name, weight), k in each}
    rng = np.random.default_rng([seed, 0x3A5C])
    return {
        name: ops.mask_from_indices(torch.from_numpy(rng.permutation(weight.numel())[:k]), weight.numel())
        for (name, weight), k in zip(weights.items(), counts, strict=True)
    }


def exchange_count(kept: int, weights: int, exchanged: float) -> int:
    """How many of a layer's ``kept`` weights go when the share ``exchanged`` does: as many as can come."""
    return min(math.floor(exchanged * kept + 0.5), weights - kept, kept)


def pruned(weight: Tensor, mask: Tensor, keep: int) -> Tensor:
    """``mask`` without all but the ``keep`` largest magnitudes of its weights; kept zeros count as smallest."""
    inside = ops.mask_to_indices(mask, weight.numel())
    return _chosen(_flat(weight)[inside], inside, keep, weight.numel())


def grown(gradient: Tensor, mask: Tensor, keep: int) -> Tensor:
    """``mask`` filled up to ``keep`` with the places outside it where ``gradient`` is largest."""
    n = gradient.numel()
    outside = ops.mask_to_indices(inverse(mask, n), n)
    more = _chosen(_flat(gradient)[outside], outside, keep - ops.mask_count(mask), n)
    return mask | more


def grown_anywhere(gradient: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """FedDST's public growth: the largest gradients of *all* weights, also those kept already: (mask, those picked).

    What was picked starts at zero, so kept weights among them are lost, and the layer ends with fewer than ``keep``.
    """
    picked = ops.select_largest([_flat(gradient)], keep - ops.mask_count(mask))[0]
    return mask | picked, picked


def union(masks: Sequence[Tensor]) -> Tensor:
    """Kept by at least one."""
    total = masks[0].clone()
    for mask in masks[1:]:
        total |= mask
    return total


def inverse(mask: Tensor, n: int) -> Tensor:
    """The places that ``mask`` of ``n`` elements does not keep; spare bits stay zero."""
    other = mask ^ 0xFF
    if n % 8:
        other[-1] &= (1 << n % 8) - 1
    return other


def applied(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight`` with zeros where ``mask`` keeps nothing; what stood there is not read into it, whatever it was."""
    inside = ops.mask_to_indices(mask, weight.numel())
    flat = torch.zeros_like(weight).reshape(-1)
    flat[inside] = weight.reshape(-1)[inside]
    return flat.view(weight.shape)


def moved(old: Masks, new: Masks) -> float:
    """Share of the kept weights of ``old`` that ``new`` does not keep."""
    gone = sum(ops.mask_count(old[name] & (old[name] ^ new[name])) for name in old)
    return gone / max(1, sum(ops.mask_count(mask) for mask in old.values()))


def _flat(x: Tensor) -> Tensor:
    return x.detach().cpu().float().contiguous().reshape(-1)


def _chosen(values: Tensor, places: Tensor, count: int, n: int) -> Tensor:
    """The mask of the ``count`` largest of ``values``, which stand at ``places`` of ``n``."""
    best = ops.mask_to_indices(ops.select_largest([values], count)[0], len(values))
    return ops.mask_from_indices(places[best], n)


__all__ = [
    "Distribution",
    "Masks",
    "Start",
    "applied",
    "exchange_count",
    "grown",
    "grown_anywhere",
    "inverse",
    "kept_counts",
    "moved",
    "pruned",
    "public_counts",
    "start",
    "union",
]
