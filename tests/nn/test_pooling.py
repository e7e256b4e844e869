"""Stride-one max pooling is torch's, values and gradients, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from edgeprune.nn.pooling import MaxPool2d, _MaxPool


@settings(deadline=None)
@given(n=st.integers(0, 3), c=st.integers(1, 3), h=st.integers(5, 9), w=st.integers(5, 9), size=st.integers(2, 5),
       few=st.booleans(), seed=st.integers(0, 9))  # fmt: skip
def test_values_and_gradients_are_torchs(n, c, h, w, size, few, seed):
    torch.manual_seed(seed)
    # Few distinct values make many ties, which the first of a window wins.
    x = torch.randint(0, 3, (n, c, h, w)).float() if few else torch.randn(n, c, h, w)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = MaxPool2d(size, 1)(a), nn.MaxPool2d(size, 1)(b)
    assert torch.equal(ours, theirs)
    grad = torch.randn(ours.shape)
    ours.backward(grad)
    theirs.backward(grad)
    assert torch.equal(a.grad, b.grad)


def test_the_fast_way_is_taken_where_it_can_be(monkeypatch):
    taken = []
    apply = _MaxPool.apply
    monkeypatch.setattr(_MaxPool, "apply", lambda x, size: taken.append(size) or apply(x, size))
    x = torch.randn(1, 2, 8, 8)
    for layer in (MaxPool2d(3, 1), MaxPool2d(3), MaxPool2d(3, 1, padding=1), MaxPool2d((3, 2), 1)):
        assert torch.equal(layer(x), nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)(x))
    assert taken == [3]


def test_a_window_larger_than_the_picture_is_torchs_error():
    with pytest.raises(RuntimeError):
        MaxPool2d(5, 1)(torch.randn(1, 1, 4, 4))


def test_a_nan_comes_through():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = float("nan")
    assert bool(MaxPool2d(3, 1)(x).isnan().all())


def test_gradients_of_gradients_are_torchs():
    x = torch.randn(2, 3, 7, 8)
    found = []
    for layer in (MaxPool2d(3, 1), nn.MaxPool2d(3, 1)):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(layer(given.square()).square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given, create_graph=True)
        found.append((first, second, *torch.autograd.grad(second.square().sum(), given)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)


def test_many_gradients_at_once_are_torchs():
    x = torch.rand(2, 3, 5, 6)
    functions = [lambda a, pool=pool: pool(a).pow(3).sum((0, 1, 3)) for pool in (MaxPool2d(3, 1), nn.MaxPool2d(3, 1))]
    ours, theirs = (torch.autograd.functional.jacobian(f, x, vectorize=True) for f in functions)
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (torch.autograd.functional.hessian(lambda a, f=f: f(a).sum(), x, vectorize=True) for f in functions)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_transforms_forward_derivatives_and_traces_are_torchs():
    x, other, layer, theirs = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6), MaxPool2d(2, 1), nn.MaxPool2d(2, 1)
    assert torch.equal(torch.func.vmap(layer)(x[None])[0], theirs(x))
    grads = [torch.func.grad(lambda x, each=each: each(x).square().sum())(x) for each in (layer, theirs)]
    assert torch.equal(*grads)
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(each(forward_ad.make_dual(x, other))).tangent for each in (layer, theirs)]
    assert torch.equal(*tangents)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(layer, x)(other), theirs(other))


def test_fake_tensors_have_shapes_alone():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for x in (mode.from_tensor(torch.randn(1, 2, 6, 6)), torch.randn(1, 2, 6, 6)):
            assert MaxPool2d(2, 1)(x).shape == (1, 2, 5, 5)
