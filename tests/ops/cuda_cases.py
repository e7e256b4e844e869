"""What the tests on a GPU share: whether there is one that the core was built for, tensors there, graphs, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import _core

needs_gpu = pytest.mark.skipif(
    not (_core.cuda_built() and torch.cuda.is_available()),
    reason="needs a GPU, and a core built with CUDA: neither its results nor its speed can be seen without",
)


def to_gpu(x: Tensor, lead: int = 0) -> Tensor:
    """A copy on the GPU that starts ``lead`` elements into its memory, whose rest holds 0xFF bytes (NaN, -1)."""
    room = torch.empty(x.numel() + lead + 5, dtype=x.dtype, device="cuda")
    room.view(torch.uint8).fill_(255)
    inside = room[lead : lead + x.numel()].view(x.shape)
    inside.copy_(x)
    return inside


def lent(x: Tensor | None, lead: int = 0) -> Tensor | None:
    return None if x is None else to_gpu(x, lead)


def raw(x: Any) -> Any:
    """Bytes of tensors in any nest of lists and tuples, for comparisons in which -0.0 and NaN count."""
    if isinstance(x, Tensor):
        return x.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(x, list | tuple):
        return [raw(each) for each in x]
    return x


@contextmanager
def other_stream() -> Iterator[torch.cuda.Stream]:
    """A stream that is not the default one, after whatever was begun before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def in_graph(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The work captured, and what it returned: filled in by a replay."""
    with other_stream():
        work()  # what is made once (modules, handles) is made before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result
