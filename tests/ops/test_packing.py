"""The packing operators as users call them, bit for bit against the reference in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from packing_cases import DTYPES, floats, mask_of, masks, random_mask, raw, tensors, values
from torch import Tensor

from edgeprune import EdgePruneError, ops
from edgeprune.ops import packing_reference as reference

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
sizes = st.integers(0, 300)


# ---- selection ------------------------------------------------------------------------------------------------------


def test_select_largest_by_hand() -> None:
    xs = [torch.tensor([1.0, -3.0, 2.0, 3.0]), torch.tensor([3.0, 0.0])]
    assert [mask.tolist() for mask in ops.select_largest(xs, 2)] == [[0b1010], [0]]  # the first two of three 3s
    assert [mask.tolist() for mask in ops.select_largest(xs, 3)] == [[0b1010], [1]]
    assert [mask.tolist() for mask in ops.select_largest(xs, 0)] == [[0], [0]]
    assert [mask.tolist() for mask in ops.select_largest(xs, 6)] == [[0b1111], [0b11]]
    assert ops.select_largest([], 0) == []


@settings(max_examples=150, deadline=None)
@given(
    xs=st.lists(tensors(st.one_of(floats, st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, 1e-45]))), max_size=4),
    share=st.floats(0, 1),
)
def test_select_largest(xs: list[Tensor], share: float) -> None:
    k = round(share * sum(x.numel() for x in xs))
    expected = reference.select_largest(xs, k)
    assert [raw(mask) for mask in ops.select_largest(xs, k)] == [raw(mask) for mask in expected]


@settings(max_examples=60, deadline=None)
@given(xs=st.lists(tensors(), max_size=3), threshold=st.floats(allow_nan=False))
def test_select_above(xs: list[Tensor], threshold: float) -> None:
    expected = reference.select_above(xs, threshold)
    assert [raw(mask) for mask in ops.select_above(xs, threshold)] == [raw(mask) for mask in expected]


def test_select_refuses_nan() -> None:
    for n, at in ((1, 0), (65, 64), (300_000, 299_999)):
        x = torch.ones(n)
        x[at] = math.nan
        for call in (lambda x=x: ops.select_largest([torch.ones(9), x], 1), lambda x=x: ops.select_above([x], 0.5)):
            with pytest.raises(EdgePruneError, match="tensor [01] holds NaN"):
                call()
    with pytest.raises(EdgePruneError, match="threshold is NaN"):
        ops.select_above([torch.ones(3)], math.nan)


@pytest.mark.parametrize("k", [-1, 4])
def test_select_refuses_k_outside(k: int) -> None:
    with pytest.raises(EdgePruneError, match=r"outside 0\.\.3"):
        ops.select_largest([torch.ones(3)], k)


# ---- masks ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=sizes)
def test_masks_and_indices(data: st.DataObject, n: int) -> None:
    kept = data.draw(hnp.arrays(np.bool_, n))
    mask = mask_of(kept)
    indices = ops.mask_to_indices(mask, n)
    assert indices.dtype is torch.int64
    assert indices.tolist() == np.flatnonzero(kept).tolist()
    assert ops.mask_count(mask) == kept.sum()
    shuffled = indices[torch.randperm(indices.numel(), generator=torch.Generator().manual_seed(n))]
    assert torch.equal(ops.mask_from_indices(torch.cat([shuffled, indices[:1]]), n), mask)


@pytest.mark.parametrize("index", [-1, 9, 2**62])
def test_mask_from_indices_refuses_positions_outside(index: int) -> None:
    with pytest.raises(EdgePruneError, match=r"lies outside 0\.\.8"):
        ops.mask_from_indices(torch.tensor([0, index]), 9)


# ---- pack, unpack, accumulate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pack_and_unpack(dtype: str, data: st.DataObject) -> None:
    x = data.draw(tensors(finite if dtype == "i8" else st.floats(width=32), 600))
    mask = data.draw(st.none() | masks(x.numel()))
    seed = data.draw(st.none() | st.integers(-(2**70), 2**70))
    packed, expected = ops.pack(x, mask, dtype, seed), reference.pack(x, mask, dtype, seed)
    assert (raw(packed.values), raw(packed.scales)) == (raw(expected.values), raw(expected.scales))
    got = ops.unpack(*packed, mask, x.numel(), dtype)
    assert raw(got) == raw(reference.unpack(*packed, mask, x.numel(), dtype))


@pytest.mark.parametrize("kept", [2047, 2048, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_many_kept_as_are_moved_one_by_one(kept: int, dtype: str) -> None:
    """Spread over two pieces of a tensor that is long enough for them to be joined."""
    n = 40 * 65_536
    at = np.random.default_rng(kept).choice(2 * 65_536, kept, replace=False)
    chosen = np.zeros(n, np.bool_)
    chosen[at], chosen[-1] = True, True
    x, mask = values(n, 3), mask_of(chosen)
    got, expected = ops.pack(x, mask, dtype), reference.pack(x, mask, dtype)
    assert (raw(got.values), raw(got.scales)) == (raw(expected.values), raw(expected.scales))


def test_f32_travels_unchanged_and_dropped_elements_are_zero() -> None:
    x = torch.tensor([1.5, math.nan, -0.0, math.inf, 7.0])
    mask = torch.tensor([0b01101], dtype=torch.uint8)
    assert ops.unpack(*ops.pack(x, mask), mask, 5, "f32").tolist() == [1.5, 0.0, -0.0, math.inf, 0.0]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_halves_are_what_torch_makes_of_them(dtype: str) -> None:
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    x = values(70_000, 1, odd=True)
    assert raw(ops.pack(x, None, dtype).values) == raw(x.to(kind).view(torch.int16))
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    every = every[~every.view(kind).isnan()]
    got = ops.unpack(every.view(torch.uint8), None, None, every.numel(), dtype)
    assert raw(got) == raw(every.view(kind).float())


def test_int8_by_hand() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, -126.6, -0.4])
    values, scales = ops.pack(x, None, "i8")
    assert scales.tolist() == [1.0]
    assert values.view(torch.int8).tolist() == [127, 0, 2, -127, 0]
    assert ops.pack(torch.zeros(3), None, "i8").scales.tolist() == [0.0]


def test_stochastic_rounding_has_the_right_mean() -> None:
    x = torch.full((256 * 400,), 0.3)
    x[::256] = 127.0  # so that every scale is 1
    total = torch.zeros(x.numel())
    for seed in range(4):
        values, scales = ops.pack(x, None, "i8", seed)
        assert set(values.view(torch.int8).tolist()) == {0, 1, 127}
        total += ops.unpack(values, scales, None, x.numel(), "i8")
    ups = total[total < 127] / 4
    n = 4 * ups.numel()
    assert abs(float(ups.double().mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)
    assert raw(ops.pack(x, None, "i8", 1).values) != raw(ops.pack(x, None, "i8", 2).values)
    # neighbours are not alike: of four draws with the same share, all agree as often as chance says
    four = ops.pack(x, None, "i8", 9).values.view(torch.int8).reshape(-1, 256)[:, 1:253].reshape(-1, 4)
    same = (four == four[:, :1]).all(1).double().mean()
    expected = 0.3**4 + 0.7**4
    assert abs(float(same) - expected) < 5 * math.sqrt(expected / four.shape[0])


def test_a_seed_is_any_whole_number() -> None:
    x = torch.linspace(-1, 1, 100)
    assert raw(ops.pack(x, None, "i8", np.int32(-3)).values) == raw(ops.pack(x, None, "i8", -3).values)
    residual = torch.zeros(100)
    for seed in ("a", 1.5, []):
        for call in (
            lambda seed=seed: ops.pack(x, None, "i8", seed),
            lambda seed=seed: ops.pack_with_feedback_(x, residual, 5, "i8", seed),
        ):
            with pytest.raises(EdgePruneError, match="seed is .*; give a whole number"):
                call()
    assert not residual.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_int8_refuses_what_is_not_finite(bad: float) -> None:
    x = torch.ones(1000)
    x[700] = bad
    with pytest.raises(EdgePruneError, match="not finite in i8"):
        ops.pack(x, None, "i8")
    mask = random_mask(1000, 0.0, 0)
    assert ops.pack(x, mask, "i8").values.numel() == 0  # dropped, so it does not matter


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_accumulate(dtype: str, data: st.DataObject) -> None:
    x = data.draw(tensors(st.floats(-1000, 1000, width=32), 600))
    n = x.numel()
    mask = data.draw(st.none() | masks(n))
    weight = data.draw(st.floats(0, 100))
    packed = reference.pack(x, mask, dtype)
    total, weight_sum = values(n, 1), torch.rand(n)
    expected, expected_sum = total.clone(), weight_sum.clone()
    ops.accumulate_(total, weight_sum, *packed, mask, dtype, weight)
    reference.accumulate_(expected, expected_sum, *packed, mask, dtype, weight)
    assert (raw(total), raw(weight_sum)) == (raw(expected), raw(expected_sum))


# ---- hostile and wrong ----------------------------------------------------------------------------------------------

NINE = torch.tensor([0b1, 0b1], dtype=torch.uint8)  # two of nine kept
BYTES = torch.zeros(8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(1, dtype=torch.uint8), "9 elements is 2 bytes, not 1"),
        (torch.zeros(3, dtype=torch.uint8), "9 elements is 2 bytes, not 3"),
        (torch.tensor([0, 2], dtype=torch.uint8), "bits set beyond its 9"),
        (torch.tensor([0, 128], dtype=torch.uint8), "bits set beyond its 9"),
        (torch.zeros(2, dtype=torch.bool), "must be contiguous uint8"),
    ],
    ids=["short", "long", "spare bit", "last spare bit", "bool"],
)
def test_masks_that_do_not_fit(mask: Tensor, said: str) -> None:
    x, total = torch.ones(9), torch.zeros(9)
    for call in (
        lambda: ops.pack(x, mask),
        lambda: ops.unpack(BYTES, None, mask, 9, "f32"),
        lambda: ops.accumulate_(total, total.clone(), BYTES, None, mask, "f32", 1.0),
        lambda: ops.pack_with_feedback_(x, torch.zeros(9), mask),
        lambda: ops.mask_to_indices(mask, 9),
        lambda: ops.encode_gaps(mask, 9),
    ):
        with pytest.raises(EdgePruneError, match=said):
            call()


@pytest.mark.parametrize(
    ("values", "scales", "dtype", "said"),
    [
        (BYTES[:7], None, "f32", "7 bytes of values, but 2 kept elements in f32 are 8"),
        (torch.zeros(12, dtype=torch.uint8), None, "f32", "12 bytes of values"),
        (BYTES[:0], None, "bf16", "0 bytes of values, but 2 kept elements in bf16 are 4"),
        (BYTES, torch.ones(1), "f32", "1 scales, but 2 kept elements in f32 need 0"),
        (BYTES[:2], None, "i8", "0 scales, but 2 kept elements in i8 need 1"),
        (BYTES[:2], torch.ones(2), "i8", "2 scales, but 2 kept elements in i8 need 1"),
        (BYTES[:2], torch.ones(1).double(), "i8", "scales must be contiguous float32"),
        (torch.zeros(2), None, "f32", "values must be contiguous uint8"),
        (BYTES, None, "f31", "dtype 'f31' is unknown"),
    ],
    ids=["short", "long", "none", "needless", "missing", "many", "double", "floats", "unknown"],
)
def test_values_that_do_not_fit(values: Tensor, scales: Tensor | None, dtype: str, said: str) -> None:
    total = torch.zeros(9)
    with pytest.raises(EdgePruneError, match=said):
        ops.unpack(values, scales, NINE, 9, dtype)
    with pytest.raises(EdgePruneError, match=said):
        ops.accumulate_(total, torch.zeros(9), values, scales, NINE, dtype, 1.0)
    assert not total.any()


def test_a_number_of_kept_elements_that_is_said_must_be_true() -> None:
    x = torch.arange(9.0)
    assert torch.equal(ops.pack(x, NINE, kept=2).values, ops.pack(x, NINE).values)
    assert ops.mask_to_indices(NINE, 9, kept=2).tolist() == [0, 8]
    for call in (
        lambda: ops.pack(x, NINE, kept=3),
        lambda: ops.mask_to_indices(NINE, 9, kept=1),
        lambda: ops.pack_with_feedback_many_([x], [torch.zeros(9)], [NINE], kept=[9]),
    ):
        with pytest.raises(EdgePruneError, match="but the mask keeps 2"):
            call()
    with pytest.raises(EdgePruneError, match="kept has 2 numbers for 1 tensors"):
        ops.pack_with_feedback_many_([x], [torch.zeros(9)], [NINE], kept=[2, 2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: test_cuda_packing calls it")
def test_checking_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(EdgePruneError, match="no GPU here"):
        ops.cuda_check()


def test_unpack_of_an_absurd_length_takes_no_memory() -> None:
    with pytest.raises(EdgePruneError, match="a mask of 4611686018427387904 elements"):
        ops.unpack(BYTES, None, NINE, 2**62, "f32")
    with pytest.raises(EdgePruneError, match="n is -1"):
        ops.unpack(BYTES, None, None, -1, "f32")


def test_other_types_and_shapes_are_refused() -> None:
    with pytest.raises(EdgePruneError, match="contiguous float32 on the CPU"):
        ops.pack(torch.ones(3, dtype=torch.float64), None)
    with pytest.raises(EdgePruneError, match="contiguous float32 on the CPU"):
        ops.select_largest([torch.ones(3, dtype=torch.int64)], 1)
    with pytest.raises(EdgePruneError, match="9 elements and weight_sum 8"):
        ops.accumulate_(torch.zeros(9), torch.zeros(8), BYTES, None, NINE, "f32", 1.0)
    with pytest.raises(EdgePruneError, match="total must be contiguous"):
        ops.accumulate_(torch.zeros(18)[::2], torch.zeros(9), BYTES, None, NINE, "f32", 1.0)


def test_parameters_and_transposed_tensors_are_read() -> None:
    x = torch.nn.Parameter(torch.randn(6, 5))
    assert raw(ops.pack(x.T, None).values) == raw(x.detach().T.contiguous())
    assert ops.mask_count(ops.select_largest([x], 7)[0]) == 7


def test_negated_views_are_read_as_their_values() -> None:
    x = torch.complex(torch.zeros(40), torch.linspace(-3, 1, 40)).conj().imag  # torch negates it lazily
    for view in (x, torch._neg_view(torch.linspace(-3, 1, 40))):
        assert view.is_neg()
        plain = view.clone().resolve_neg()
        assert not plain.is_neg()
        assert raw(ops.pack(view, None).values) == raw(plain)
        assert raw(ops.unpack(*ops.pack(view, None, "i8"), None, 40, "i8")) == raw(
            ops.unpack(*ops.pack(plain, None, "i8"), None, 40, "i8")
        )
        residual = torch.zeros(40)
        mask, packed = ops.pack_with_feedback_(view, residual, 7)
        assert torch.equal(ops.unpack(*packed, mask, 40, "f32") + residual, plain)
        words = torch.zeros(40, dtype=torch.int64)
        ops.accumulate_exact_(words, None, view, 2.0**20, 1, 8)
        assert torch.equal(words >> 8, (plain * 2.0**20).round().long())


# ---- torch.library --------------------------------------------------------------------------------------------------


def test_operators_pass_opcheck() -> None:
    x = torch.randn(100)
    mask = ops.select_largest([x], 30)[0]
    packed = ops.pack(x, mask, "i8")
    quick = ("test_schema", "test_faketensor")  # the others compile, which takes 15 seconds

    def check(op: torch._ops.OpOverloadPacket, arguments: tuple[object, ...]) -> None:
        torch.library.opcheck(op.default, arguments, test_utils=quick)

    check(torch.ops.edgeprune.select_largest, ([x, x[:50]], 30))
    check(torch.ops.edgeprune.select_above, ([x], 0.5))
    check(torch.ops.edgeprune.unpack, (*packed, mask, 100, "i8"))
    check(torch.ops.edgeprune.accumulate_, (torch.zeros(100), torch.zeros(100), *packed, mask, "i8", 2.0))


def test_under_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.randn(101)
        (mask,) = ops.select_largest([x], 30)
        assert mask.shape == (13,) and mask.dtype is torch.uint8
        assert ops.unpack(mask, None, mask, 101, "i8").shape == (101,)
