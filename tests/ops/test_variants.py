"""Every variant present against the reference in double, and bit for bit against each other, through the border."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from channel_cases import SHAPES, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune import EdgePruneError, _core
from edgeprune.ops import reference

UNIT = 2.0**-24  # half a unit in the last place, relative


def run_gather(x: Tensor, index: list[Tensor | None], variant: str, threads: int = 1) -> Tensor:
    shape = [n if i is None else i.numel() for n, i in zip(x.shape, index, strict=True)]
    out = torch.full(shape, math.nan)
    _core.gather_many([x], [index], [out], threads, variant)
    return out


def run_scatter(
    total: Tensor, count: Tensor, x: Tensor, index: list[Tensor | None], weight: float, variant: str, threads: int = 1
) -> tuple[Tensor, Tensor]:
    total, count = total.clone(), count.clone()
    _core.scatter_accumulate_many([total], [count], [x], [index], weight, threads, variant)
    return total, count


def run_norms(x: Tensor, dim: int, p: int, variant: str, threads: int = 1) -> Tensor:
    out = torch.full((x.shape[dim],), math.nan)
    _core.channel_norms_many([x], [dim], p, [out], threads, variant)
    return out


def bits(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


def test_a_variant_ran_here() -> None:
    assert "scalar" in _core.present_variants()
    assert set(_core.present_variants()) <= set(_core.compiled_variants())


@pytest.mark.parametrize("which", [0b11111111, 0b01, 0b10, 0b0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gather(shape: tuple[int, ...], which: int, variant: str, threads: int) -> None:
    x, index = make_case(shape, 0.5, which, seed=1)
    assert bits(run_gather(x, index, variant, threads)) == bits(reference.gather(x, index))


@pytest.mark.parametrize("which", [0b11111111, 0b01, 0b10, 0b0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scatter(shape: tuple[int, ...], which: int, variant: str, threads: int) -> None:
    total, index = make_case(shape, 0.5, which, seed=2)
    count = torch.rand(shape)
    x = torch.randn(reference.gather(total, index).shape)
    got_total, got_count = run_scatter(total, count, x, index, 0.3, variant, threads)
    weight = np.float32(0.3)  # what the core was given
    expected_total, expected_count = total.double(), count.double()
    reference.scatter_accumulate_(expected_total, expected_count, x, index, float(weight))
    # the product and the sum are rounded once each
    room = (expected_total - total.double()).abs() * UNIT + expected_total.abs() * UNIT
    assert ((got_total.double() - expected_total).abs() <= room * 1.001).all()
    assert ((got_count.double() - expected_count).abs() <= expected_count * UNIT * 1.001).all()
    first = run_scatter(total, count, x, index, 0.3, "scalar")
    assert (bits(got_total), bits(got_count)) == (bits(first[0]), bits(first[1]))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape], ids=str)
def test_norms(shape: tuple[int, ...], p: int, variant: str, threads: int) -> None:
    x, _ = make_case(shape, 0.5, 0, seed=3)
    for dim in range(x.ndim):
        got = run_norms(x, dim, p, variant, threads)
        rows = x.double().movedim(dim, 0).unsqueeze(-1).flatten(1)
        expected = rows.abs().sum(1) if p == 1 else rows.square().sum(1).sqrt()
        assert ((got.double() - expected).abs() <= expected * UNIT * 1.001).all()
        assert bits(got) == bits(run_norms(x, dim, p, "scalar"))


def test_finish(variant: str, threads: int) -> None:
    for n in (0, 1, 5, 16, 17, 33, 200_000):
        generator = torch.Generator().manual_seed(n)
        base, total = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
        count = torch.randint(-1, 3, (n,), generator=generator).float()
        base[count <= 0] = math.nan  # not a number, yet kept as it is
        out = torch.empty(n)
        _core.merge_finish_many([base], [total], [count], [out], threads, variant)
        assert bits(out) == np.where(count > 0, total.numpy() / np.maximum(count.numpy(), 1), base.numpy()).tobytes()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple),
    share=st.floats(0, 1),
    which=st.integers(0, 15),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
def test_gather_of_any_strided_tensor(shape: tuple[int, ...], share: float, which: int, seed: int, order) -> None:
    x, index = make_case(shape, share, which, seed)
    dims = list(range(x.ndim))
    order.shuffle(dims)
    # the same values in a larger buffer, dimensions in another order, every second element, NaN all around
    room = torch.full([2 * x.shape[d] + 1 for d in dims], math.nan)
    strided = room[tuple(slice(1, None, 2) for _ in dims)].permute([dims.index(d) for d in range(x.ndim)])
    strided.copy_(x)
    expected = bits(reference.gather(x, index))
    for variant in _core.present_variants():
        assert bits(run_gather(strided, index, variant)) == expected


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_scatter_leaves_the_rest_alone(shape: tuple[int, ...], share: float, seed: int) -> None:
    total, index = make_case(shape, share, 0b111, seed)
    held = torch.zeros(shape, dtype=torch.bool)
    held[reference.open_mesh(held, index)] = True
    total[~held] = math.nan  # a product with this would show, and its bits must stay
    count = torch.where(held, 1.0, math.nan)
    x = torch.ones(reference.gather(total, index).shape)
    for variant in _core.present_variants():
        new_total, new_count = run_scatter(total, count, x, index, 2.0, variant)
        assert bits(new_total[~held]) == bits(total[~held])
        assert bits(new_count[~held]) == bits(count[~held])
        assert torch.equal(new_total[held], total[held] + 2)
        assert torch.equal(new_count[held], count[held] + 2)


def test_numpy_arrays_and_read_only_ones_cross_too() -> None:
    x, out = np.arange(12, dtype=np.float32).reshape(4, 3), np.zeros((2, 3), dtype=np.float32)
    _core.gather_many([x], [[np.array([3, 1]), None]], [out])
    np.testing.assert_array_equal(out, x[[3, 1]])
    out.flags.writeable = False
    with pytest.raises((EdgePruneError, BufferError)):  # numpy before 2.1 refuses to lend it at all
        _core.gather_many([x], [[np.array([3, 1]), None]], [out])


def ask(ceiling: str) -> subprocess.CompletedProcess[str]:
    code = "from edgeprune import _core; print(_core.chosen_variant())"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "EDGEPRUNE_ISA": ceiling}, capture_output=True, text=True
    )


def test_environment_lowers_the_ceiling() -> None:
    assert ask("scalar").stdout.strip() == "scalar"
    best = _core.present_variants()[0]
    assert ask(best).stdout.strip() == best
    if "avx512" in _core.present_variants():
        assert ask("avx2").stdout.strip() == "avx2"


def test_unknown_ceiling_is_one_sentence() -> None:
    answer = ask("sse9")
    assert answer.returncode != 0
    assert "EDGEPRUNE_ISA is 'sse9': set it to one of scalar, neon, avx2, avx512" in answer.stderr
