"""Extract and merge of ResNet-50-sized weights, half of the channels in and out: the core against torch layer by layer.

    python benchmarks/channels.py [--repeats 15] [--threads 1 2]
    OMP_WAIT_POLICY=passive python benchmarks/channels.py --threads 2 --name channels-passive

All sides run in turns in one process. Bytes are counted twice: "kept" is what the result needs (each kept element read
once and written once; the merge reads part, total and count and writes total and count), "lines" is what has to move at
least, since memory comes in lines of 64 bytes. The share of memcpy is the rate over those bytes against a copy of one
buffer as large as all weights, measured in the same turns with the same threads.

The second form tells torch's OpenMP threads to sleep when they have nothing to do. By default they spin for some
milliseconds after every call of torch, on the core that the core's second thread would need: a call right after one of
torch's, as all here are, then has one core and a half.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from edgeprune import ops
from edgeprune.ops._core import core

LINE = 16  # floats


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 54 weights with two or more dimensions, 25.5 million floats."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return [*shapes, (1000, 2048)]


def half_of(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[: n // 2].sort()[0]


def lines_touched(shape: tuple[int, ...], index: tuple[Tensor | None, ...]) -> int:
    """Lines of memory that hold a kept element of a tensor that starts on a line."""
    where = np.zeros((), dtype=np.int64)
    for size, kept in zip(shape, index, strict=True):
        where = np.add.outer(where * size, np.arange(size) if kept is None else kept.numpy())
    return len(np.unique(where // LINE))


def mesh(x: Tensor, index: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return ops.reference.open_mesh(x, index)


def measure(threads: int, repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    shapes = resnet50_shapes()
    xs = [torch.randn(shape, generator=generator) for shape in shapes]
    indices: list[tuple[Tensor | None, ...]] = []
    for out, into, *rest in shapes:
        rows = None if out == 1000 else half_of(out, generator)  # the classes and the picture's colours stay
        indices.append((rows, None if into == 3 else half_of(into, generator), *([None] * len(rest))))
    parts = ops.gather_many(xs, indices)
    totals, counts = [torch.zeros_like(x) for x in xs], [torch.zeros_like(x) for x in xs]

    def rows_then_columns() -> list[Tensor]:
        result = []
        for x, (rows, columns, *_) in zip(xs, indices, strict=True):
            x = x if rows is None else x[rows]
            result.append(x if columns is None else x[:, columns])
        return result

    def index_select() -> list[Tensor]:
        result = []
        for x, index in zip(xs, indices, strict=True):
            for dim, kept in enumerate(index):
                x = x if kept is None else x.index_select(dim, kept)
            result.append(x)
        return result

    def open_mesh_gather() -> list[Tensor]:
        return [x[mesh(x, index)] for x, index in zip(xs, indices, strict=True)]

    def merge_core() -> None:
        ops.scatter_accumulate_many_(totals, counts, parts, indices, 2.0)
        ops.merge_finish_many_(xs, totals, counts)

    def finish_torch() -> None:
        for x, total, count in zip(xs, totals, counts, strict=True):
            torch.where(count > 0, total / count, x, out=total)

    def merge_index_put() -> None:
        for total, count, part, index in zip(totals, counts, parts, indices, strict=True):
            where = mesh(total, index)
            total.index_put_(where, part * 2.0, accumulate=True)
            count.index_put_(where, torch.tensor(2.0), accumulate=True)
        finish_torch()

    def merge_read_write() -> None:
        for total, count, part, index in zip(totals, counts, parts, indices, strict=True):
            where = mesh(total, index)
            total[where] += part * 2.0
            count[where] += 2.0
        finish_torch()

    into_these = [torch.empty_like(part) for part in parts]

    def gather_into() -> None:
        """Without fresh memory: the pages that the C library hands back and asks for again cost more than the copy,
        on some calls and in some processes; the rows of torch pay for them twice."""
        core.gather_many(
            [to_dlpack(x) for x in xs],
            [[None if kept is None else to_dlpack(kept) for kept in index] for index in indices],
            [to_dlpack(out) for out in into_these],
            threads,
            "",
            None,
        )

    assert all(torch.equal(a, b) for a, b in zip(parts, rows_then_columns(), strict=True))
    flat = torch.randn(sum(x.numel() for x in xs))
    copy = torch.empty_like(flat)
    works: dict[str, Callable[[], object]] = {
        "memcpy": lambda: copy.copy_(flat),
        "gather: core": lambda: ops.gather_many(xs, indices),
        "gather: core, into tensors that are there": gather_into,
        "gather: torch x[i][:, j]": rows_then_columns,
        "gather: torch index_select": index_select,
        "gather: torch x[mesh]": open_mesh_gather,
        "scatter: core": lambda: ops.scatter_accumulate_many_(totals, counts, parts, indices, 2.0),
        "merge: core": merge_core,
        "merge: torch index_put_": merge_index_put,
        "merge: torch x[mesh] += y": merge_read_write,
    }
    times = harness.interleaved_ms(works, repeats)

    # What a round costs the server for one device: the sum of the medians of a gather and a merge.
    for side, one, other in (
        ("core", "core", "core"),
        ("torch x[i][:, j], index_put_", "torch x[i][:, j]", "torch index_put_"),
        ("torch index_select, index_put_", "torch index_select", "torch index_put_"),
    ):
        times[f"gather + merge: {side}"] = times[f"gather: {one}"] + times[f"merge: {other}"]

    everything = 4 * flat.numel()
    kept = 4 * sum(part.numel() for part in parts)
    lines = 4 * LINE * sum(lines_touched(shape, index) for shape, index in zip(shapes, indices, strict=True))
    finish = 4 * everything
    bytes_of = {  # (kept, lines)
        "memcpy": (2 * everything, 2 * everything),
        "gather": (2 * kept, lines + kept),
        "scatter": (5 * kept, kept + 4 * lines),
        "merge": (5 * kept + finish, kept + 4 * lines + finish),
        "gather + merge": (7 * kept + finish, 2 * kept + 5 * lines + finish),
    }
    memcpy_rate = 2 * everything / times["memcpy"]
    results = []
    for name, ms in times.items():
        kept_bytes, line_bytes = bytes_of[name.split(":")[0]]
        results.append(
            {
                "work": name,
                "threads": threads,
                "median_ms": round(ms, 3),
                "gb_per_s_lines": round(line_bytes / ms / 1e6, 2),
                "share_of_memcpy_lines": round(line_bytes / ms / memcpy_rate, 3),
                "share_of_memcpy_kept": round(kept_bytes / ms / memcpy_rate, 3),
                "times_slower_than_core": round(ms / times[f"{name.split(':')[0]}: core"], 2) if ":" in name else None,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--name", default="channels", help="of the result file")
    arguments = parser.parse_args()
    about = {**harness.machine(), "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default")}
    results = [row for threads in arguments.threads for row in measure(threads, arguments.repeats)]
    print(f"{'work':45} threads  median ms  memcpy share (lines / kept)  slower than core")
    for row in results:
        shares = f"{row['share_of_memcpy_lines']:.2f} / {row['share_of_memcpy_kept']:.2f}"
        print(
            f"{row['work']:45} {row['threads']:7} {row['median_ms']:10.2f}  {shares:27}  "
            f"{row['times_slower_than_core'] or ''}"
        )
    print(
        harness.write_result(arguments.name, about, results).name,
        "written; load",
        about["load_before"],
        "before,",
        about["load_after"],
        "after",
    )


if __name__ == "__main__":
    main()
