"""Every variant present, with one thread and several, bit for bit against the reference at sizes around every edge."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess

import numpy as np
import pytest
import torch
from packing_cases import DENSITIES, DTYPES, SIZES, clustered_mask, mask_of, random_mask, raw, values
from torch import Tensor

from edgeprune import EdgePruneError, _core
from edgeprune.ops import packing_reference as reference
from edgeprune.ops.packing_types import ITEM_BYTES, Packed


def empty_masks(xs: list[Tensor]) -> list[Tensor]:
    return [torch.full(((x.numel() + 7) // 8,), 255, dtype=torch.uint8) for x in xs]


def guarded(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Memory for n elements, and the same with 80 bytes on both sides that nobody may touch."""
    size = torch.empty(0, dtype=dtype).element_size()
    room = torch.full((80 + n * size + 80,), 0xA5, dtype=torch.uint8)
    return room[80 : 80 + n * size].view(dtype), room


def untouched(room: Tensor) -> bool:
    return bool((room[:80] == 0xA5).all() and (room[-80:] == 0xA5).all())


def pack(x: Tensor, mask: Tensor | None, dtype: str, seed: int | None, variant: str, threads: int, **more: Tensor):
    kept = x.numel() if mask is None else reference.mask_count(mask)
    packed, room = guarded(kept * ITEM_BYTES[dtype], torch.uint8)
    scales, scale_room = guarded(-(-kept // 256) if dtype == "i8" else 0, torch.float32)
    given = scales if dtype == "i8" else None
    call = (x, more.get("residual"), mask, packed, given)
    _core.pack_many([call], dtype, seed is not None, seed or 0, threads, variant)
    assert untouched(room) and untouched(scale_room)
    return Packed(packed, given)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 1.0])
def test_select_largest(share: float, variant: str, threads: int) -> None:
    for kind in ("normal", "ties", "equal", "odd"):
        xs = [values(n, seed, odd=kind == "odd") for seed, n in enumerate(SIZES)]
        if kind == "ties":
            xs = [(x * 2).round() for x in xs]
        if kind == "equal":
            xs = [torch.where(x > 0, 0.25, -0.25) for x in xs]
        for some in ([xs[0]], xs[:8], xs[8:], xs):
            k = round(share * sum(x.numel() for x in some))
            masks = empty_masks(some)
            _core.select_largest(some, k, masks, threads, variant)
            assert [raw(mask) for mask in masks] == [raw(mask) for mask in reference.select_largest(some, k)]


