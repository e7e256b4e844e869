"""The packing operators on a GPU against the reference in numpy, bit for bit. Without one: tests/cuda_emulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_cases import in_graph, lent, needs_gpu, other_stream, raw, to_gpu
from packing_cases import DTYPES, clustered_mask, random_mask, values
from torch import Tensor

from edgeprune import EdgePruneError, ops
from edgeprune.ops import packing_reference as reference

pytestmark = needs_gpu

TILE = 4096
SIZES = [0, 1, 31, 32, 33, 63, 65, 255, 256, 257, TILE - 1, TILE, TILE + 1, 3 * TILE + 17, 1_000_003]
SHARES = [0.0, 0.003, 0.1, 0.5, 1.0]


@pytest.mark.parametrize("lead", [0, 1, 4])
@pytest.mark.parametrize("n", SIZES)
def test_selection(n: int, lead: int) -> None:
    x = values(n, n + lead, odd=True)
    for data in (x, x.round(), torch.ones(n) * -3, torch.zeros(n)):
        there = to_gpu(data, lead)
        for k in {0, min(1, n), n // 100, n // 2, max(0, n - 1), n}:
            assert raw(ops.select_largest([there], k)) == raw(reference.select_largest([data], k)), k
        for threshold in (0.0, 0.5, 1e-45, float("inf")):
            assert raw(ops.select_above([there], threshold)) == raw(reference.select_above([data], threshold))


def test_selection_over_many_tensors_takes_ties_in_order() -> None:
    sizes = [5, 0, TILE, 1, 70_000, TILE + 1, 33] + [17 * i for i in range(400)]
    xs = [values(n, i).mul(4).round() for i, n in enumerate(sizes)]
    there = [to_gpu(x, i % 2) for i, x in enumerate(xs)]
    total = sum(sizes)
    for k in (1, total // 50, total // 3, total - 5):
        assert raw(ops.select_largest(there, k)) == raw(reference.select_largest(xs, k))


def test_large_selections_keep_as_many_as_asked_for() -> None:
    x = torch.randn(20_000_001, device="cuda")
    for data in (x, x.bfloat16().float(), torch.ones_like(x)):
        for k in (1, 200_000, 10_000_000):
            (mask,) = ops.select_largest([data], k)
            assert ops.mask_count(mask) == k
            kept = torch.zeros_like(x, dtype=torch.bool)
            kept[ops.mask_to_indices(mask, x.numel())] = True
            assert not kept.all() and data[kept].abs().min() >= data[~kept].abs().max()
            if data[0] == data[-1] == 1:
                assert kept[:k].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_pack_unpack_accumulate(n: int, dtype: str) -> None:
    for share in SHARES if n < 1_000_000 else [0.003, 0.5]:
        for mask in (random_mask(n, share, n), clustered_mask(n, share, n), None):
            for lead in (0, 1):
                x = values(n, n + 1, odd=dtype != "i8")
                there, where = to_gpu(x, lead), lent(mask, lead)
                for seed in (None, 11) if dtype == "i8" else (None,):
                    packed = ops.pack(there, where, dtype, seed)
                    expected = reference.pack(x, mask, dtype, seed)
                    assert raw(packed) == raw(expected)
                    packed = type(packed)(to_gpu(packed.values, lead), lent(packed.scales, lead))
                    out = to_gpu(torch.full((n,), torch.nan), lead)
                    assert ops.unpack(*packed, where, n, dtype, out=out) is out
                    assert raw(out) == raw(reference.unpack(*expected, mask, n, dtype))
                    results = []
                    for module, held, parts, bits in ((ops, there, packed, where), (reference, x, expected, mask)):
                        total = to_gpu(x, lead) if module is ops else x.clone()
                        weights = torch.full_like(held, 0.1)
                        module.accumulate_(total, weights, *parts, bits, dtype, 0.3)
                        results.append(raw([total, weights]))
                    assert results[0] == results[1]


def test_not_a_number_and_infinity_travel_as_on_the_cpu() -> None:
    bits = np.arange(0, 1 << 32, 40_503, dtype=np.uint64).astype(np.uint32)
    x = torch.from_numpy(bits.view(np.float32).copy())
    for dtype in ("f32", "bf16", "f16"):
        expected = reference.pack(x, None, dtype)
        packed = ops.pack(to_gpu(x), None, dtype)
        assert raw(packed) == raw(expected)
        assert raw(ops.unpack(*packed, None, x.numel(), dtype)) == raw(
            reference.unpack(*expected, None, x.numel(), dtype)
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback(dtype: str) -> None:
    sizes = [300, 1, 0, TILE + 3, 30_001, 256]
    xs = [values(n, i) for i, n in enumerate(sizes)]
    owed = [values(n, 50 + i) for i, n in enumerate(sizes)]
    masks: list[Tensor | None] = [random_mask(n, 0.3, i) if i != 4 else None for i, n in enumerate(sizes)]
    for which in (sum(sizes) // 20, masks):
        residuals, there = [each.clone() for each in owed], [to_gpu(each, 1) for each in owed]
        on = which if isinstance(which, int) else [lent(mask) for mask in which]
        expected = reference.pack_with_feedback_many_(xs, residuals, which, dtype, 9)
        got = ops.pack_with_feedback_many_([to_gpu(x) for x in xs], there, on, dtype, 9)
        assert raw(got[0]) == raw(expected[0]) and raw(got[1]) == raw(expected[1])
        assert raw(there) == raw(residuals)


def test_masks_and_indices() -> None:
    for n in SIZES:
        for share in SHARES:
            mask = random_mask(n, share, 3)
            where = reference.mask_to_indices(mask, n)
            there = to_gpu(mask, 1)
            assert ops.mask_count(there) == where.numel()
            assert raw(ops.mask_to_indices(there, n)) == raw(where)
            turned = where.flip(0).repeat(2)
            assert raw(ops.mask_from_indices(to_gpu(turned), n)) == raw(mask)


# ---- errors that only the device sees -------------------------------------------------------------------------------


def refused() -> list[tuple[str, Any]]:
    x = torch.randn(5000, device="cuda")
    bad = x.clone()
    bad[4999] = torch.nan
    mask = random_mask(5000, 0.5, 1).cuda()
    kept = int(reference.mask_count(mask.cpu()))
    spare = random_mask(4999, 1.0, 1).cuda() | 128
    packed = torch.zeros(4 * (kept - 1), dtype=torch.uint8, device="cuda")
    every = torch.full((625,), 255, dtype=torch.uint8, device="cuda")
    return [
        ("tensor 1 holds NaN", lambda **how: ops.select_largest([x, bad], 10, **how)),
        ("tensor 0 holds NaN", lambda **how: ops.select_above([bad, x], 1.0, **how)),
        ("keeps another number", lambda **how: ops.unpack(packed, None, mask, 5000, "f32", **how)),
        ("keeps another number", lambda **how: ops.accumulate_(x, x.clone(), packed, None, mask, "f32", 1.0, **how)),
        ("bits set beyond", lambda **how: ops.unpack(packed[:0], None, spare, 4999, "f32", **how)),
        ("outside", lambda **how: ops.mask_from_indices(torch.tensor([0, 5000], device="cuda"), 5000, **how)),
        ("is not finite in i8", lambda **how: ops.pack(bad, every, "i8", **({"kept": 5000} if how else {}))),
    ]


def test_device_errors_are_raised_at_once_or_later() -> None:
    ops.cuda_check()
    for sentence, call in refused():
        with pytest.raises(EdgePruneError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)
        call(wait=False)
        with pytest.raises(EdgePruneError, match=sentence):
            ops.cuda_check()
        ops.cuda_check()  # once said, forgotten


def test_shapes_and_places_are_checked_before() -> None:
    x, mask = torch.randn(100, device="cuda"), torch.zeros(13, dtype=torch.uint8)
    calls: list[Any] = [
        lambda: ops.pack(x, mask),
        lambda: ops.pack(x, torch.zeros(12, dtype=torch.uint8, device="cuda")),
        lambda: ops.select_largest([x, torch.randn(3)], 1),
        lambda: ops.select_largest([x], 101),
        lambda: ops.select_largest([x.double()], 1),
        lambda: ops.pack(x, mask.cuda(), kept=101),
        lambda: ops.unpack(x.view(torch.uint8), None, mask.cuda(), 2**62, "f32"),
        lambda: ops.unpack(x.view(torch.uint8), None, None, 2**62, "f32"),
        lambda: ops.accumulate_(x, x[:50], torch.zeros(400, dtype=torch.uint8, device="cuda"), None, None, "f32", 1.0),
    ]
    for call in calls:
        with pytest.raises(EdgePruneError):
            call()


# ---- streams, graphs, determinism -----------------------------------------------------------------------------------


def test_on_another_stream_and_in_a_graph() -> None:
    ops.cuda_check()
    xs = [values(n, n) for n in (TILE + 5, 100_000)]
    there = [to_gpu(x) for x in xs]
    owed = [torch.zeros_like(x) for x in there]
    k = 3000

    def work() -> Any:
        masks = ops.select_largest(there, k, wait=False)
        packed = ops.pack(there[1], None, "i8", 3, kept=100_000)
        out = ops.unpack(*packed, None, 100_000, "i8", wait=False)
        _, sent = ops.pack_with_feedback_many_(there[:1], owed[:1], [None], "f16", kept=[TILE + 5])
        ops.accumulate_(out, owed[1], *packed, None, "i8", 0.5, wait=False)
        return masks, packed, out, sent

    with other_stream():
        first = raw(work())
    for x in owed:
        x.zero_()
    graph, result = in_graph(work)
    for x, new in zip(there, (values(x.numel(), 99) for x in xs), strict=True):
        x.copy_(new)
    for x in owed:
        x.zero_()
    graph.replay()
    replayed = raw(result)
    torch.cuda.synchronize()
    ops.cuda_check()
    again = [x.cpu() for x in there]
    masks = reference.select_largest(again, k)
    packed = reference.pack(again[1], None, "i8", 3)
    assert replayed[0] == raw(masks) and replayed[1] == raw(packed) and replayed != first


def test_two_runs_give_the_same_bits() -> None:
    x = torch.randn(3_000_001, device="cuda").mul(8).round()
    runs = []
    for _ in range(2):
        (mask,) = ops.select_largest([x], 700_000)
        packed = ops.pack(x, mask, "i8", 5)
        total, weights = torch.ones_like(x), torch.zeros_like(x)
        ops.accumulate_(total, weights, *packed, mask, "i8", 0.7)
        runs.append(raw([mask, packed, total, weights]))
    assert runs[0] == runs[1]


def test_operators_of_the_dispatcher() -> None:
    x = torch.randn(500, device="cuda")
    library = torch.ops.edgeprune
    (mask,) = library.select_largest([x], 50)
    packed = ops.pack(x, mask)
    torch.library.opcheck(library.select_largest.default, ([x], 50))
    torch.library.opcheck(library.unpack.default, (packed.values, None, mask, 500, "f32"))
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    torch.library.opcheck(library.accumulate_.default, (total, weights, packed.values, None, mask, "f32", 0.5))
