"""Masked linear layers, convolutions and a training step on a GPU, against dense torch and torch's sparse CSR.

``rows(copy)`` gives one dictionary a measurement: name, shape, density, work, ms of each side, and the ratio. Dense
runs in float32 without and with TF32, and in float16. Both sides are captured in graphs (cuda_timing.py); CSR is
timed as it is called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cuda_timing import beside, eager_ms, forward_and_step_ms, graph_ms
from torch import Tensor, nn
from torch.nn import functional

import edgeprune
from edgeprune import SparsityPattern
from edgeprune.ops import masked_conv2d, masked_linear
from edgeprune.tasks.models import resnet_like

DENSITIES = (0.2, 0.1, 0.05)
LINEAR = ((1, 4096, 4096), (32, 4096, 4096), (256, 1024, 1024), (4096, 1024, 1024), (4096, 4096, 4096))
CONV = (  # samples, channels in and out, size, stride
    (32, 64, 64, 32, 1),
    (128, 64, 64, 32, 1),
    (128, 128, 128, 16, 1),
    (128, 256, 256, 8, 1),
    (128, 512, 512, 4, 1),
    (128, 64, 128, 32, 2),
    (32, 64, 64, 56, 1),
)


def _tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _dense_times(forward: Callable[..., Tensor], x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, float]:
    """Dense torch in three precisions."""
    times = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, False),
    ):
        _tf32(tf32)
        found = forward_and_step_ms(forward, [x.to(dtype), weight.to(dtype)], dy.to(dtype))
        times |= {f"{name} {work}": ms for work, ms in found.items()}
    _tf32(False)
    return times


def linear_rows() -> Iterator[dict[str, Any]]:
    for samples, inputs, outputs in LINEAR:
        x, dy = torch.randn(samples, inputs, device="cuda"), torch.randn(samples, outputs, device="cuda")
        weight = torch.randn(outputs, inputs, device="cuda") / inputs**0.5
        dense = _dense_times(functional.linear, x, weight, dy)
        for density in DENSITIES:
            pattern = SparsityPattern.from_mask(torch.rand(outputs, inputs) < density)
            kept = pattern.compact(weight.cpu()).cuda()

            def forward(x: Tensor, w: Tensor) -> Tensor:
                return masked_linear(x, w, pattern, path="sparse")  # noqa: B023

            row = beside(
                "linear",
                f"{samples} x {inputs} by {inputs} x {outputs}",
                density,
                forward_and_step_ms(forward, [x, kept], dy),
                dense,
            )
            csr = pattern.dense(kept).to_sparse_csr()
            row["CSR forward ms"] = round(eager_ms([lambda csr=csr, x=x: csr @ x.T] * 4), 4)
            row["forward over CSR"] = round(row["CSR forward ms"] / row["ours forward ms"], 2)
            row["TFLOP/s on kept weights"] = round(2e-9 * samples * pattern.kept / row["ours forward ms"], 2)
            yield row


def conv_rows() -> Iterator[dict[str, Any]]:
    for samples, inputs, outputs, size, stride in CONV:
        x = torch.randn(samples, inputs, size, size, device="cuda")
        weight = torch.randn(outputs, inputs, 3, 3, device="cuda") / (9 * inputs) ** 0.5
        dy = torch.randn(samples, outputs, size // stride, size // stride, device="cuda")
        dense = _dense_times(lambda x, w: functional.conv2d(x, w, None, stride, 1), x, weight, dy)  # noqa: B023
        for density in DENSITIES:
            pattern = SparsityPattern.from_mask(torch.rand(outputs, inputs, 3, 3) < density)
            kept = pattern.compact(weight.cpu()).cuda()

            def forward(x: Tensor, w: Tensor) -> Tensor:
                return masked_conv2d(x, w, pattern, None, stride, 1, path="sparse")  # noqa: B023

            row = beside(
                "conv 3x3",
                f"{samples} x {inputs} x {size} x {size} to {outputs}, stride {stride}",
                density,
                forward_and_step_ms(forward, [x, kept], dy),
                dense,
            )
            done = 2e-9 * samples * (size // stride) ** 2 * pattern.kept
            row["TFLOP/s on kept weights"] = round(done / row["ours forward ms"], 2)
            yield row


def _step_ms(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    model = copy.deepcopy(model).cuda().train()
    parameters = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]

    def step() -> None:
        loss = functional.cross_entropy(model(x), labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_mul_(momenta, 0.9)
            torch._foreach_add_(momenta, gradients)
            torch._foreach_add_(parameters, momenta, alpha=-0.01)

    return graph_ms([step], rounds=1)


def training_rows(samples: int = 128) -> Iterator[dict[str, Any]]:
    """A whole training step of ResNet-18 under a mask, momentum included, each side captured in one graph."""
    model = resnet_like((64, 128, 256, 512))
    x, labels = torch.randn(samples, 3, 32, 32, device="cuda"), torch.randint(0, 10, (samples,), device="cuda")
    dense = {}
    for name, tf32 in (("fp32", False), ("tf32", True)):
        _tf32(tf32)
        dense[name] = _step_ms(model, x, labels)
    _tf32(False)
    for density in DENSITIES:
        sparse = edgeprune.sparsify(model, density=density, skip=("0",), path="sparse")
        ours = _step_ms(sparse, x, labels)
        yield {
            "name": "training step of ResNet-18",
            "shape": f"{samples} x 3 x 32 x 32",
            "zeros": round(1 - density, 3),
            "ours step ms": round(ours, 3),
            **{f"dense {name} step ms": round(ms, 3) for name, ms in dense.items()},
            **{f"step over {name}": round(ms / ours, 2) for name, ms in dense.items()},
        }


def rows(copy: float) -> Iterator[dict[str, Any]]:
    """``copy`` is not asked for: these products are bound by shared memory."""
    yield from linear_rows()
    yield from conv_rows()
    yield from training_rows()
