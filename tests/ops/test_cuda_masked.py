"""The CUDA kernels of the masked operators against double: run where a GPU is at hand, skipped elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_cases import needs_gpu
from hypothesis import given, settings
from masked_cases import CASES, Case, Made, cases, check, make
from torch import Tensor, nn

import edgeprune
from edgeprune import SparsityPattern
from edgeprune.ops import masked_conv2d, masked_cuda, masked_linear, reference

# What says nothing of the kernels' own arithmetic runs on the CPU too, so that the tests themselves have run.
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])

# Ends of what a block of threads takes: 128 positions, 32 to 128 rows, blocks of channels, few samples.
LARGER = [
    Case(8, 300, 130, density=0.2),
    Case(9, 300, 130, density=0.2),
    Case(127, 129, 33, density=0.5),
    Case(128, 257, 128, density=0.1),
    Case(129, 1000, 129, density=0.05),
    Case(500, 64, 1000, density=0.3),
    Case(33, 513, 4, density=0.9),
    Case(2, 64, 64, (32, 32), (3, 3), padding=(1, 1), density=0.1),
    Case(3, 70, 65, (14, 14), (3, 3), stride=(2, 2), padding=(1, 1), density=0.1),
    Case(9, 128, 32, (4, 4), (3, 3), padding=(1, 1), density=0.1),
    Case(2, 48, 130, (9, 33), (1, 1), density=0.2),
    Case(1, 3, 16, (60, 130), (7, 7), stride=(2, 2), padding=(3, 3), density=0.4),
    Case(130, 5, 6, (3, 2), (2, 2), density=0.6),
    Case(2, 64, 64, (12, 12), (3, 3), padding=(1, 1), groups=64, density=0.6),
]


def run_cuda(made: Made) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx, dw straight from the kernels, into memory that held NaN."""
    padding = made.case.padding
    x, weight, bias, dy = (t.cuda() for t in (made.x, made.weight, made.bias, made.dy))
    y, dx, dw = (torch.full(exact.shape, math.nan, device="cuda") for exact in made.exact)
    masked_cuda.forward(made.compiled, padding, x, weight, bias, y)
    masked_cuda.input_gradient(made.compiled, padding, dy, weight, dx)
    if made.x.numel():
        masked_cuda.weight_gradient(made.compiled, padding, x, dy, dw)
    else:
        dw.zero_()
    return y.cpu(), dx.cpu(), dw.cpu()


@needs_gpu
@pytest.mark.parametrize("case", CASES + LARGER, ids=str)
def test_within_the_derived_bound(case: Case) -> None:
    made = make(case)
    check(made, run_cuda(made))


@needs_gpu
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_any_shape_within_the_derived_bound(case: Case) -> None:
    made = make(case)
    check(made, run_cuda(made))


@needs_gpu
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_same_bits_every_time(case: Case) -> None:
    made = make(case)
    first = run_cuda(made)
    for _ in range(3):
        for got, expected in zip(run_cuda(made), first, strict=True):
            assert got.numpy().tobytes() == expected.numpy().tobytes()


@needs_gpu
def test_all_rows_in_one_block_of_channels_are_kept() -> None:
    # The fullest tile holds far more than the average, so that blocks must shrink.
    mask = torch.zeros(256, 2048, dtype=torch.bool)
    mask[:128, :256] = True
    weight, x = torch.randn(256, 2048), torch.randn(300, 2048)
    y = masked_linear(x.cuda(), weight.cuda(), SparsityPattern.from_mask(mask), path="sparse")
    expected = x.double() @ (weight * mask).double().T
    assert torch.allclose(y.cpu().double(), expected, atol=1e-3)


@needs_gpu
def test_a_patch_that_does_not_fit_goes_through_the_dense_product() -> None:
    mask = torch.rand(3, 2, 3, 3) < 0.5
    weight, x = torch.randn(3, 2, 3, 3), torch.randn(1, 2, 330, 330)
    how = {"dilation": 150, "stride": 2}
    y = masked_conv2d(x.cuda(), weight.cuda(), SparsityPattern.from_mask(mask), path="sparse", **how)
    expected = nn.functional.conv2d(x.double(), (weight * mask).double(), None, 2, 0, 150)
    assert torch.allclose(y.cpu().double(), expected, atol=1e-2)  # torch may use TF32 there


