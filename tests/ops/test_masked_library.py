"""The masked operators under the dispatcher: opcheck, gradcheck in double, the compiler, transforms, fake tensors."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from masked_cases import Case, Made, make
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from edgeprune import SparsityPattern, ops

CASE = Case(2, 6, 4, (5, 6), (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, density=0.4)


def arguments(made: Made) -> tuple[Any, ...]:
    return made.compiled.tensors, list(made.compiled.filter), list(made.case.padding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    made = make(CASE)
    x, weight, bias, dy = (t.to(dtype).requires_grad_() for t in (made.x, made.weight, made.bias, made.dy))
    library, rest = torch.ops.edgeprune, arguments(made)
    torch.library.opcheck(library.masked_conv2d.default, (x, weight, bias, *rest))
    torch.library.opcheck(library.masked_conv2d.default, (x, weight, None, *rest))
    torch.library.opcheck(library.masked_conv2d_input_gradient.default, (dy, weight, *rest, list(made.case.size)))
    torch.library.opcheck(library.masked_conv2d_weight_gradient.default, (x, dy, *rest))


def test_gradients_of_the_operators_in_double() -> None:
    made = make(CASE)
    rest = arguments(made)
    given = tuple(t.double().requires_grad_() for t in (made.x, made.weight, made.bias))
    product = lambda x, weight, bias: torch.ops.edgeprune.masked_conv2d(x, weight, bias, *rest)  # noqa: E731
    assert torch.autograd.gradcheck(product, given)
    assert torch.autograd.gradgradcheck(product, given)


def test_gradients_of_the_functions_in_double() -> None:
    made = make(CASE)
    dense = made.pattern.dense(made.weight).double().requires_grad_()
    x, bias = made.x.double().requires_grad_(), made.bias.double().requires_grad_()

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, made.pattern, bias, (2, 1), (1, 2), (1, 2), 2)

    assert torch.autograd.gradcheck(product, (x, made.pattern.compact(dense).detach().requires_grad_(), bias))
    assert torch.autograd.gradcheck(product, (x, dense, bias))


@pytest.mark.parametrize("linear", [False, True])
def test_second_derivatives_of_the_quick_way(linear: bool) -> None:
    """In float32, against the dense product in double."""
    made = make(Case(4, 7, 5) if linear else CASE)
    case = made.case

    def product(x: Tensor, weight: Tensor) -> Tensor:
        if linear:
            pattern = SparsityPattern.from_mask(made.mask[:, :, 0, 0])
            return ops.masked_linear(x[:, :, 0, 0], weight, pattern, path="sparse")[:, :, None, None]
        return ops.masked_conv2d(
            x, weight, made.pattern, None, case.stride, case.padding, case.dilation, case.groups, path="sparse"
        )

    def second(x: Tensor, weight: Tensor, dy: Tensor, product: Any) -> tuple[Tensor, ...]:
        x, weight, dy = (t.detach().requires_grad_() for t in (x, weight, dy))
        dx, dw = torch.autograd.grad(product(x, weight), (x, weight), dy, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.square().sum(), (x, weight, dy))

    got = second(made.x, made.weight, made.dy, product)
    exact = second(
        made.x.double(),
        made.weight.double(),
        made.dy.double(),
        lambda x, weight: case.conv(x, made.pattern.dense(weight)),
    )
    for one, other in zip(got, exact, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("path", ["auto", "sparse", "dense"])
def test_under_torch_compile(path: str) -> None:
    made = make(CASE)
    pattern = SparsityPattern.from_mask(torch.rand(3, 6) < 0.5)

    def network(x: Tensor, weight: Tensor, last: Tensor) -> Tensor:
        y = ops.masked_conv2d(x, weight, made.pattern, made.bias, (2, 1), (1, 2), (1, 2), 2, path=path).relu()
        return ops.masked_linear(y[..., :6], last, pattern, path=path).square().sum()

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    results = []
    for run in (network, compiled):
        given = [t.clone().requires_grad_() for t in (made.x, made.weight, torch.linspace(-1, 1, pattern.kept))]
        loss = run(*given)
        results.append((loss.detach(), *torch.autograd.grad(loss, given)))
    for eager, other in zip(*results, strict=True):
        assert torch.allclose(eager, other, rtol=1e-6, atol=1e-6)


def test_fake_tensors_give_shapes_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    made = make(CASE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, weight = torch.empty(9, 6, 5, 6), torch.empty(made.pattern.kept)
        y = ops.masked_conv2d(x, weight, made.pattern, None, (2, 1), (1, 2), (1, 2), 2, path="sparse")
        assert y.shape == (9, *made.exact[0].shape[1:])


@pytest.mark.parametrize("linear", [False, True])
def test_jacobians_and_hessians_of_many_gradients_at_once(linear: bool) -> None:
    made = make(Case(4, 7, 5) if linear else CASE)
    case = made.case

    def product(x: Tensor, weight: Tensor) -> Tensor:
        if linear:
            pattern = SparsityPattern.from_mask(made.mask[:, :, 0, 0])
            return ops.masked_linear(x[:, :, 0, 0], weight, pattern, path="sparse")
        return ops.masked_conv2d(
            x, weight, made.pattern, None, case.stride, case.padding, case.dilation, case.groups, path="sparse"
        )

    def total(x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight).pow(3).sum()

    given = made.x[:1], made.weight
    for function, derive in (
        (product, torch.autograd.functional.jacobian),
        (total, torch.autograd.functional.hessian),
    ):
        got, expected = derive(function, given, vectorize=True), derive(function, given)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward-mode formulas
def test_function_transforms() -> None:
    pattern = SparsityPattern.from_mask(torch.eye(4))
    x, weight = torch.randn(3, 4), torch.randn(4)
    loss = lambda weight: ops.masked_linear(x, weight, pattern, path="sparse").square().sum()  # noqa: E731
    assert torch.allclose(torch.func.grad(loss)(weight), 2 * weight * x.square().sum(0), rtol=1e-5)
    every = torch.func.vmap(lambda weight: ops.masked_linear(x, weight, pattern))(torch.stack([weight, 2 * weight]))
    assert torch.allclose(every[1], 2 * x * weight)
    make = lambda weight: ops.masked_linear(x, weight, SparsityPattern.from_mask(torch.eye(4)))  # noqa: E731
    assert torch.allclose(torch.func.jvp(make, (weight,), (torch.ones(4),))[1], x)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_forward_derivatives_are_not_lost(path: str) -> None:
    pattern = SparsityPattern.from_mask(torch.eye(4))
    x, along, weight = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4)
    for given in (weight, weight.clone().requires_grad_()):
        with forward_ad.dual_level():
            y = ops.masked_linear(forward_ad.make_dual(x, along), given, pattern, path=path)
            tangent = forward_ad.unpack_dual(y).tangent
        assert tangent is not None and torch.allclose(tangent, along * weight)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_a_trace_follows_its_inputs(path: str) -> None:
    made = make(Case(2, 3, 4, (5, 5), (3, 3)))
    call = lambda x, weight: ops.masked_conv2d(x, weight, made.pattern, path=path)  # noqa: E731
    other, weight = torch.randn_like(made.x), torch.randn_like(made.weight)
    for given in (made.weight, made.weight.clone().requires_grad_()):
        traced = torch.jit.trace(call, (made.x, given))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        for each in (traced, torch.jit.load(file)):
            assert torch.allclose(each(other, weight), call(other, weight), atol=1e-5)


def test_dispatch_modes_see_the_operators() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    made = make(Case(3, 4, 2))
    with Record():
        ops.masked_conv2d(made.x, made.weight, made.pattern, path="sparse")
    assert "edgeprune.masked_conv2d.default" in seen


def test_flops_are_counted_of_kept_weights() -> None:
    """By hand: a quarter of 2 x 16 x 8 x 9 weights at 4 x 8 x 8 places, three products."""
    pattern = SparsityPattern.from_mask(torch.arange(16 * 8 * 9).reshape(16, 8, 3, 3) % 4 == 0)
    x = torch.randn(4, 8, 8, 8, requires_grad=True)
    weight = torch.randn(pattern.kept, requires_grad=True)
    with FlopCounterMode(display=False) as sparse:
        ops.masked_conv2d(x, weight, pattern, padding=1, path="sparse").sum().backward()
    assert sparse.get_total_flops() == 3 * 2 * 16 * 8 * 9 // 4 * 4 * 8 * 8
    one = SparsityPattern.from_mask(torch.eye(6, 5))
    with FlopCounterMode(display=False) as linear:
        ops.masked_linear(torch.randn(3, 5), torch.randn(one.kept), one, path="sparse")
    assert linear.get_total_flops() == 2 * 5 * 3
