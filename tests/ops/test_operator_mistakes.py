"""Tensors without values, on two devices, and sizes that nothing backs: one sentence from every operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeprune import EdgePruneError, ops

X, ZEROS, MASK = torch.ones(8), torch.zeros(8), torch.full((1,), 255, dtype=torch.uint8)
CALLS = {
    "select_largest": lambda b: ops.select_largest([b], 2),
    "select_above": lambda b: ops.select_above([b], 2.0),
    "pack": lambda b: ops.pack(b, None, "f32"),
    "pack-mask": lambda b: ops.pack(X, b, "f32"),
    "mask_count": ops.mask_count,
    "mask_to_indices": lambda b: ops.mask_to_indices(b, 8),
    "mask_from_indices": lambda b: ops.mask_from_indices(b, 8),
    "feedback": lambda b: ops.pack_with_feedback_(b, ZEROS.clone(), 2),
    "residual": lambda b: ops.pack_with_feedback_(X, b, 2),
    "unpack": lambda b: ops.unpack(b, None, None, 2, "f32"),
    "accumulate": lambda b: ops.accumulate_(b, ZEROS.clone(), MASK, None, None, "f32", 1.0),
    "encode_gaps": lambda b: ops.encode_gaps(b, 8),
    "decode_gaps": lambda b: ops.decode_gaps(b, 2, 8, 1),
    "gather-index": lambda b: ops.gather(X, [b]),
    "scatter-total": lambda b: ops.scatter_accumulate_(b, ZEROS.clone(), X, [None], 1.0),
    "scatter-x": lambda b: ops.scatter_accumulate_(ZEROS.clone(), ZEROS.clone(), b, [None], 1.0),
    "finish-base": lambda b: ops.merge_finish(b, ZEROS, X),
    "finish-count": lambda b: ops.merge_finish(X, ZEROS, b),
}


@pytest.mark.parametrize("kind", ["meta", "sparse"])
@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_without_values_is_refused(name, kind):
    with pytest.raises(EdgePruneError):
        CALLS[name](X.to("meta") if kind == "meta" else X.to_sparse())


@pytest.mark.parametrize("name", ["pack", "pack-mask", "feedback", "residual", "max_pool", "exact"])
def test_a_fake_tensor_is_refused(name):
    more = {
        "max_pool": lambda b: ops.max_pool(b.view(2, 4), 2),
        "exact": lambda b: ops.accumulate_exact_(torch.zeros(8, dtype=torch.int64), None, b, 1.0, 1, 8),
    }
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for x in (X, mode.from_tensor(X)):
            with pytest.raises(EdgePruneError, match="a FakeTensor tensor on cpu"):
                (CALLS | more)[name](x)


WRITTEN = {
    "residual": lambda x: ops.pack_with_feedback_(X, x, 2),
    "out": lambda x: ops.unpack(*ops.pack(X, None), None, 8, "f32", out=x),
    "accumulate": lambda x: ops.accumulate_(x, ZEROS.clone(), *ops.pack(X, None), None, "f32", 1.0),
    "scatter": lambda x: ops.scatter_accumulate_(ZEROS.clone(), x, X, [None], 1.0),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_autograd_hears_that_what_it_saved_was_written_to(name):
    weight, saved = torch.ones(8, requires_grad=True), torch.zeros(8)
    loss = (weight * saved).sum()
    WRITTEN[name](saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", WRITTEN)
def test_inference_tensors_are_written_to(name):
    with torch.inference_mode():
        sums = torch.zeros(8)
        WRITTEN[name](sums)
    assert sums.is_inference()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_negated_view_is_not_written_to(name):
    with pytest.raises(EdgePruneError, match="is a negated view of other memory"):
        WRITTEN[name](torch._neg_view(torch.zeros(8)))


@pytest.mark.parametrize("name", ["gather", "channel_norms"])
def test_sparse_tensors_have_no_channels(name):
    with pytest.raises(EdgePruneError, match="give a dense one"):
        ops.gather(X.to_sparse(), [None]) if name == "gather" else ops.channel_norms(X.to_sparse(), 0, 1)


@pytest.mark.parametrize("n", [2**60, 2**70, -1, 1.5, "a", None], ids=str)
def test_sizes_that_nothing_backs_are_refused(n):
    for call in (
        lambda: ops.unpack(MASK, None, None, n, "f32"),
        lambda: ops.unpack(MASK, None, MASK, n, "f32"),
        lambda: ops.mask_from_indices(torch.tensor([1]), n),
        lambda: ops.mask_to_indices(MASK, n),
        lambda: ops.encode_gaps(MASK, n),
        lambda: ops.decode_gaps(MASK, 1, n, 1),
        lambda: ops.select_largest([X], n),
    ):
        with pytest.raises(EdgePruneError):
            call()


@pytest.mark.parametrize("sizes", [(3, 2, 2), (2, 3, 2), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_unequal_shapes_end_no_merge(sizes, dtype):
    base, total, count = (torch.ones(n, dtype=dtype) for n in sizes)
    for call in (ops.merge_finish_many, ops.merge_finish_many_):
        with pytest.raises(EdgePruneError):
            call([base], [total], [count])
    assert torch.equal(total, torch.ones_like(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_indices_weights_and_numbers_of_wrong_types_are_refused(dtype):
    x = torch.ones(3, 4, dtype=dtype)
    for call, sentence in (
        (lambda: ops.gather(x, [[0, 1], None]), "an index must be a one-dimensional int64 tensor"),
        (lambda: ops.scatter_accumulate_(x.clone(), x.clone(), x[:2], [[0, 1], None], 1.0), "an index must be"),
        (lambda: ops.scatter_accumulate_(x.clone(), x.clone(), x, [None, None], "a"), "weight is 'a'; give a number"),
        (lambda: ops.channel_norms(torch.complex(x, x), 0, 1), "give real numbers"),
        (lambda: ops.channel_norms(x, 0, 3.0), "only 1 and 2 are known"),
    ):
        with pytest.raises(EdgePruneError, match=sentence):
            call()
    assert ops.channel_norms(x, 0, 2.0).tolist() == [2, 2, 2]


PACKED = ops.pack(X, None)
WORDS = torch.zeros(8, dtype=torch.int64)
TENSORS = {
    **{name: call for name, call in CALLS.items() if name != "gather-index"},
    "gather": lambda b: ops.gather(b, [None]),
    "norms": lambda b: ops.channel_norms(b, 0, 1),
    "finish-out": lambda b: ops.merge_finish_many_([X], [X], [X], [b]),
    "rows": lambda b: ops.select_largest(b, 2),
    "exact-words": lambda b: ops.accumulate_exact_(b, None, X, 1.0, 1, 8),
    "exact-values": lambda b: ops.accumulate_exact_(WORDS, None, b, 1.0, 1, 8),
    "max_pool": lambda b: ops.max_pool(b, 2),
    "max_pool_backward": lambda b: ops.max_pool_backward(b, b, (3, 3), 2),
}


@pytest.mark.parametrize("bad", ["a", 3, [1.0], np.ones(8, np.float32)], ids=["text", "number", "list", "numpy"])
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_tensor_is_one_sentence(name, bad):
    with pytest.raises(EdgePruneError) as caught:
        TENSORS[name](bad)
    assert "tensor" in str(caught.value) and "\n" not in str(caught.value)


NUMBERS = {
    "threshold": lambda b: ops.select_above([X], b),
    "weight": lambda b: ops.accumulate_(ZEROS.clone(), ZEROS.clone(), *PACKED, None, "f32", b),
    "scatter": lambda b: ops.scatter_accumulate_(ZEROS.clone(), ZEROS.clone(), X, [None], b),
    "factor": lambda b: ops.accumulate_exact_(WORDS, None, X, b, 1, 8),
    "exact weight": lambda b: ops.accumulate_exact_(WORDS, None, X, 1.0, b, 8),
    "bits": lambda b: ops.accumulate_exact_(WORDS, None, X, 1.0, 1, b),
    "k": lambda b: ops.pack_with_feedback_(X, ZEROS.clone(), b),
    "coding": lambda b: ops.pack(X, None, b),
    "count": lambda b: ops.decode_gaps(MASK, b, 8, 1),
    "parameter": lambda b: ops.decode_gaps(MASK, 1, 8, b),
    "dim": lambda b: ops.channel_norms(X, b, 1),
    "size": lambda b: ops.max_pool(X.view(2, 4), b),
    "shape": lambda b: ops.max_pool_backward(X.view(2, 4), X.view(2, 4), b, 2),
    "indices": lambda b: ops.gather(X, b),
}


@pytest.mark.parametrize("bad", ["a", 10**400, [], {}], ids=["text", "enormous", "list", "dict"])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_one_sentence(name, bad):
    with pytest.raises(EdgePruneError) as caught:
        NUMBERS[name](bad)
    assert "\n" not in str(caught.value) and not WORDS.any()


def test_numbers_of_numpy_are_numbers():
    x = torch.arange(8.0)
    for k in (3, np.int64(3)):
        residual = torch.zeros(8)
        mask, _ = ops.pack_with_feedback_(x, residual, k)
        assert ops.mask_to_indices(mask, 8).tolist() == [5, 6, 7]
    assert torch.equal(ops.select_above([x], np.float32(6))[0], ops.select_above([x], 6.0)[0])
    assert ops.channel_norms(x.view(2, 4).double(), np.int64(0), 1).tolist() == [6, 22]
    assert ops.max_pool(x.view(2, 4), np.int64(2))[0].tolist() == [[5, 6, 7]]
