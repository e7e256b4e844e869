"""How much work a plan is, from its channel counts alone: what a profile's latency model is asked with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeprune.device.profile import ModelSize
from edgeprune.pruning import ChannelGraph
from edgeprune.pruning.axes import axis_length, local_size

FEW = 4  # a layer with so few inputs (grey, RGB) has its own code path and is not padded


def size_of(graph: ChannelGraph, counts: Mapping[str, int], dropped: Sequence[str] = ()) -> ModelSize:
    """The size of the sub-model that keeps ``counts`` channels per group and leaves out the blocks ``dropped``."""
    macs = elements = 0.0
    padded = {8: 0.0, 16: 0.0}
    outputs = {8: 0.0, 16: 0.0}
    gone = set(dropped)
    modules = tuple(f"{m}." for name in dropped for m in graph.map.blocks[name])
    blocks = graph.cost_blocks or ((),) * len(graph.costs)
    for (axes, times), inside in zip(graph.costs, blocks, strict=True):
        if gone.intersection(inside):
            continue
        lengths = [axis_length(axis, counts) for axis in axes]
        positions = times / graph.batch
        made, read = lengths[0], lengths[1] if len(lengths) > 1 else 1
        rest = math.prod(lengths[2:])
        macs += made * read * rest * positions
        elements += made * positions
        for block in (8, 16):
            across = _up(read, block) if read > FEW else read
            padded[block] += _up(made, block) * across * rest * positions
            outputs[block] += _up(made, block) * positions
    return ModelSize(
        macs=round(macs),
        macs_8=round(padded[8]),
        macs_16=round(padded[16]),
        elements=round(elements),
        elements_8=round(outputs[8]),
        elements_16=round(outputs[16]),
        parameters=sum(local_size(axes, counts) for name, axes in graph.axes.items() if not name.startswith(modules)),
        widths=tuple(round(counts[name] / size, 6) for name, size in graph.map.groups.items()),
    )


def _up(count: int, block: int) -> int:
    return block * math.ceil(count / block)
