"""The channels operators on a GPU against the reference in double. Their logic without one: tests/cuda_emulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from channel_cases import SHAPES, kept_positions, make_case
from cuda_cases import in_graph, needs_gpu, other_stream, raw, to_gpu
from torch import Tensor

from edgeprune import EdgePruneError, ops
from edgeprune.ops import reference

pytestmark = needs_gpu

MORE = [
    (300, 40),
    (33, 64),
    (31, 257),
    (9000, 2),
    (130, 260, 3, 3),
    (64, 3, 7, 7),
    (24, 60, 2, 4),
    (1000, 2048),
    (70_001,),
    (4096,),
]


def cases(share: float, which: int, seed: int) -> list[tuple[Tensor, list[Tensor | None]]]:
    return [make_case(shape, share, which, seed + i) for i, shape in enumerate([*SHAPES, *MORE])]


def there(index: list[Tensor | None]) -> list[Tensor | None]:
    return [None if i is None else i.cuda() for i in index]


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("which", [0, 1, 2, 3, 255])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_gather_and_merge(share: float, which: int, lead: int) -> None:
    chosen = cases(share, which, 1)
    xs, indices = [to_gpu(x, lead) for x, _ in chosen], [there(index) for _, index in chosen]
    parts = ops.gather_many(xs, indices)
    expected = [reference.gather(x, index) for x, index in chosen]
    assert raw(parts) == raw(expected)
    results = []
    for module, wholes, held, where in (
        (ops, xs, parts, indices),
        (reference, [x for x, _ in chosen], expected, [index for _, index in chosen]),
    ):
        totals, counts = [x.clone() for x in wholes], [torch.full_like(x, 0.25) for x in wholes]
        for weight in (0.75, 3.0):  # exact in float32, so double and float agree but for one rounding
            module.scatter_accumulate_many_(totals, counts, held, where, weight)
        results.append(
            (totals, counts, [module.merge_finish(*each) for each in zip(wholes, totals, counts, strict=True)])
        )
    for got, wanted in zip(results[0], results[1], strict=True):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=3e-7, atol=3e-7)


def test_the_same_bits_as_the_cpu() -> None:
    chosen = cases(0.5, 255, 5)
    results = []
    for device in ("cpu", "cuda"):
        xs = [x.to(device) for x, _ in chosen]
        indices = [[None if i is None else i.to(device) for i in index] for _, index in chosen]
        parts = ops.gather_many(xs, indices)
        totals, counts = [x.clone() for x in xs], [torch.zeros_like(x) for x in xs]
        ops.scatter_accumulate_many_(totals, counts, parts, indices, 0.3)
        results.append(raw([parts, totals, counts, ops.merge_finish_many(xs, totals, counts)]))
    assert results[0] == results[1]


def test_any_layout() -> None:
    x = torch.randn(40, 30, 3, 3, device="cuda")
    index = there([torch.tensor([0, 5, 6, 39]), torch.tensor([29, 1]), None, None])
    for view in (x.to(memory_format=torch.channels_last), x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        assert torch.equal(ops.gather(view, index), reference.gather(view, index))
    wide = torch.randn(50, 64, device="cuda")[:, 3:60:2]
    rows = there([kept_positions(50, 0.5, torch.Generator().manual_seed(0)), None])
    assert torch.equal(ops.gather(wide, rows), reference.gather(wide, rows))


def test_an_index_outside_is_not_followed() -> None:
    x = torch.randn(64, 64, device="cuda")
    outside = torch.tensor([0, 64, -1, 63], device="cuda")
    got = ops.gather(x, [outside, None])
    assert got[1:3].isnan().all() and torch.equal(got[[0, 3]], x[[0, 63]])
    with pytest.raises(EdgePruneError, match="outside"):
        ops.gather(x, [outside.cpu(), None])


@pytest.mark.parametrize("p", [1, 2])
def test_norms(p: int) -> None:
    shapes = [shape for shape in [*SHAPES, *MORE, (3, 400_000), (400_000, 3), (7, 50_000, 2), (2, 5, 3000)] if shape]
    xs, dims = [], []
    for i, shape in enumerate(shapes):
        for d in range(len(shape)):
            xs.append(to_gpu(torch.randn(shape, generator=torch.Generator().manual_seed(i)), d % 2))
            dims.append(d)
    got = ops.channel_norms_many(xs, dims, p)
    for x, d, norms in zip(xs, dims, got, strict=True):
        # Sums of positive terms in double, rounded once.
        torch.testing.assert_close(norms, reference.channel_norms(x, d, p), rtol=1.2e-7, atol=0.0)
        assert raw(ops.channel_norms(x, d, p)) == raw(norms)  # whatever the company
    assert raw(ops.channel_norms_many(xs, dims, p)) == raw(got)


def test_norms_of_odd_values() -> None:
    x = torch.tensor([[0.0, -0.0], [1e-45, -1e-45], [3e38, 3e38], [torch.inf, 1.0], [torch.nan, 1.0]], device="cuda")
    for p in (1, 2):
        got, expected = ops.channel_norms(x, 0, p).cpu(), ops.channel_norms(x.cpu(), 0, p)
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_finish_keeps_the_bits_of_the_base() -> None:
    for n in (0, 1, 3, 4, 5, 4095, 4096, 4097, 100_003):
        base, total, count = torch.full((n,), -0.0), torch.randn(n), torch.randn(n)
        count[::5], count[1::7] = 0.0, torch.nan
        for lead in (0, 1):
            got = ops.merge_finish(to_gpu(base, lead), to_gpu(total), to_gpu(count))
            assert raw(got) == raw(ops.merge_finish(base, total, count))


def test_on_another_stream_and_in_a_graph() -> None:
    chosen = cases(0.5, 3, 9)
    xs, indices = [x.cuda() for x, _ in chosen], [there(index) for _, index in chosen]
    totals, counts = [torch.zeros_like(x) for x in xs], [torch.zeros_like(x) for x in xs]

    measured = [x for x in xs if x.ndim]

    def work() -> Any:
        parts = ops.gather_many(xs, indices)
        for sums in (*totals, *counts):
            sums.zero_()
        ops.scatter_accumulate_many_(totals, counts, parts, indices, 2.0)
        return ops.merge_finish_many(xs, totals, counts), ops.channel_norms_many(measured, [0] * len(measured), 2)

    with other_stream():
        first = raw(work())
    graph, result = in_graph(work)
    for x in xs:
        x.mul_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    merged, norms = result
    assert raw(merged) == raw(xs)  # 2x / 2, or the base
    assert all(torch.allclose(a, reference.channel_norms(x, 0, 2)) for a, x in zip(norms, measured, strict=True))
    assert raw(result) != first