@needs_gpu
def test_gradients_of_an_operator_and_of_gradients() -> None:
    case = Case(9, 6, 8, (7, 6), (3, 3), stride=(2, 1), padding=(1, 1), density=0.4)
    made = make(case)
    leaves = [t.cuda().requires_grad_() for t in (made.x, made.weight, made.bias)]
    dense = [t.double().requires_grad_() for t in (made.x, made.pattern.dense(made.weight), made.bias)]

    def results(product: object, parts: list[Tensor]) -> list[Tensor]:
        y = product(*parts)  # type: ignore[operator]
        first = torch.autograd.grad(y.square().sum(), parts, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parts)
        return [y, *first, *second]

    got = results(
        lambda x, w, b: masked_conv2d(x, w, made.pattern, b, stride=case.stride, padding=case.padding, path="sparse"),
        leaves,
    )
    mask = made.mask.double()
    expected = results(lambda x, w, b: case.conv(x, w * mask, b), dense)
    for a, b in zip(got, expected, strict=True):
        b = made.pattern.compact(b) if b.shape == made.mask.shape else b
        assert torch.allclose(
            a.detach().cpu().double(), b.detach(), rtol=1e-3, atol=1e-2 * float(b.detach().abs().max())
        )


@needs_gpu
def test_a_stream_of_the_callers_own_and_a_captured_graph() -> None:
    made = make(LARGER[7])
    x, weight, bias = made.x.cuda(), made.weight.cuda(), made.bias.cuda()
    expected, *_ = run_cuda(made)
    y = torch.full(made.exact[0].shape, math.nan, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        masked_cuda.forward(made.compiled, made.case.padding, x, weight, bias, y)
    stream.synchronize()
    assert torch.equal(y.cpu(), expected)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked_cuda.forward(made.compiled, made.case.padding, x, weight, bias, y)
    y.fill_(math.nan)
    x.mul_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(
        y.cpu() - made.bias.view(1, -1, 1, 1), 2 * (expected - made.bias.view(1, -1, 1, 1)), atol=1e-3
    )


@on_both
def test_torch_compile_and_opcheck(device: str) -> None:
    made = make(Case(16, 33, 70, density=0.3))
    layer = edgeprune.nn.MaskedLinear(33, 70, made.mask.flatten(1), path="sparse").to(device)
    x = made.x.view(16, 33).to(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    compiled(x).sum().backward()
    assert layer.weight_kept.grad is not None and layer.weight_kept.grad.device.type == device
    conv = make(LARGER[8])
    args = (conv.x.to(device), conv.weight.to(device).requires_grad_(), conv.bias.to(device), conv.compiled.tensors)
    torch.library.opcheck(torch.ops.edgeprune.masked_conv2d.default, (*args, conv.compiled.filter, (1, 1)))


@on_both
def test_a_network_trains_as_its_dense_form_does(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    x, labels = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
    losses = []
    for where in ("cpu", device):
        twin = edgeprune.sparsify(model, density=0.2, path="sparse").to(where)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
        seen = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(twin(x.to(where)), labels.to(where))
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0][-1] < losses[0][0] and losses[0] == pytest.approx(losses[1], rel=1e-3)


@needs_gpu
def test_the_core_refuses_what_would_leave_its_memory() -> None:
    made = make(Case(20, 30, 40))
    x, weight = made.x.cuda(), made.weight.cuda()
    y = torch.empty(20, 40, 1, 1, device="cuda")
    for bad in (weight.double(), weight.cpu()):
        with pytest.raises(edgeprune.EdgePruneError, match="weights must be"):
            masked_cuda.forward(made.compiled, (0, 0), x, bad, None, y)
    with pytest.raises(edgeprune.EdgePruneError, match="x must be|x has shape"):
        masked_cuda.forward(made.compiled, (0, 0), x.half(), weight, None, y)


@on_both
def test_rounding_of_the_reference_is_not_what_is_compared(device: str) -> None:
    # The plain reference on the same GPU agrees as well, so the choice between sparse and dense changes no result.
    made = make(LARGER[3])
    mask = made.mask.flatten(1)
    pattern = SparsityPattern.from_mask(mask)
    x, weight = made.x.view(128, 257).to(device), pattern.dense(made.weight).to(device)
    sparse = masked_linear(x, weight, pattern, path="sparse")
    dense = masked_linear(x, weight, pattern, path="dense")
    plain = reference.masked_linear(x, weight, mask.to(device))
    assert torch.allclose(sparse, dense, atol=1e-4) and torch.allclose(sparse, plain, atol=1e-4)
