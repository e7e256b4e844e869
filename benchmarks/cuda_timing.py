"""Times on a GPU: medians of graph replays (or of calls, where a graph cannot hold them) between events.

Work comes as a list of calls on different data, taken in turns, so that no call finds its inputs in the cache: a graph
holds a round over all of them. Rates are over the bytes that have to move, each read or written once, in 32-byte
sectors where single elements are picked; the share is of a device-to-device copy measured in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Sequence[Callable[[], object]]
SECTOR = 32


def _median_of(run: Callable[[], object], repeats: int, calls: int) -> float:
    times = []
    for _ in range(3):
        run()
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def eager_ms(work: Work, repeats: int = 15) -> float:
    """Median milliseconds of a call, what the host does included where the device waits for it."""

    def run() -> None:
        for call in work:
            call()

    return _median_of(run, repeats, len(work))


def graph_ms(work: Work, repeats: int = 15, rounds: int = 4) -> float:
    """Median milliseconds of a call on the device alone."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in work:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in work:
                call()
    return _median_of(graph.replay, repeats, rounds * len(work))


def copy_gb_per_s() -> float:
    """Bytes read plus bytes written by a copy far larger than the cache, a second."""
    size = 1 << 28  # floats: 1 GiB
    source, target = torch.randn(size, device="cuda"), torch.empty(size, device="cuda")
    return 8 * size / graph_ms([lambda: target.copy_(source)]) / 1e6


def row(name: str, size: str, ms: float, moved: float, copy: float, **more: Any) -> dict[str, Any]:
    """One line of a result file."""
    rate = moved / ms / 1e6
    return {
        "name": name,
        "size": size,
        "ms": round(ms, 5),
        "bytes": int(moved),
        "gb_per_s": round(rate, 1),
        "share_of_copy": round(rate / copy, 3),
        **more,
    }


def against(ms: float, torch_ms: float, what: str) -> dict[str, Any]:
    return {"torch": what, "torch_ms": round(torch_ms, 5), "times_faster": round(torch_ms / ms, 2)}


def forward_and_step_ms(forward: Callable[..., Tensor], leaves: Sequence[Tensor], dy: Tensor) -> dict[str, float]:
    """Median milliseconds of a product without gradients, and of it with the gradients of all of ``leaves``."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with torch.no_grad():
        ahead = graph_ms([lambda: forward(*leaves)])
    return {"forward": ahead, "step": graph_ms([lambda: torch.autograd.grad(forward(*leaves), leaves, dy)])}


def beside(name: str, shape: str, density: float, ours: dict[str, float], dense: dict[str, float]) -> dict[str, Any]:
    """One line of a result file: ours, keyed by work, and dense torch's, keyed by "precision work"."""
    line: dict[str, Any] = {"name": name, "shape": shape, "zeros": round(1 - density, 3)}
    line |= {f"ours {work} ms": round(ms, 4) for work, ms in ours.items()}
    for what, ms in dense.items():
        precision, work = what.split()
        line |= {f"dense {what} ms": round(ms, 4), f"{work} over {precision}": round(ms / ours[work], 2)}
    return line