def test_select_largest_where_a_sample_deceives(variant: str, threads: int) -> None:
    n = 600_000
    rare = torch.full((n,), 1.0)
    rare[1000:1040] = torch.arange(40) + 2.0  # too few for a sample to meet
    stairs = torch.arange(n, dtype=torch.float32)  # sorted, so that a sample meets it well
    lumps = torch.cat([torch.zeros(n // 2), torch.randn(n // 2, generator=torch.Generator().manual_seed(1))])
    # every second place that a sample looks at is large, and nothing else is
    comb = torch.full((n,), 1e-3)
    comb[torch.arange(0, 32_768, 2).double().mul(n / 32_768).long()] = 1.0
    near = 1.0 + torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(2)) * 2.0**-23
    for x in (rare, stairs, lumps, comb, near, torch.zeros(n), torch.full((n,), math.inf)):
        for k in (1, 20, 45, n // 100, n // 3, n - 1, n):
            masks = empty_masks([x])
            _core.select_largest([x], k, masks, threads, variant)
            assert raw(masks[0]) == raw(reference.select_largest([x], k)[0])


def test_select_above(variant: str, threads: int) -> None:
    xs = [values(n, n, odd=True) for n in SIZES]
    for threshold in (0.0, 1e-45, 0.7, 65520.0, math.inf):
        masks = empty_masks(xs)
        _core.select_above(xs, int(np.float32(threshold).view(np.uint32)), masks, threads, variant)
        assert [raw(mask) for mask in masks] == [raw(mask) for mask in reference.select_above(xs, threshold)]


@pytest.mark.parametrize("n", SIZES)
def test_masks(n: int, variant: str, threads: int) -> None:
    for density in DENSITIES:
        mask = random_mask(n, density, n)
        expected = reference.mask_to_indices(mask, n)
        out, room = guarded(expected.numel(), torch.int64)
        assert _core.mask_count(mask, threads, variant) == expected.numel()
        assert _core.mask_kept("test", mask, n, threads, variant) == expected.numel()
        _core.mask_to_indices(mask, n, out, threads, variant)
        assert torch.equal(out, expected) and untouched(room)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_pack(n: int, dtype: str, variant: str, threads: int) -> None:
    x = values(n, n, odd=True)
    masks = [None, clustered_mask(n, 0.2, n), *(random_mask(n, density, n) for density in DENSITIES)]
    for i, mask in enumerate(masks):
        for seed in (None, i) if dtype == "i8" else (None,):
            got, expected = pack(x, mask, dtype, seed, variant, threads), reference.pack(x, mask, dtype, seed)
            assert (raw(got.values), raw(got.scales)) == (raw(expected.values), raw(expected.scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_feedback(n: int, dtype: str, variant: str, threads: int) -> None:
    x, before = values(n, n), values(n, n + 1)
    for mask in (None, clustered_mask(n, 0.2, n), *(random_mask(n, density, n) for density in DENSITIES)):
        residual, room = guarded(n, torch.float32)
        residual.copy_(before)
        expected = before.clone()
        _, (packed,) = reference.pack_with_feedback_many_([x], [expected], [mask], dtype, 5)
        got = pack(x, mask, dtype, 5, variant, threads, residual=residual)
        assert (raw(got.values), raw(got.scales)) == (raw(packed.values), raw(packed.scales))
        assert raw(residual) == raw(expected) and untouched(room)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_unpack_and_accumulate(n: int, dtype: str, variant: str, threads: int) -> None:
    x = values(n, n)
    for mask in (None, clustered_mask(n, 0.2, n), *(random_mask(n, density, n) for density in DENSITIES)):
        packed = reference.pack(x, mask, dtype)
        # values that end where memory ends, at an odd address: what is read beyond them would be foreign
        odd = torch.cat([torch.zeros(1, dtype=torch.uint8), packed.values])[1:]
        out, room = guarded(n, torch.float32)
        _core.unpack(odd, packed.scales, mask, dtype, out, threads, variant)
        assert raw(out) == raw(reference.unpack(*packed, mask, n, dtype)) and untouched(room)
        total, total_room = guarded(n, torch.float32)
        held, held_room = guarded(n, torch.float32)
        total.copy_(values(n, 1))
        held.copy_(values(n, 2))
        expected, expected_held = total.clone(), held.clone()
        reference.accumulate_(expected, expected_held, *packed, mask, dtype, 0.3)
        _core.accumulate(total, held, packed.values, packed.scales, mask, dtype, 0.3, threads, variant)
        assert (raw(total), raw(held)) == (raw(expected), raw(expected_held))
        assert untouched(total_room) and untouched(held_room)


def test_large_outputs_go_around_the_caches(variant: str, threads: int) -> None:
    n = 2_500_003
    x, mask = values(n, 1), random_mask(n, 0.1, 2)
    packed = reference.pack(x, mask, "f16")
    for offset in (0, 1):  # aligned for it, and not
        out = torch.empty(n + 16)[offset : offset + n]
        _core.unpack(packed.values, None, mask, "f16", out, threads, variant)
        assert raw(out) == raw(reference.unpack(*packed, mask, n, "f16"))


def test_dropped_elements_are_never_used(variant: str) -> None:
    n = 5000
    mask = random_mask(n, 0.1, 3)
    kept = torch.from_numpy(reference.kept_of(mask, n, "test"))
    x = torch.where(kept, values(n, 4), math.nan)
    assert raw(pack(x, mask, "i8", None, variant, 1).values) == raw(reference.pack(x, mask, "i8").values)
    total = torch.where(kept, 0.0, math.nan)
    packed = reference.pack(x, mask)
    _core.accumulate(total, torch.zeros(n), *packed, mask, "f32", 1.0, 1, variant)
    assert torch.equal(total[kept], x[kept]) and total[~kept].isnan().all()


def test_nan_is_refused_wherever_it_stands(variant: str, threads: int) -> None:
    for n in (1, 16, 17, 64, 65, 70_000, 300_000):
        for at in {0, n // 2, n - 1}:
            x = torch.ones(n)
            x[at] = -math.nan
            with pytest.raises(EdgePruneError, match="holds NaN"):
                _core.select_largest([x], n // 2, empty_masks([x]), threads, variant)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_tensor_with_few_kept(dtype: str, variant: str, threads: int) -> None:
    """Long enough for each of four threads to get several pieces of few, with stretches of none and of many between."""
    n = 70 * 65_536 + 321
    share = np.repeat([0.004, 0.0, 0.012, 0.03, 0.0001, 0.009, 0.4], -(-n // 7))[:n]
    mask = mask_of(np.random.default_rng(5).random(n) < share)
    x = values(n, 6)
    expected = reference.pack(x, mask, dtype)
    packed = pack(x, mask, dtype, None, variant, threads)
    assert (raw(packed.values), raw(packed.scales)) == (raw(expected.values), raw(expected.scales))
    total, weight_sum = values(n, 7), torch.zeros(n)
    wanted, wanted_sum = total.clone(), weight_sum.clone()
    _core.accumulate(total, weight_sum, *packed, mask, dtype, 2.0, threads, variant)
    reference.accumulate_(wanted, wanted_sum, *expected, mask, dtype, 2.0)
    assert torch.equal(total, wanted) and torch.equal(weight_sum, wanted_sum)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("off", [0, 3])
def test_few_kept_of_a_tensor_that_is_not_on_lines(dtype: str, off: int, variant: str, threads: int) -> None:
    """Beginning on a line of the cache or between two; ending around a sixteen, a word and the 4,096 listed at once."""
    for n in (4096, 4097, 8192 - 15, 12_288 + 16, 70_001, 200_000 + 63):
        room = values(n + off, 8)
        x, residual = room[off:], values(n, 9)
        kept = np.random.default_rng(n).random(n) < 0.015
        kept[[0, 1, 15, n - 1]] = True
        mask = mask_of(kept)
        expected, packed = reference.pack(x, mask, dtype), pack(x, mask, dtype, None, variant, threads)
        assert (raw(packed.values), raw(packed.scales)) == (raw(expected.values), raw(expected.scales))
        owed = residual.clone()
        _, expected = reference.pack_with_feedback_(x, owed, mask, dtype)
        packed = pack(x, mask, dtype, None, variant, threads, residual=residual)
        assert (raw(packed.values), raw(packed.scales)) == (raw(expected.values), raw(expected.scales))
        assert raw(residual) == raw(owed)
        total, weight_sum = values(n + off, 7)[off:], torch.zeros(n)
        wanted, wanted_sum = total.clone(), weight_sum.clone()
        _core.accumulate(total, weight_sum, *packed, mask, dtype, 2.0, threads, variant)
        reference.accumulate_(wanted, wanted_sum, *packed, mask, dtype, 2.0)
        assert torch.equal(total, wanted) and torch.equal(weight_sum, wanted_sum)


def test_nan_at_the_beginning_of_a_long_stretch_of_few_is_refused(variant: str) -> None:
    """One thread, so that pieces are joined: thousands of values follow the block that cannot be coded."""
    n = 40 * 65_536
    kept = np.zeros(n, np.bool_)
    kept[::48] = True
    x, mask = values(n, 3), mask_of(kept)
    x[0] = math.nan
    packed, scales = torch.empty(int(kept.sum()), dtype=torch.uint8), torch.empty(-(-int(kept.sum()) // 256))
    with pytest.raises(EdgePruneError, match="a kept value of tensor 0 is not finite"):
        _core.pack_many([(x, None, mask, packed, scales)], "i8", False, 0, 1, variant)


def test_a_block_that_ends_within_the_last_sixteen(variant: str) -> None:
    """The pieces of int8 end where 256 values do, here three elements before the tensor does."""
    n = 65_536 + 20
    for last in range(n - 16, n):
        kept = np.zeros(n, np.bool_)
        kept[np.linspace(0, last - 1, 256).astype(int)] = True
        kept[last:] = True
        x, mask = values(n, last), mask_of(kept)
        expected, got = reference.pack(x, mask, "i8"), pack(x, mask, "i8", None, variant, 2)
        assert (raw(got.values), raw(got.scales)) == (raw(expected.values), raw(expected.scales))


def test_lines_are_asked_for_ahead_in_every_variant() -> None:
    """gcc drops such requests where it takes a function that does nothing else for one without an effect."""
    objdump = shutil.which("objdump")
    if platform.machine() != "x86_64" or not objdump:
        pytest.skip("needs objdump and an x86-64 build")
    command = [objdump, "-d", "-C", "--no-show-raw-insn", _core.__file__]
    requests: dict[str, int] = {}
    function = ""
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            function = line
            requests[function] = 0
        elif "prefetcht1" in line:
            requests[function] += 1
    if any("ask_for(" in name for name in requests) or not any("AccumulateTask" in name for name in requests):
        pytest.skip("not an optimised build with its symbols")
    for task in ("pack(edgeprune::PackTask", "accumulate(edgeprune::AccumulateTask"):
        counts = [count for name, count in requests.items() if f"::{task} const&, long, long, long, long)" in name]
        assert len(counts) == 3 and all(counts)  # scalar, AVX2, AVX-512
