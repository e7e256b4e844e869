"""The masked operators as users call them: results, layouts, types, gradients, refusals."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from masked_cases import CASES, Case, Made, cases, make, within
from torch import Tensor

from edgeprune import EdgePruneError, SparsityPattern, ops


def conv(made: Made, x: Tensor, weight: Tensor, bias: Tensor | None, path: str = "sparse") -> Tensor:
    case = made.case
    return ops.masked_conv2d(
        x, weight, made.pattern, bias, case.stride, case.padding, case.dilation, case.groups, path=path
    )


def nan_where_dropped(made: Made) -> Tensor:
    return torch.where(made.mask, made.pattern.dense(made.weight), math.nan)


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_linear_by_hand() -> None:
    pattern = SparsityPattern.from_mask(torch.tensor([[1, 0, 1], [0, 1, 0]]))
    assert (pattern.kept, pattern.density, pattern.shape) == (3, 0.5, (2, 3))
    weight = torch.tensor([[1.0, math.nan, 2.0], [math.inf, 3.0, math.nan]], requires_grad=True)
    x = torch.tensor([[1.0, 10.0, 100.0]], requires_grad=True)
    y = ops.masked_linear(x, weight, pattern, torch.tensor([0.5, -1.0]))
    assert y.tolist() == [[201.5, 29.0]]
    y.backward(torch.tensor([[1.0, 2.0]]))
    assert weight.grad is not None and weight.grad.tolist() == [[1, 0, 100], [0, 20, 0]]
    assert x.grad is not None and x.grad.tolist() == [[1, 6, 2]]
    assert pattern.compact(weight).tolist() == [1, 2, 3]
    assert pattern.dense(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 0, 2], [0, 3, 0]]


def test_conv_by_hand() -> None:
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 0, 0] = mask[0, 0, 1, 1] = 1  # the pixel itself, and ten times the one up and left of it
    pattern = SparsityPattern.from_mask(mask)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    y = ops.masked_conv2d(x, torch.tensor([10.0, 1.0]), pattern, padding=1)
    assert y.tolist() == [[[[1, 2], [3, 14]]]]


def test_pattern_round_trips() -> None:
    for shape in ((1, 1), (3, 5), (4, 2, 3, 3), (7, 9, 1, 2)):
        mask = torch.rand(shape) < 0.4
        pattern = SparsityPattern.from_mask(mask)
        assert torch.equal(pattern.mask(), mask) and pattern.kept == int(mask.sum())
        again = SparsityPattern.from_bits(pattern.bits, shape)
        assert torch.equal(again.mask(), mask)
        assert torch.equal(pattern.dense(pattern.compact(mask.float())), mask.float())
        assert copy.deepcopy(pattern) is pattern
        assert torch.equal(pickle.loads(pickle.dumps(pattern)).mask(), mask)
        assert pattern.compiled() is pattern.compiled()


def test_a_pattern_does_not_follow_the_callers_bits() -> None:
    bits = torch.tensor([0b101], dtype=torch.uint8)
    pattern = SparsityPattern.from_bits(bits, (1, 3))
    bits.zero_()
    assert pattern.mask().tolist() == [[True, False, True]]


# ---- against double -------------------------------------------------------------------------------------------------


def check_gradients(made: Made, x: Tensor, weight: Tensor, bias: Tensor, path: str) -> None:
    y = conv(made, x, weight, bias, path)
    exact, room = made.exact, made.room
    assert within(y.detach(), exact[0], room[0])
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), made.dy)
    if dw.ndim > 1:
        assert dw[~made.mask].eq(0).all()
        dw = made.pattern.compact(dw)
    assert within(dx, exact[1], room[1]) and within(dw, exact[2], room[2])
    assert torch.allclose(db, made.dy.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["sparse", "auto"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autograd_within_the_derived_bound(case: Case, dense: bool, path: str) -> None:
    made = make(case)
    weight = (nan_where_dropped(made) if dense else made.weight.clone()).requires_grad_()
    check_gradients(made, made.x.clone().requires_grad_(), weight, made.bias.clone().requires_grad_(), path)


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_autograd_of_any_shape(case: Case) -> None:
    made = make(case)
    weight = nan_where_dropped(made).requires_grad_()
    check_gradients(made, made.x.clone().requires_grad_(), weight, made.bias.clone().requires_grad_(), "sparse")


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("leading", [(), (1,), (5,), (0,), (2, 3), (2, 0, 3)], ids=str)
def test_linear_takes_any_leading_shape(leading: tuple[int, ...], path: str) -> None:
    mask, dense = torch.rand(6, 9) < 0.4, torch.randn(6, 9)
    pattern = SparsityPattern.from_mask(mask)
    x, bias = torch.randn(*leading, 9, requires_grad=True), torch.randn(6, requires_grad=True)
    weight = torch.where(mask, dense, math.nan).requires_grad_()
    y = ops.masked_linear(x, weight, pattern, bias, path=path)
    exact = torch.where(mask, dense, 0.0).requires_grad_()
    expected = ops.reference.masked_linear(x, exact, mask, bias)
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-5)
    dy = torch.randn(y.shape)
    got, wanted = torch.autograd.grad(y, (x, weight, bias), dy), torch.autograd.grad(expected, (x, exact, bias), dy)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(ops.masked_linear(x, weight, pattern, bias, path=path), y)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("padding", [0, 2, (1, 3), "same", "valid"], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_as_torch_takes_it(padding: Any, path: str) -> None:
    weight = torch.randn(4, 3, 2, 3)
    mask = torch.rand(weight.shape) < 0.5
    x = torch.randn(2, 6, 7, 8)
    how: dict[str, Any] = {"padding": padding, "dilation": (1, 2), "groups": 2}
    expected = ops.reference.masked_conv2d(x, weight, mask, **how)
    pattern = SparsityPattern.from_mask(mask)
    y = ops.masked_conv2d(x, weight, pattern, path=path, **how)
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(ops.masked_conv2d(x[1], weight, pattern, path=path, **how), expected[1], atol=1e-5)


def test_layouts() -> None:
    made = make(Case(3, 8, 5, (6, 7), (3, 3), padding=(1, 1)))
    y = conv(made, made.x, made.weight, made.bias)
    room = torch.full((3, 16, 6, 14), math.nan)
    room[:, ::2, :, ::2] = made.x
    for x in (
        made.x.to(memory_format=torch.channels_last),
        room[:, ::2, :, ::2],
        made.x.transpose(2, 3).contiguous().transpose(2, 3),
        torch._neg_view(-made.x),
    ):
        assert torch.equal(conv(made, x, made.weight, made.bias), y)
    wide = torch.full((2 * made.weight.numel(),), math.nan)
    wide[::2] = made.weight
    assert torch.equal(conv(made, made.x, wide[::2], made.bias), y)
    x = made.x.clone().requires_grad_()
    conv(made, x, made.weight, made.bias).sum().backward()  # the gradient of a sum is expanded, not contiguous
    expected = made.case.conv(x.double(), made.pattern.dense(made.weight).double()).sum()
    assert x.grad is not None and torch.allclose(x.grad, torch.autograd.grad(expected, x)[0], atol=1e-4)


def test_batches_of_no_samples_in_any_layout() -> None:
    made = make(Case(3, 8, 5, (6, 7), (3, 3), padding=(1, 1)))
    empty = torch.zeros(0, 8, 6, 7)
    for x in (
        empty.to(memory_format=torch.channels_last),
        torch.zeros(0, 16, 6, 7)[:, ::2],
        torch.zeros(0, 8, 7, 6).transpose(2, 3),
    ):
        x = x.requires_grad_()
        y = conv(made, x, made.weight.requires_grad_(), made.bias)
        assert y.shape == (0, 5, 6, 7)
        y.backward(torch.zeros(0, 5, 7, 6).transpose(2, 3))
        assert made.weight.grad is not None and not made.weight.grad.any()


def test_only_the_gradients_asked_for() -> None:
    made = make(Case(4, 6, 3))
    x, weight = made.x.clone().requires_grad_(), made.weight.clone().requires_grad_()
    assert conv(made, x, made.weight, None).grad_fn is not None
    conv(made, x, made.weight, made.bias).sum().backward()
    assert x.grad is not None and made.weight.grad is None
    conv(made, made.x, weight, made.bias).sum().backward()
    assert weight.grad is not None and made.x.grad is None
    assert not conv(made, made.x, made.weight, made.bias).requires_grad
    with torch.no_grad():
        assert not conv(made, x, weight, None).requires_grad


# ---- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_half_types_are_computed_in_float32(dtype: torch.dtype, path: str) -> None:
    made = make(Case(5, 30, 8, density=0.5))
    x, weight = made.x.to(dtype).requires_grad_(), made.weight.to(dtype).requires_grad_()
    y = conv(made, x, weight, made.bias.to(dtype), path)
    expected = conv(made, x.double(), weight.double(), made.bias.to(dtype).double())
    assert y.dtype is dtype and torch.allclose(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype is dtype and weight.grad is not None and weight.grad.dtype is dtype


def test_double_stays_double() -> None:
    made = make(Case(2, 5, 4, (5, 5), (3, 3), padding=(1, 1)))
    y = conv(made, made.x.double(), made.weight.double(), made.bias.double())
    assert y.dtype is torch.float64 and torch.allclose(y, made.exact[0], rtol=1e-12, atol=1e-12)


def test_under_autocast() -> None:
    made = make(Case(5, 30, 8, density=0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(made, made.x, made.weight, made.bias), conv(made, made.x, made.weight, made.bias))
        y = conv(made, made.x.bfloat16(), made.weight, made.bias)
    assert y.dtype is torch.bfloat16 and torch.allclose(y.double(), made.exact[0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", [Case(5, 30, 8, density=0.5), Case(2, 3, 4, (5, 5), (3, 3))], ids=["linear", "conv"])
def test_autocast_gives_torchs_type_on_either_path(case: Case, given: torch.dtype) -> None:
    made = make(case)
    x, weight, bias = (t.to(given).requires_grad_() for t in (made.x, made.weight, made.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = {path: conv(made, x, weight, bias, path=path) for path in ("sparse", "dense")}
        expected = case.conv(x, made.pattern.dense(weight).view(made.case.weight_shape), bias)
    for y in found.values():
        assert y.dtype is expected.dtype and torch.allclose(y.double(), made.exact[0], rtol=0.05, atol=0.1)
        (grad,) = torch.autograd.grad(y.float().sum(), weight)
        assert grad.dtype is given


def test_meta_tensors_give_shapes() -> None:
    made = make(Case(2, 5, 4, (5, 5), (3, 3), stride=(2, 2)))
    y = conv(made, made.x.to("meta"), made.weight.to("meta"), made.bias.to("meta"))
    assert y.is_meta and y.shape == made.exact[0].shape


# ---- refusals -------------------------------------------------------------------------------------------------------

PATTERN = SparsityPattern.from_mask(torch.eye(3, 4))
FILTER = SparsityPattern.from_mask(torch.ones(4, 2, 3, 3))


def linear(x: Any = (2, 4), weight: Any = (3, 4), pattern: Any = PATTERN, bias: Any = None, **more: Any) -> Any:
    x, weight, bias = (torch.zeros(v) if isinstance(v, tuple) else v for v in (x, weight, bias))
    return ops.masked_linear(x, weight, pattern, bias, **more)


def picture(
    x: Any = (1, 2, 5, 5), weight: Any = (4, 2, 3, 3), pattern: Any = FILTER, bias: Any = None, **more: Any
) -> Any:
    x, weight, bias = (torch.zeros(v) if isinstance(v, tuple) else v for v in (x, weight, bias))
    return ops.masked_conv2d(x, weight, pattern, bias, **more)


REFUSED: list[tuple[Any, str]] = [
    (lambda: linear(x=(2, 5)), "x has shape (2, 5); the mask takes (..., 4)"),
    (lambda: linear(x=()), "x has shape ()"),
    (lambda: linear(weight=(4, 3)), "weight has shape (4, 3); the mask has shape (3, 4) and keeps 3"),
    (lambda: linear(weight=(4,)), "weight has shape (4,)"),
    (lambda: linear(bias=(4,)), "bias has shape (4,); the mask has 3 outputs"),
    (lambda: linear(bias=(1, 3)), "bias has shape (1, 3)"),
    (lambda: linear(pattern=torch.eye(3, 4)), "make one with edgeprune.SparsityPattern.from_mask"),
    (lambda: linear(pattern=FILTER), "must have 2 dimensions"),
    (lambda: linear(x=torch.zeros(2, 4).double()), "they must have one type"),
    (lambda: linear(x=torch.zeros(2, 4).int(), weight=torch.zeros(3, 4).int()), "floating-point"),
    (lambda: linear(x=torch.zeros(2, 4, device="meta")), "they must be on one device"),
    (lambda: linear(x=torch.zeros(2, 4).to_sparse()), "dense floating-point"),
    (lambda: linear(path="fast"), "path is 'fast'"),
    (lambda: linear(x=torch.ones(2, 4).double(), weight=torch.ones(3, 4).double(), path="fast"), "path is 'fast'"),
    (lambda: picture(x=(1, 3, 5, 5)), "x has shape (1, 3, 5, 5); the mask takes (N, 2, H, W)"),
    (lambda: picture(x=(2, 5)), "x has shape (2, 5)"),
    (lambda: picture(x=(1, 2, 2, 5)), "is smaller than the filter"),
    (lambda: picture(padding=-1), "padding is -1; it must not be negative"),
    (lambda: picture(padding=(0, -1)), "must not be negative"),
    (lambda: picture(padding="full"), "padding is 'full'"),
    (lambda: picture(padding="same", stride=2), "asks for stride 1"),
    (lambda: picture(stride=(1, 2, 3)), "stride is (1, 2, 3)"),
    (lambda: picture(stride=0), "stride 0"),
    (lambda: picture(dilation=0), "dilation 0"),
    (lambda: picture(groups=3), "groups"),
    (lambda: picture(groups=0), "groups"),
    (lambda: picture(pattern=PATTERN), "must have 4 dimensions"),
    (lambda: SparsityPattern.from_mask(torch.ones(3)), "neither (outputs, inputs) nor"),
    (lambda: SparsityPattern.from_mask(torch.ones(0, 3)), "must be 1 or more"),
    (lambda: SparsityPattern.from_bits(torch.zeros(1, dtype=torch.uint8), (3, 3)), "mask"),
    (lambda: SparsityPattern.from_bits(torch.tensor([0x80], dtype=torch.uint8), (1, 7)), "behind the last weight"),
    (lambda: SparsityPattern.from_bits(torch.zeros(2), (3, 3)), "uint8"),
    (lambda: PATTERN.compact(torch.zeros(4, 3)), "shape (4, 3)"),
    (lambda: PATTERN.dense(torch.zeros(4)), "shape (4,)"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_refusals_are_sentences(call: Any, sentence: str) -> None:
    with pytest.raises(EdgePruneError) as caught:
        call()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
