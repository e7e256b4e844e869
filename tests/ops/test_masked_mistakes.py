"""What a user gives the masked operators by mistake: one sentence each, the same on both paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import edgeprune
from edgeprune import EdgePruneError, SparsityPattern, ops

LINEAR, CONV = SparsityPattern.from_mask(torch.ones(2, 3)), SparsityPattern.from_mask(torch.ones(4, 3, 3, 3))
X, W, PICTURE, FILTER = torch.ones(1, 3), torch.ones(2, 3), torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)


@pytest.mark.parametrize("bad", [(1.5, 2), 1.5, None, "a", (1, 2, 3), [], 2**40, 2**70, (1, 2**70)], ids=str)
@pytest.mark.parametrize("which", ["stride", "padding", "dilation"])
def test_a_stride_is_whole_numbers(which, bad):
    with pytest.raises(EdgePruneError, match=f"{which} is "):
        ops.masked_conv2d(PICTURE, FILTER, CONV, **{which: bad})


@pytest.mark.parametrize("value", [2, (2,), [2, 2], np.int64(2), (np.int64(2), 2), torch.Size([2, 2])], ids=repr)
@pytest.mark.parametrize("which", ["stride", "padding", "dilation"])
def test_whole_numbers_of_any_make(which, value):
    expected = functional.conv2d(PICTURE, FILTER, **{which: 2})
    torch.testing.assert_close(ops.masked_conv2d(PICTURE, FILTER, CONV, **{which: value}), expected)


@pytest.mark.parametrize(
    "bad", [None, [[1.0]], np.ones((2, 3)), "a", 3.0], ids=["none", "list", "numpy", "text", "number"]
)
def test_what_is_no_tensor_is_one_sentence(bad):
    calls = [
        lambda: ops.masked_linear(bad, W, LINEAR),
        lambda: ops.masked_linear(X, bad, LINEAR),
        lambda: ops.masked_conv2d(bad, FILTER, CONV),
        lambda: ops.masked_conv2d(PICTURE, bad, CONV),
        lambda: SparsityPattern.from_mask(bad),
        lambda: SparsityPattern.from_bits(bad, (2, 3)),
    ]
    if bad is not None:
        calls += [lambda: ops.masked_linear(X, W, LINEAR, bad), lambda: ops.masked_conv2d(PICTURE, FILTER, CONV, bad)]
    for call in calls:
        with pytest.raises(EdgePruneError, match="tensor"):
            call()


@pytest.mark.parametrize("bad", [W.to_sparse(), W.to("meta")], ids=["sparse", "meta"])
def test_masks_and_weights_have_values(bad):
    calls = [lambda: SparsityPattern.from_mask(bad), lambda: ops.masked_linear(X, bad, LINEAR)]
    for call in [*calls, lambda: ops.masked_linear(bad, W, LINEAR)]:
        with pytest.raises(EdgePruneError):
            call()


@pytest.mark.parametrize("bad", ["x", None, 1.5, 0, -1, []], ids=str)
def test_groups_are_a_whole_number(bad):
    with pytest.raises(EdgePruneError, match="groups is "):
        ops.masked_conv2d(PICTURE, FILTER, CONV, groups=bad)
    with pytest.raises(EdgePruneError, match="groups is "):
        edgeprune.nn.MaskedConv2d(3, 4, 3, CONV, groups=bad)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_groups_of_any_make(path):
    weight = torch.ones(4, 1, 3, 3)
    pattern, x = SparsityPattern.from_mask(weight), torch.randn(1, 2, 5, 5)
    expected = functional.conv2d(x, weight, groups=2)
    torch.testing.assert_close(ops.masked_conv2d(x, weight, pattern, groups=np.int64(2), path=path), expected)
    layer = edgeprune.nn.MaskedConv2d(2, 4, 3, pattern, groups=np.int64(2), path=path)
    assert type(layer.groups) is int and layer(x).shape == expected.shape


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("shape", [(1, 3, 0, 8), (1, 3, 8, 0), (3, 0, 8)], ids=str)
def test_a_picture_without_pixels_is_refused_on_either_path(shape, path):
    with pytest.raises(EdgePruneError, match="no pixels"):
        ops.masked_conv2d(torch.ones(shape), FILTER, CONV, padding=2, path=path)


def test_infinite_inputs_count_for_nothing_under_dropped_weights_as_documented():
    nothing = SparsityPattern.from_mask(torch.zeros(2, 3))
    x, bias = torch.full((1, 3), float("inf")), torch.tensor([1.0, 2.0])
    assert ops.masked_linear(x, W, nothing, bias, path="sparse").tolist() == [[1.0, 2.0]]
    assert bool(ops.masked_linear(x, W, nothing, bias, path="dense").isnan().all())
