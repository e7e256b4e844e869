"""The packing operators on a GPU: against a copy's bandwidth, and against torch on the same data in the same run.

16 M elements, four sets of data in turns (each set alone is larger than the cache). ``select`` is timed without its
wait for the status. Bytes: packing reads the mask, the 32-byte sectors of x that hold a kept element, and writes the
values; unpacking reads values and mask and writes all; accumulating reads and writes the sectors of two sums.
"""

from __future__ import annotations

from typing import Any

import torch
from cuda_timing import SECTOR, against, eager_ms, graph_ms, row
from torch import Tensor

from edgeprune import ops
from edgeprune.ops.packing_types import ITEM_BYTES

N = 1 << 24
SETS = 4


def bits_of(mask: Tensor, n: int) -> Tensor:
    shifts = torch.arange(8, device=mask.device, dtype=torch.uint8)
    return (mask[:, None] >> shifts & 1).bool().view(-1)[:n]


def selection(copy: float) -> list[dict[str, Any]]:
    rows = []
    xs = [torch.randn(N, device="cuda") for _ in range(SETS)]
    magnitudes = [x.abs() for x in xs]
    for share in (0.01, 0.1):
        k = int(share * N)
        ms = graph_ms([lambda x=x, k=k: ops.select_largest([x], k, wait=False) for x in xs])
        topk = eager_ms([lambda x=x, k=k: torch.topk(x, k, sorted=False) for x in magnitudes], repeats=7)
        more = {"passes_ms_floor": round(4 * N / copy / 1e6, 5), **against(ms, topk, "topk of |x|, not sorted")}
        rows.append(row(f"select_largest {share:.0%}", f"{N}", ms, 4 * N + N / 8, copy, **more))
    coarse = [x.bfloat16().float() for x in xs]
    ms = graph_ms([lambda x=x: ops.select_largest([x], N // 100, wait=False) for x in coarse])
    rows.append(row("select_largest 1% with ties (bfloat16 values)", f"{N}", ms, 4 * N + N / 8, copy))
    del magnitudes, coarse
    ms = graph_ms([lambda x=x: ops.select_above([x], 2.0, wait=False) for x in xs])
    rows.append(row("select_above", f"{N}", ms, 4 * N + N / 8, copy))
    parts = [list(x.split([N // 160] * 160 + [N % 160])) for x in xs]
    ms = graph_ms([lambda part=part: ops.select_largest(part, N // 100, wait=False) for part in parts])
    rows.append(row("select_largest 1% over 161 tensors", f"{N}", ms, 4 * N + N / 8, copy))
    return rows


def conversion(copy: float, share: float | None, dtype: str) -> list[dict[str, Any]]:
    """pack, unpack and accumulate of one coding under one mask (None: all kept)."""
    xs = [torch.randn(N, device="cuda") for _ in range(SETS)]
    masks: list[Tensor | None] = [None] * SETS
    kept, sectors = N, N // 8
    flags: list[Tensor] = []
    if share is not None:
        kept = int(share * N)
        masks = [ops.select_largest([x], kept)[0] for x in xs]
        flags = [bits_of(mask, N) for mask in masks if mask is not None]
        sectors = sum(int((mask != 0).sum()) for mask in masks if mask is not None) // SETS
    mask_bytes = 0 if share is None else N // 8
    values = kept * ITEM_BYTES[dtype] + (kept // 256 * 4 if dtype == "i8" else 0)
    size = f"{N}, {'all' if share is None else f'{share:.0%}'} kept"
    both = list(zip(xs, masks, strict=True))
    packed = [ops.pack(x, mask, dtype) for x, mask in both]
    rows = []

    more: dict[str, Any] = {}
    ms = graph_ms([lambda x=x, m=m: ops.pack(x, m, dtype, None, kept=kept) for x, m in both])
    torch_types = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    if flags and dtype in torch_types:
        to = torch_types[dtype]
        calls = [lambda x=x, f=f: torch.masked_select(x, f).to(to) for x, f in zip(xs, flags, strict=True)]
        more = against(ms, eager_ms(calls), "masked_select by a bool mask, to()")
    rows.append(row(f"pack {dtype}", size, ms, mask_bytes + sectors * SECTOR + values, copy, **more))
    if dtype == "i8":
        ms = graph_ms([lambda x=x, m=m: ops.pack(x, m, dtype, 5, kept=kept) for x, m in both])
        rows.append(row("pack i8 stochastic", size, ms, mask_bytes + sectors * SECTOR + values, copy))

    outs = [torch.empty(N, device="cuda") for _ in range(SETS)]
    trio = list(zip(packed, masks, outs, strict=True))
    ms = graph_ms([lambda p=p, m=m, o=o: ops.unpack(*p, m, N, dtype, out=o, wait=False) for p, m, o in trio])
    more = {}
    if flags and dtype == "f32":
        sent = [p.values.view(torch.float32) for p in packed]
        calls = [
            lambda o=o, f=f, s=s: o.zero_().masked_scatter_(f, s) for o, f, s in zip(outs, flags, sent, strict=True)
        ]
        more = against(ms, eager_ms(calls), "zero_, masked_scatter_ by a bool mask")
    rows.append(row(f"unpack {dtype}", size, ms, mask_bytes + values + 4 * N, copy, **more))

    sums = [torch.zeros(N, device="cuda") for _ in range(SETS)]
    quartet = list(zip(sums, outs, packed, masks, strict=True))
    ms = graph_ms(
        [lambda s=s, o=o, p=p, m=m: ops.accumulate_(s, o, *p, m, dtype, 0.3, wait=False) for s, o, p, m in quartet]
    )
    rows.append(row(f"accumulate {dtype}", size, ms, mask_bytes + values + 4 * sectors * SECTOR, copy))

    ms = graph_ms(
        [
            lambda x=x, s=s, m=m: ops.pack_with_feedback_many_([x], [s], [m], dtype, kept=[kept])
            for x, s, m in zip(xs, sums, masks, strict=True)
        ]
    )
    rows.append(row(f"pack_with_feedback {dtype}", size, ms, mask_bytes + 12 * N + values, copy))
    return rows


def masks(copy: float) -> list[dict[str, Any]]:
    n = 1 << 28
    rows = []
    packed = [torch.randint(0, 256, (n // 8,), device="cuda", dtype=torch.uint8) for _ in range(SETS)]
    ms = eager_ms([lambda m=m: ops.mask_count(m) for m in packed])
    rows.append(row("mask_count, waits", f"{n}", ms, n / 8, copy))
    small = [m[: N // 8].contiguous() for m in packed]
    counts = [ops.mask_count(m) for m in small]
    ms = graph_ms([lambda m=m, c=c: ops.mask_to_indices(m, N, kept=c) for m, c in zip(small, counts, strict=True)])
    flags = [bits_of(m, N) for m in small]
    nonzero = eager_ms([lambda f=f: torch.nonzero(f) for f in flags])
    moved = N / 8 + 8 * sum(counts) / SETS
    rows.append(row("mask_to_indices, half kept", f"{N}", ms, moved, copy, **against(ms, nonzero, "nonzero")))
    return rows


def rows(copy: float) -> list[dict[str, Any]]:
    """All of it; ``copy``: the copy's bandwidth in GB/s, measured in the same run."""
    ops.cuda_check()
    found = selection(copy)
    for dtype in ("f32", "bf16", "f16", "i8"):
        for share in (0.01, 0.1, 0.5, None):
            if dtype in ("bf16", "f16") and share in (0.01, 0.5):
                continue
            found += conversion(copy, share, dtype)
            torch.cuda.empty_cache()
    found += masks(copy)
    ops.cuda_check()
    return found
