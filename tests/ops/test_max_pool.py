"""Max pooling: by hand, every variant against torch to the bit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import max_pool2d

from edgeprune import _core, ops
from edgeprune.errors import EdgePruneError

NAN = float("nan")


def test_by_hand():
    x = torch.tensor([[1.0, 5.0, 2.0], [5.0, 0.0, 3.0]])
    out, where = ops.max_pool(x, 2)
    assert out.tolist() == [[5.0, 5.0]]
    assert where.tolist() == [[1, 0]]  # of the two fives of the first window the upper one
    dx = ops.max_pool_backward(torch.tensor([[2.0, 3.0]]), where, (2, 3), 2)
    assert dx.tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("variant", _core.present_variants())
@pytest.mark.parametrize("width", [5, 15, 16, 17, 20, 21, 36, 70])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_variant_is_torch_to_the_bit(variant, width, size):
    torch.manual_seed(width)
    for x in (torch.randn(3, 4, 6, width), torch.randint(0, 3, (3, 4, 6, width)).float()):
        x = x.index_fill(3, torch.tensor([1]), NAN) if size == 2 else x
        if size == 3:  # one picture has a NaN here and there, with either sign, and the others none
            x[1, 2][torch.rand(6, width) < 0.1] = NAN
            x[1, 2][torch.rand(6, width) < 0.05] = -NAN
        x[0, 0, 0, 0], x[0, 1, :, :] = float("inf"), -float("inf")
        theirs = x.clone().requires_grad_()
        expected = max_pool2d(theirs, size, 1)
        out, where = ops.max_pool(x, size, variant)
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))
        grad = torch.randn(out.shape)
        expected.backward(grad)
        assert torch.equal(ops.max_pool_backward(grad, where, tuple(x.shape), size, variant), theirs.grad)


def test_threads_change_nothing():
    x = torch.randn(64, 8, 28, 28)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.max_pool(x, 3)
        torch.set_num_threads(3)
        three = ops.max_pool(x, 3)
        assert torch.equal(one[0], three[0])
        assert torch.equal(one[1], three[1])
    finally:
        torch.set_num_threads(before)


def test_views_and_empty_batches():
    x = torch.randn(2, 3, 12, 9)
    out, where = ops.max_pool(x.transpose(2, 3), 3)
    assert torch.equal(out, max_pool2d(x.transpose(2, 3), 3, 1))
    assert where.shape == out.shape
    turned = torch._neg_view(x)
    assert torch.equal(ops.max_pool(turned, 3)[0], max_pool2d(-x, 3, 1))
    backward = [ops.max_pool_backward(g, where, (2, 3, 9, 12), 3) for g in (torch._neg_view(out), -out)]
    assert torch.equal(*backward)
    assert ops.max_pool(torch.empty(0, 3, 4, 4), 2)[0].shape == (0, 3, 3, 3)


def test_a_place_that_is_none_gives_its_gradient_to_nobody():
    where = torch.full((3, 3), 200, dtype=torch.uint8)
    assert not ops.max_pool_backward(torch.ones(3, 3), where, (4, 4), 2).any()


@pytest.mark.parametrize(
    ("x", "size", "sentence"),
    [
        (torch.zeros(4, 4), 5, "a window of 5 does not lie in"),
        (torch.zeros(4, 4), 0, "a window of 0"),
        (torch.zeros(20, 20), 16, "give 1 to 15"),
        (torch.zeros(4, 4).double(), 2, "float64"),
        (torch.zeros(4), 2, "height, width"),
        (torch.zeros(4, 4, device="meta"), 2, "on meta"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(x, size, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        ops.max_pool(x, size)


@pytest.mark.parametrize(
    ("grad", "where", "sentence"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 3, dtype=torch.uint8), "grad has shape"),
        (torch.zeros(3, 3), torch.zeros(4, 3, dtype=torch.uint8), "where has shape"),
        (torch.zeros(3, 3), torch.zeros(3, 3), "uint8"),
    ],
)
def test_gradients_that_do_not_fit_are_one_sentence(grad, where, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        ops.max_pool_backward(grad, where, (4, 4), 2)
