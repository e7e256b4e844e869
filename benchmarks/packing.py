"""Selecting, packing, unpacking and accumulating kept gradients: the core against torch, zstandard and memcpy.

    python benchmarks/packing.py [--repeats 9] [--threads 1 2]

All sides of a comparison run in turns in one process, on 16 M float32 (2^24) and, for the selection, on the gradients'
shapes of a ResNet-18. Before anything is timed the results are compared: the selection with torch.topk's set (normal
numbers without ties), the packed values with torch's.

Bytes "that must be touched" are lines of 64 bytes that hold a kept element, plus the mask and the packed values:

    pack         lines of x + mask + values             unpack       all of the output + mask + values
    accumulate   2 x (lines of total + lines of weight_sum), for they are read and written, + mask + values

The share of memcpy is the rate over those bytes against the rate of one copy of 64 MB (128 MB moved), measured in the
same turns with the same threads. "core" is the public function, which allocates its result; "core, given memory" writes
into a tensor that exists, as the copy does. Zstandard compresses the dense array with zeros, which is what a sender
without masks would do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
import zstandard
from torch import Tensor

from edgeprune import _core, ops

N = 1 << 24
LINE = 16  # floats
DENSITIES = (0.01, 0.05, 0.2, 0.5)
DTYPES = ("f32", "bf16", "f16", "i8")


def resnet18_shapes() -> list[tuple[int, ...]]:
    """All 62 parameters of a ResNet-18 with 1000 classes, 11.7 million floats."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(width, channels, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if block == 0 and channels != width:
                shapes += [(width, channels, 1, 1), (width,), (width,)]
            channels = width
    return [*shapes, (1000, 512), (1000,)]


def random_mask(n: int, density: float) -> Tensor:
    kept = np.random.default_rng(1).random(n) < density
    return torch.from_numpy(np.packbits(kept, bitorder="little"))


def dense_mask(mask: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(mask.numpy(), count=n, bitorder="little").view(np.bool_))


def line_bytes(mask: Tensor) -> int:
    """Bytes of the lines that hold a kept element of a tensor that starts on a line."""
    return 4 * LINE * int((mask.view(torch.int16) != 0).sum())


def row(what: str, side: str, threads: int, ms: float, **more: Any) -> dict[str, Any]:
    return {"work": what, "side": side, "threads": threads, "median_ms": round(ms, 3), **more}


# ---- selection ------------------------------------------------------------------------------------------------------


def measure_selection(threads: int, repeats: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "16 M floats": [torch.randn(N, generator=generator)],
        # layers differ in scale, as gradients do
        "ResNet-18": [
            torch.randn(shape, generator=generator) * 2.0 ** -(i % 7) for i, shape in enumerate(resnet18_shapes())
        ],
    }
    results = []
    for name, xs in inputs.items():
        for share in (0.01, 0.1):
            flat = torch.cat([x.reshape(-1) for x in xs])
            k = int(share * flat.numel())

            def topk(xs: list[Tensor] = xs, k: int = k) -> Tensor:
                every = xs[0] if len(xs) == 1 else torch.cat([x.reshape(-1) for x in xs])
                return torch.topk(every.abs(), k, sorted=False).indices

            def core(xs: list[Tensor] = xs, k: int = k) -> list[Tensor]:
                return ops.select_largest(xs, k)

            chosen = torch.cat([dense_mask(mask, x.numel()) for mask, x in zip(core(), xs, strict=True)])
            expected = torch.zeros_like(chosen)
            expected[topk()] = True
            # Equal magnitudes at the edge are all that may differ: topk promises no order among them.
            assert torch.equal(flat.abs()[chosen].sort()[0], flat.abs()[expected].sort()[0])
            differing = int((chosen != expected).sum())

            kth = float(flat.abs()[chosen].min())
            times = harness.interleaved_ms(
                {
                    "core": core,
                    "core, threshold known": lambda xs=xs, kth=kth: ops.select_above(xs, kth),
                    "torch.topk": topk,
                },
                repeats,
            )
            for side, ms in times.items():
                results.append(
                    row(
                        f"select {share:.0%} of {name}",
                        side,
                        threads,
                        ms,
                        times_slower_than_core=round(ms / times["core"], 2),
                        elements_that_differ_from_topk=differing,
                    )
                )
    return results


