"""The operators as users call them: results, refusals, gradients, the dispatcher and the compiler."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from channel_cases import make_case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from edgeprune import EdgePruneError, ops


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_gather_by_hand() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert ops.gather(x, [positions(2, 0), positions(1, 3)]).tolist() == [[9, 11], [1, 3]]
    assert ops.gather(x, [None, positions(3, 3)]).tolist() == [[3, 3], [7, 7], [11, 11]]
    assert ops.gather(torch.tensor(5.0), []).item() == 5


def test_merge_by_hand() -> None:
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    total, count = torch.zeros(2, 2), torch.zeros(2, 2)
    ops.scatter_accumulate_(total, count, torch.tensor([[10.0, 20.0]]), [positions(0), None], 1.0)
    ops.scatter_accumulate_(total, count, torch.tensor([[40.0], [50.0]]), [None, positions(1)], 3.0)
    assert total.tolist() == [[10, 140], [0, 150]]
    assert count.tolist() == [[1, 4], [0, 3]]
    assert ops.merge_finish(base, total, count).tolist() == [[10, 35], [3, 50]]


def test_norms_by_hand() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 2.0]])
    assert ops.channel_norms(x, 0, 1).tolist() == [7, 2]
    assert ops.channel_norms(x, 0, 2).tolist() == [5, 2]
    assert ops.channel_norms(x, 1, 1).tolist() == [3, 6]
    assert ops.channel_norms(x.t(), -2, 1).tolist() == [3, 6]


def test_many_equals_one_by_one() -> None:
    cases = [make_case((n, n + 3, 3), 0.5, 0b11, n) for n in range(1, 30)]
    xs, indices = [x for x, _ in cases], [index for _, index in cases]
    subs = ops.gather_many(xs, indices)
    assert all(torch.equal(sub, ops.gather(x, index)) for sub, x, index in zip(subs, xs, indices, strict=True))
    totals, counts = [torch.zeros_like(x) for x in xs], [torch.zeros_like(x) for x in xs]
    ops.scatter_accumulate_many_(totals, counts, subs, indices, 2.0)
    merged = ops.merge_finish_many(xs, totals, counts)
    assert all(torch.equal(got, x) for got, x in zip(merged, xs, strict=True))  # 2x / 2, or the base
    turned = [torch.zeros(*total.shape[::-1]).permute(2, 1, 0).copy_(total) for total in totals]  # not contiguous
    outs = [torch.full_like(x, float("nan")) for x in xs]
    ops.merge_finish_many_(xs, totals, counts, outs)
    assert all(torch.equal(got, x) for got, x in zip(outs, xs, strict=True))
    for sums in (turned, totals):
        ops.merge_finish_many_(xs, sums, counts)
        assert all(torch.equal(got, x) for got, x in zip(sums, xs, strict=True))
    assert ops.gather_many([], []) == [] and ops.channel_norms_many([], [], 2) == []
    for dtype in (torch.float32, torch.float64):  # through the core, through the reference
        norms = ops.channel_norms_many([x.to(dtype) for x in xs], [i % 3 for i in range(len(xs))], 2)
        assert all(
            torch.equal(got, ops.channel_norms(x.to(dtype), i % 3, 2))
            for i, (got, x) in enumerate(zip(norms, xs, strict=True))
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16])
def test_other_types_go_through_the_reference(dtype: torch.dtype) -> None:
    x = torch.arange(24).reshape(4, 6).to(dtype)
    index = [positions(1, 3), positions(0, 5)]
    sub = ops.gather(x, index)
    assert sub.dtype is dtype and sub.tolist() == [[6, 11], [18, 23]]
    total, count = torch.zeros(4, 6, dtype=dtype), torch.zeros(4, 6)
    ops.scatter_accumulate_(total, count, sub, index, 2.0)
    assert total[1, 5] == 22 and total.count_nonzero() == 4 and count.sum() == 8
    assert ops.channel_norms(x, 0, 1).tolist() == [15, 51, 87, 123]


def test_parameters_and_views_with_any_layout() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 6, 3, 3))
    index = [positions(0, 3, 5), positions(1, 2), None, None]
    expected = weight.detach()[[0, 3, 5]][:, [1, 2]]
    with torch.no_grad():
        assert torch.equal(ops.gather(weight, index), expected)
        assert torch.equal(ops.gather(weight.to(memory_format=torch.channels_last), index), expected)
    assert not ops.channel_norms(weight, 0, 2).requires_grad


def test_gradient_of_gather() -> None:
    x = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    index = [positions(0, 0, 3), None, positions(1)]  # a repeated position adds up
    assert torch.autograd.gradcheck(lambda x: ops.gather(x, index), (x,))
    y = x.detach().float().requires_grad_()
    ops.gather(y, index).sum().backward()
    assert y.grad is not None and y.grad.sum(1)[:, 1].tolist() == [10, 0, 0, 5]


REFUSED: list[tuple[str, Any, str]] = [
    ("gather", lambda x: ops.gather(x, [None]), "1 indices for x of shape (3, 4)"),
    ("gather", lambda x: ops.gather(x, [positions(3), None]), "holds 3, which is outside 0..2"),
    ("gather", lambda x: ops.gather(x, [None, positions(-1)]), "the index of dimension 1 holds -1"),
    ("gather", lambda x: ops.gather(x, [positions(1).int(), None]), "one-dimensional int64"),
    ("gather", lambda x: ops.gather(x, [positions(1).reshape(1, 1), None]), "one-dimensional int64"),
    ("gather_many", lambda x: ops.gather_many([x, x], [[None, None]]), "xs has 2, indices has 1"),
    ("scatter", lambda x: scatter(x, [positions(1, 1), None]), "strictly increasing"),
    ("scatter", lambda x: scatter(x, [positions(1), None]), "does not fit"),
    ("scatter", lambda x: ops.scatter_accumulate_(x, x[:2], x, [None, None], 1.0), "must be the same"),
    ("channel_norms", lambda x: ops.channel_norms(x, 2, 1), "dim 2 does not exist in x of shape (3, 4)"),
    ("channel_norms", lambda x: ops.channel_norms(x, 0, 3), "only 1 and 2 are known"),
    ("merge_finish", lambda x: ops.merge_finish(x, x[:2], x), "must be the same"),
]


def scatter(x: torch.Tensor, index: list[torch.Tensor | None]) -> None:
    ops.scatter_accumulate_(x, torch.zeros_like(x), torch.ones(2, 4, dtype=x.dtype), index, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "call", "sentence"), REFUSED)
def test_refusals_are_sentences(name: str, call: Any, sentence: str, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 4, dtype=dtype)
    with pytest.raises(EdgePruneError) as caught:
        call(x)
    assert sentence in str(caught.value) and str(caught.value).startswith(name) and "\n" not in str(caught.value)
    assert x.count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_expanded_and_shared_memory_are_refused(dtype: torch.dtype) -> None:
    one, full, ones = torch.zeros(1, dtype=dtype).expand(4), torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    for total, count in ((one, full), (full, one)):
        with pytest.raises(EdgePruneError, match="is an expanded tensor whose elements share memory"):
            ops.scatter_accumulate_(total, count, ones, [None], 1.0)
    with pytest.raises(EdgePruneError, match="must not share memory"):
        ops.scatter_accumulate_(full, full, ones, [None], 1.0)
    room = torch.zeros(9, dtype=dtype)
    for total, count, x in (
        (room[:4], room[3:7], ones),
        (room[:4], full, room[3:7]),
        (full, room[3:7], room[:4]),
    ):
        with pytest.raises(EdgePruneError, match="must not share memory"):
            ops.scatter_accumulate_(total, count, x, [None], 1.0)
    assert not room.any() and not full.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_that_lie_between_each_others_elements_share_no_memory(dtype: torch.dtype) -> None:
    room = torch.zeros(4, 2, dtype=dtype)
    ops.scatter_accumulate_(room[:, 0], room[:, 1], torch.arange(1.0, 5.0, dtype=dtype), [None], 0.5)
    assert room.tolist() == [[0.5, 0.5], [1.0, 0.5], [1.5, 0.5], [2.0, 0.5]]


@pytest.mark.parametrize(
    "out", [torch.zeros(4), torch.zeros(8)[::2], torch.zeros(3, 5).double()], ids=["", "gaps", "f64"]
)
def test_a_merge_is_written_to_tensors_of_its_shape_alone(out: torch.Tensor) -> None:
    first, five = torch.zeros(5, dtype=out.dtype), torch.ones(5)
    with pytest.raises(EdgePruneError, match="they must be the same"):
        ops.merge_finish_many_([five, five], [five, five], [five, five], [first, out])
    assert not first.any() and not out.any()


def test_opcheck() -> None:
    index = [positions(0, 2), None, positions(1)]
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(3, 4, 2, dtype=dtype)
        part, total, count = torch.randn(2, 4, 1, dtype=dtype), torch.zeros(3, 4, 2, dtype=dtype), torch.zeros(3, 4, 2)
        library = torch.ops.edgeprune
        torch.library.opcheck(library.gather.default, (x.clone().requires_grad_(), index))
        torch.library.opcheck(library.channel_norms.default, (x, 1, 2))
        torch.library.opcheck(library.merge_finish.default, (x, total, count))
        torch.library.opcheck(library.scatter_accumulate_.default, (total, count, part, index, 2.0))


def test_under_torch_compile() -> None:
    def merged(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        part = ops.gather(x, [index, None]) * 2
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        ops.scatter_accumulate_(total, count, part, [index, None], 1.0)
        return ops.merge_finish(x, total, count) + ops.channel_norms(x, 0, 1)[:, None]

    x, index = torch.randn(6, 5), positions(1, 4)
    compiled = torch.compile(merged, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, index), merged(x, index))


def test_fake_tensors_give_shapes_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, index = torch.empty(6, 5, 3), torch.empty(2, dtype=torch.int64)
        assert ops.gather(x, [None, index, None]).shape == (6, 2, 3)
        assert ops.channel_norms(x, 1, 2).shape == (5,)


def test_works_in_a_forked_child_and_follows_the_thread_count() -> None:
    x = torch.randn(300, 1000)
    index = [torch.arange(0, 300, 2), torch.arange(0, 1000, 3)]
    expected = x.numpy()[np.ix_(index[0].numpy(), index[1].numpy())].tobytes()
    before = torch.get_num_threads()
    out = torch.empty(150, 334)
    try:
        torch.set_num_threads(3)
        assert ops.gather(x, index).numpy().tobytes() == expected
    finally:
        torch.set_num_threads(before)
    from edgeprune import _core  # in the child only the core is called: torch's own pool does not survive a fork

    child = os.fork()
    if child == 0:
        _core.gather_many([x], [index], [out], 3)
        os._exit(0 if out.numpy().tobytes() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- who else hears of a call ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_gather_under_transforms_forward_derivatives_and_traces() -> None:
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    part = lambda x: ops.gather(x, [positions(2, 0), None])  # noqa: E731
    assert torch.equal(torch.func.vmap(part)(torch.stack([x, other]))[1], other[[2, 0]])
    assert torch.func.grad(lambda x: part(x).sum())(x).tolist() == [[1] * 4, [0] * 4, [1] * 4]
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(part(forward_ad.make_dual(x, other))).tangent
    assert tangent is not None and torch.equal(tangent, other[[2, 0]])
    assert torch.equal(torch.jit.trace(part, x)(other), other[[2, 0]])
    with pytest.raises(EdgePruneError, match="holds 3, which is outside"):
        torch.func.vmap(lambda x: ops.gather(x, [positions(3), None]))(x[None])


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_norms_under_transforms_and_traces() -> None:
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    norms = lambda x: ops.channel_norms(x, 0, 1)  # noqa: E731
    expected = other.abs().sum(1)
    assert torch.allclose(torch.func.vmap(norms)(torch.stack([x, other]))[1], expected)
    assert torch.allclose(torch.jit.trace(norms, x)(other), expected)


def test_plain_tensors_among_fake_ones_have_shapes_alone() -> None:
    x = torch.randn(3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert ops.gather(x, [None, None]).shape == (3, 4)
        assert ops.channel_norms(x, 1, 2).shape == (4,)
        assert ops.merge_finish(x, x, x).shape == (3, 4)
