"""Shapes for the masked operators, the exact answers in double, and how far float32 may be from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edgeprune import SparsityPattern, _core
from edgeprune.ops.sparsity import CompiledPattern

UNIT = 2.0**-24  # half a unit in the last place, relative
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    samples: int
    inputs: int
    outputs: int
    size: Pair = (1, 1)
    taps: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    density: float = 0.3
    seed: int = 0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs // self.groups, *self.taps)

    @property
    def fits(self) -> bool:
        return all(
            n + 2 * p - d * (t - 1) - 1 >= 0
            for n, p, d, t in zip(self.size, self.padding, self.dilation, self.taps, strict=True)
        )

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class Made:
    """Inputs of a case, the exact results, and the room for each element of them."""

    case: Case
    mask: Tensor
    pattern: SparsityPattern
    compiled: CompiledPattern
    x: Tensor
    weight: Tensor  # compact
    bias: Tensor
    dy: Tensor
    exact: tuple[Tensor, Tensor, Tensor]  # y, dx, dw
    room: tuple[Tensor, Tensor, Tensor]


def make(case: Case) -> Made:
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.rand(case.weight_shape, generator=generator) < case.density
    pattern = SparsityPattern.from_mask(mask)
    x, dense, bias = draw(case.samples, case.inputs, *case.size), draw(*case.weight_shape), draw(case.outputs)
    weight = pattern.compact(dense)

    def products(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.double().requires_grad_()
        kept = torch.where(mask, weight.double(), 0.0).requires_grad_()
        y = case.conv(x, kept, bias.double())
        dy = draw(*y.shape) if dy is None else dy
        dx, dw = torch.autograd.grad(y, (x, kept), dy.double())
        return y.detach(), dx, pattern.compact(dw), dy

    y, dx, dw, dy = products(x, dense, bias, None)
    # A sum of n products, in any order, each step rounded once: off by at most n eps / (1 - n eps) times the sum of
    # the magnitudes. Products fused into sums only lower it. The bias is one more term.
    terms = (
        case.inputs // case.groups * math.prod(case.taps) + 1,
        case.outputs // case.groups * math.prod(case.taps),
        max(1, y.numel() // case.outputs),
    )
    magnitudes = products(x.abs(), dense.abs(), bias.abs(), dy.abs())[:3]
    room = tuple(sum_ * (n * UNIT / (1 - n * UNIT)) for sum_, n in zip(magnitudes, terms, strict=True))
    compiled = pattern.compiled(case.groups, case.stride, case.dilation)
    return Made(case, mask, pattern, compiled, x, weight, bias, dy, (y, dx, dw), room)  # type: ignore[arg-type]


def run_core(made: Made, variant: str = "", threads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx, dw straight from the core, into memory that held NaN."""
    compiled, padding = made.compiled, made.case.padding
    columns, starts, t_columns, t_order, t_starts = compiled.tensors
    y, dx, dw = (torch.full(exact.shape, math.nan) for exact in made.exact)
    how = (threads, variant)
    _core.masked_forward(compiled.filter, padding, columns, starts, None, made.x, made.weight, made.bias, y, *how)
    _core.masked_input_gradient(
        compiled.filter, padding, t_columns, t_starts, t_order, dx, made.weight, None, made.dy, *how
    )
    if made.x.numel():
        _core.masked_weight_gradient(compiled.filter, padding, columns, starts, None, made.x, dw, None, made.dy, *how)
    return y, dx, dw if made.x.numel() else torch.zeros_like(dw)


def within(got: Tensor, exact: Tensor, room: Tensor) -> bool:
    """Also false for NaN."""
    return got.shape == exact.shape and bool(((got.double() - exact).abs() <= room).all())


def check(made: Made, got: tuple[Tensor, Tensor, Tensor]) -> None:
    for name, value, exact, room in zip(("y", "dx", "dw"), got, made.exact, made.room, strict=True):
        assert within(value, exact, room), f"{name} of {made.case}"


# Ends of vectors (8, 16), chunks, tiles and blocks; every stride phase; taps that only see padding; depthwise.
CASES = [
    Case(1, 1, 1),
    Case(1, 300, 70, density=0.1),
    Case(2, 1, 3),
    Case(3, 1100, 13, density=0.2),
    Case(7, 70, 600, density=0.1),
    Case(8, 6400, 20, density=0.02),
    Case(8, 513, 512, density=0.4),
    Case(15, 64, 65),
    Case(16, 33, 7, density=1.0),
    Case(17, 130, 40),
    Case(65, 70, 31, density=0.0),
    Case(256, 20, 12),
    Case(0, 9, 4),
    Case(1, 3, 8, (9, 11), (3, 3), padding=(1, 1)),
    Case(2, 8, 5, (8, 8), (3, 3), stride=(2, 2), padding=(1, 1)),
    Case(33, 4, 6, (5, 4), (3, 3), padding=(1, 1)),
    Case(9, 6, 6, (7, 7), (1, 1), stride=(2, 1)),
    Case(3, 4, 4, (17, 16), (5, 2), stride=(3, 2), padding=(3, 0), dilation=(1, 2)),
    Case(2, 12, 24, (6, 6), (3, 3), padding=(1, 1), groups=12, density=0.5),
    Case(5, 12, 6, (6, 5), (2, 3), padding=(0, 2), groups=3),
    Case(1, 2, 2, (1, 1), (3, 3), padding=(1, 1)),
    Case(1, 4, 5, (1, 1), padding=(1, 2)),
    Case(1, 4, 5, (1, 1), stride=(3, 3), padding=(1, 1)),
    Case(6, 4, 5, (1, 1), padding=(0, 1)),
    Case(6, 12, 9, (1, 1), stride=(2, 2), groups=3),
    Case(1, 40, 40, (33, 33), (3, 3), padding=(1, 1), density=0.05),
    Case(5, 33, 20, (7, 7), density=0.2),  # 1x1: pixels side by side
    Case(2, 130, 70, (20, 20), density=0.1),
    Case(40, 12, 6, (4, 4), groups=2),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    linear = draw(st.booleans())
    case = Case(
        samples=draw(st.sampled_from([0, 1, 2, 7, 8, 9, 16, 17, 33])),
        inputs=groups * draw(st.integers(1, 40 if linear else 8)),
        outputs=groups * draw(st.integers(1, 40 if linear else 8)),
        size=(1, 1) if linear else draw(pairs(1, 19)),
        taps=(1, 1) if linear else draw(pairs(1, 4)),
        stride=draw(pairs(1, 3)),
        padding=draw(pairs(0, 1)) if linear else draw(pairs(0, 3)),
        dilation=draw(pairs(1, 2)),
        groups=groups,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])),
        seed=draw(st.integers(0, 2**20)),
    )
    return case if case.fits else Case(1, 1, 1)