# ---- pack, unpack, accumulate ---------------------------------------------------------------------------------------


def measure_packing(density: float, dtype: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    x = torch.randn(N, generator=torch.Generator().manual_seed(0))
    mask = random_mask(N, density)
    packed = ops.pack(x, mask, dtype)
    total, weight_sum = torch.zeros(N), torch.zeros(N)
    out, copy = torch.empty(N), torch.empty(N)
    call = (x, None, mask, *packed)
    works: dict[str, Callable[[], object]] = {
        "memcpy": lambda: copy.copy_(x),
        "memcpy into new memory": lambda: x.clone(),
        "pack: core": lambda: ops.pack(x, mask, dtype),
        "pack: core, given memory": lambda: _core.pack_many([call], dtype, False, 0, threads),
        "unpack: core": lambda: ops.unpack(*packed, mask, N, dtype),
        "unpack: core, given memory": lambda: ops.unpack(*packed, mask, N, dtype, out=out),
        "accumulate: core": lambda: ops.accumulate_(total, weight_sum, *packed, mask, dtype, 2.0),
    }
    if dtype == "f32":
        kept, where = dense_mask(mask, N), ops.mask_to_indices(mask, N)
        values = x[kept]
        assert torch.equal(packed.values.view(torch.float32), values)
        assert torch.equal(ops.unpack(*packed, mask, N, dtype), torch.where(kept, x, 0.0))
        weights = torch.full_like(values, 2.0)
        sparse = torch.where(kept, x, 0.0).numpy()
        squeeze = zstandard.ZstdCompressor(level=1)
        blob = squeeze.compress(sparse)

        def index_add() -> None:
            total.index_add_(0, where, values * 2.0)
            weight_sum.index_add_(0, where, weights)

        works |= {
            "pack: torch masked_select": lambda: torch.masked_select(x, kept),
            "pack: torch x[indices]": lambda: x.index_select(0, where),
            "pack: zstandard of the dense array": lambda: squeeze.compress(sparse),
            "unpack: torch masked_scatter": lambda: torch.zeros(N).masked_scatter_(kept, values),
            "unpack: torch index_copy": lambda: torch.zeros(N).index_copy_(0, where, values),
            "unpack: zstandard of the dense array": lambda: zstandard.ZstdDecompressor().decompress(blob),
            "accumulate: torch index_add_": index_add,
        }
    times = harness.interleaved_ms(works, repeats)

    coded = mask.numel() + packed.values.numel() + (0 if packed.scales is None else 4 * packed.scales.numel())
    lines = line_bytes(mask)
    touched = {
        "memcpy": 8 * N,
        "memcpy into new memory": 8 * N,
        "pack": lines + coded,
        "unpack": 4 * N + coded,
        "accumulate": 4 * lines + coded,
    }
    memcpy_rate = touched["memcpy"] / times["memcpy"]
    into_new = touched["memcpy"] / times["memcpy into new memory"]  # what the system's zeroed pages leave of it
    results = []
    for name, ms in times.items():
        what, _, side = name.partition(": ")
        rate = touched[what] / ms
        results.append(
            row(
                f"{what} {dtype} at density {density}" if side else name,
                side,
                threads,
                ms,
                density=density,
                dtype=dtype,
                bytes_touched=touched[what],
                gb_per_s=round(rate / 1e6, 2),
                share_of_memcpy=round(rate / memcpy_rate, 3),
                share_of_memcpy_into_new=round(rate / into_new, 3) if name == "unpack: core" else None,
                times_slower_than_core=round(ms / times[f"{what}: core"], 2) if side else None,
            )
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    about = harness.machine()
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        results += measure_selection(threads, arguments.repeats)
        for density in DENSITIES:
            for dtype in DTYPES:
                results += measure_packing(density, dtype, threads, arguments.repeats)
    print(f"{'work':42} {'side':34} threads  median ms  memcpy share  slower than core")
    for one in results:
        share = one.get("share_of_memcpy")
        print(
            f"{one['work']:42} {one['side']:34} {one['threads']:7} {one['median_ms']:10.2f}  "
            f"{'' if share is None else f'{share:.2f}':12}  {one.get('times_slower_than_core') or ''}"
        )
    path = harness.write_result("packing", about, results)
    print(path.name, "written; load", about["load_before"], "before,", about["load_after"], "after")


if __name__ == "__main__":
    main()
