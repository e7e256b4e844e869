"""How many weights each layer keeps when a share of all of them is to be kept.

``shapes`` are those of dense weights: (outputs, inputs) or (outputs, inputs / groups, h, w). Every layer keeps at least
one weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeprune.errors import EdgePruneError, is_number, shown


def check_density(op: str, density: float) -> None:
    """Raises EdgePruneError unless 0 < density <= 1."""
    if not is_number(density) or not 0.0 < density <= 1.0:  # also refuses NaN
        raise EdgePruneError(
            f"{op}: density is {shown(density)}; give the share of weights to keep, above 0 and at most 1"
        )


def share(density: float, weights: int) -> int:
    """``density * weights`` rounded to the nearest (halves up), at least 1."""
    return max(1, math.floor(density * weights + 0.5))


def uniform(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """The same density in every layer, each count rounded by itself."""
    check_density("uniform", density)
    return [share(density, math.prod(shape)) for shape in shapes]


def erdos_renyi_kernel(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """ERK of RigL (Evci et al., 2020): a layer's density is proportional to the sum of its sizes over their product.

    (inputs + outputs + h + w) / (inputs * outputs * h * w), times one factor for all layers. Layers that would exceed
    density 1 are dense, and the factor is found anew for the rest. The counts add up to ``density`` times all weights,
    rounded: what rounding leaves goes to the layers with the largest remainders, earlier layers first.
    """
    check_density("erdos_renyi_kernel", density)
    sizes = [math.prod(shape) for shape in shapes]
    if not sizes:
        return []
    total = max(share(density, sum(sizes)), len(sizes))
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        left = total - sum(sizes[i] for i in dense)
        factor = left / sum(sum(shapes[i]) for i in free) if free else 0.0
        # factor * sum(shape) weights, which is factor * sum(shape) / size as a density
        too_many = [i for i in free if factor * sum(shapes[i]) > sizes[i]]
        if not too_many:
            break
        densest = max(sum(shapes[i]) / sizes[i] for i in too_many)
        dense |= {i for i in too_many if sum(shapes[i]) / sizes[i] == densest}
    exact = [float(sizes[i]) if i in dense else factor * sum(shapes[i]) for i in range(len(sizes))]
    counts = [max(1, math.floor(each)) for each in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    while sum(counts) < total:
        for i in order:
            if counts[i] < sizes[i] and sum(counts) < total:
                counts[i] += 1
    while sum(counts) > total:  # layers raised to one weight took what others must give
        largest = max(range(len(counts)), key=lambda i: counts[i])
        counts[largest] -= 1
    return counts
