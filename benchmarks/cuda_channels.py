"""The channels operators on a GPU, on ResNet-50's weights with half of the channels in and out kept.

Three sets of weights in turns, each larger than the cache. Bytes: gather reads the 32-byte sectors that hold a kept
element and writes the part; scatter-accumulate reads the part and reads and writes those sectors of two sums; finish
reads three tensors and writes one; norms read all. torch works layer by layer, rows then columns, as
benchmarks/channels.py has it on the CPU. "call_ms" is the same call without a graph: what the host takes to make it.
"""

from __future__ import annotations

from typing import Any

import channels as cpu
import numpy as np
import torch
from cuda_timing import SECTOR, against, eager_ms, graph_ms, row
from torch import Tensor

from edgeprune import ops

SETS = 3
LANES = SECTOR // 4


def sectors_touched(shape: tuple[int, ...], index: list[Tensor | None]) -> int:
    where = np.zeros((), dtype=np.int64)
    for size, kept in zip(shape, index, strict=True):
        where = np.add.outer(where * size, np.arange(size) if kept is None else kept.cpu().numpy())
    return len(np.unique(where // LANES))


def rows(copy: float) -> list[dict[str, Any]]:
    """All of it; ``copy``: the copy's bandwidth in GB/s, measured in the same run."""
    generator = torch.Generator().manual_seed(0)
    shapes = cpu.resnet50_shapes()
    indices: list[list[Tensor | None]] = []
    for out, into, *rest in shapes:
        kept = [
            None if out == 1000 else cpu.half_of(out, generator),
            None if into == 3 else cpu.half_of(into, generator),
        ]
        indices.append([None if i is None else i.cuda() for i in kept] + [None] * len(rest))
    sets = [[torch.randn(shape, device="cuda") for shape in shapes] for _ in range(SETS)]
    parts = [ops.gather_many(xs, indices) for xs in sets]
    elements, kept_elements = sum(x.numel() for x in sets[0]), sum(part.numel() for part in parts[0])
    touched = sum(sectors_touched(shape, index) for shape, index in zip(shapes, indices, strict=True)) * SECTOR
    size = f"{len(shapes)} tensors, {elements} elements, {kept_elements} kept"
    found = []

    def by_torch(xs: list[Tensor]) -> list[Tensor]:
        result = []
        for x, (first, second, *_) in zip(xs, indices, strict=True):
            x = x if first is None else x.index_select(0, first)
            result.append(x if second is None else x.index_select(1, second))
        return result

    work = [lambda xs=xs: ops.gather_many(xs, indices) for xs in sets]
    ms, theirs = graph_ms(work), graph_ms([lambda xs=xs: by_torch(xs) for xs in sets])
    more = {
        "call_ms": round(eager_ms(work), 4),
        **against(ms, theirs, "index_select twice, layer by layer, in a graph"),
    }
    found.append(row("gather_many", size, ms, touched + 4 * kept_elements, copy, **more))

    totals, counts = ([[torch.zeros_like(x) for x in xs] for xs in sets] for _ in range(2))
    groups = list(zip(totals, counts, parts, strict=True))
    work = [lambda t=t, c=c, p=p: ops.scatter_accumulate_many_(t, c, p, indices, 0.3) for t, c, p in groups]
    ms = graph_ms(work)

    def add_by_torch(sums: list[Tensor], weights: list[Tensor], held: list[Tensor]) -> None:
        for total, count, part, index in zip(sums, weights, held, indices, strict=True):
            mesh = ops.reference.open_mesh(total, index)
            total.index_put_(mesh, 0.3 * part, accumulate=False)  # cheaper than what is needed: it does not add
            count.index_put_(mesh, torch.tensor(0.3, device="cuda"), accumulate=False)

    theirs = eager_ms([lambda t=t, c=c, p=p: add_by_torch(t, c, p) for t, c, p in groups], repeats=5)
    more = {"call_ms": round(eager_ms(work), 4), **against(ms, theirs, "index_put_ without adding, layer by layer")}
    found.append(row("scatter_accumulate_many_", size, ms, 4 * touched + 4 * kept_elements, copy, **more))

    trio = list(zip(sets, totals, counts, strict=True))
    work = [lambda x=x, t=t, c=c: ops.merge_finish_many(x, t, c) for x, t, c in trio]
    ms = graph_ms(work)

    def finish_by_torch(xs: list[Tensor], sums: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        return [torch.where(c > 0, t / c, x) for x, t, c in zip(xs, sums, weights, strict=True)]

    theirs = graph_ms([lambda x=x, t=t, c=c: finish_by_torch(x, t, c) for x, t, c in trio])
    more = {"call_ms": round(eager_ms(work), 4), **against(ms, theirs, "where(c > 0, t / c, x), in a graph")}
    found.append(row("merge_finish_many", size, ms, 16 * elements, copy, **more))

    for dim in (0, 1):
        work = [lambda xs=xs, d=dim: ops.channel_norms_many(xs, [d] * len(xs), 2) for xs in sets]
        ms = graph_ms(work)
        calls = [
            lambda xs=xs, d=dim: [torch.linalg.vector_norm(x, 2, [i for i in range(x.ndim) if i != d]) for x in xs]
            for xs in sets
        ]
        more = {
            "call_ms": round(eager_ms(work), 4),
            **against(ms, graph_ms(calls), "vector_norm, layer by layer, in a graph"),
        }
        found.append(row(f"channel_norms_many, dimension {dim}", size, ms, 4 * elements, copy, **more))

    found += single(copy)
    return found


def single(rate: float) -> list[dict[str, Any]]:
    """One large tensor each: what the kernels do without the small ones."""
    found = []
    xs = [torch.randn(8192, 8192, device="cuda") for _ in range(2)]
    rows_kept, columns = (torch.arange(0, 8192, 2, device="cuda") for _ in range(2))
    for name, index, moved in (
        ("gather, every second row", [rows_kept, None], 8 * 4096 * 8192),
        ("gather, every second column", [None, columns], 4 * 8192 * 8192 + 4 * 4096 * 8192),
        ("gather, all", [None, None], 8 * 8192 * 8192),
    ):
        ms = graph_ms([lambda x=x, i=index: ops.gather(x, i) for x in xs])
        found.append(row(name, "8192 x 8192", ms, moved, rate))
    for shape, dim in (((8192, 8192), 0), ((8192, 8192), 1), ((4, 1 << 24), 0), ((1 << 24, 4), 1)):
        views = [x.view(shape) for x in xs]
        ms = graph_ms([lambda x=x, d=dim: ops.channel_norms(x, d, 2) for x in views])
        found.append(row(f"channel_norms, dimension {dim}", " x ".join(map(str, shape)), ms, 4 << 26, rate))
    return found
