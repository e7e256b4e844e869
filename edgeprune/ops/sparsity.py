"""Masks of linear and 2-d convolution weights: ``SparsityPattern``, and the compiled form that the kernels walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from edgeprune.errors import EdgePruneError, is_whole, shown
from edgeprune.ops import crossover
from edgeprune.ops._core import core

Pair = tuple[int, int]


def _refuse_tracing(call: str) -> None:
    if torch.compiler.is_compiling():
        raise EdgePruneError(f"sparsity_pattern: a mask cannot be compiled inside torch.compile; call {call} before")


def _check_mask(mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise EdgePruneError(f"sparsity_pattern: the mask is {shown(mask)}; give a torch tensor")
    if mask.layout is not torch.strided or mask.is_meta:
        raise EdgePruneError("sparsity_pattern: the mask is a sparse or meta tensor; give a dense one with values")


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """No function transform, dispatch or inference mode gets hold of the tensors made here, which outlive it."""
    with torch._C._DisableFuncTorch(), _disable_current_modes(), torch.inference_mode(False):
        yield


class CompiledPattern:
    """A pattern compiled for one geometry. Made by :meth:`SparsityPattern.compiled`; never changed.

    ``filter`` is (outputs, inputs, groups, taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w). ``tensors``
    are the int32 tensors columns, starts, t_columns, t_order, t_starts that csrc/ops/sparsity_pattern.h describes.
    """

    def __init__(self, filter: tuple[int, ...], bits: Tensor, kept: int) -> None:
        self.filter = filter
        self.kept = kept
        self.outputs, self.inputs = filter[:2]
        groups, taps = filter[2], filter[3] * filter[4]
        self.kind = crossover.conv_kind(self.outputs, taps, groups)
        """What the choice between sparse and dense goes by; see crossover.py."""
        rows, row, t_rows, t_row = core.pattern_sizes(filter)
        shapes = [(kept,), (rows, row), (kept,), (kept,), (t_rows, t_row)]
        self.tensors = [torch.empty(shape, dtype=torch.int32, device="cpu") for shape in shapes]
        # The core borrows capsules and leaves them whole, so one capsule serves every call.
        self.capsules = tuple(to_dlpack(part) for part in self.tensors)
        columns, starts, t_columns, t_order, t_starts = self.capsules
        core.pattern_compile(filter, to_dlpack(bits), columns, starts, t_columns, t_order, t_starts)
        self.on_gpu: dict[Any, Any] = {}
        """What ops/masked_cuda.py keeps for calls on a GPU."""
        if kept:
            _by_tensor[self.tensors[0].data_ptr()] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledPattern:
        return self


_by_tensor: WeakValueDictionary[int, CompiledPattern] = WeakValueDictionary()


def compiled_of(columns: Tensor) -> CompiledPattern | None:
    """The pattern whose first tensor this is (operators are handed tensors only); None for a copy of it."""
    return _by_tensor.get(columns.data_ptr())


def index_of(columns: Tensor, starts: Tensor, filter: Sequence[int]) -> Tensor:
    """Positions of compact weights in the flattened dense tensor, from a compiled pattern; traceable."""
    outputs, inputs, groups, *taps = filter[:5]
    row = inputs // groups * taps[0] * taps[1]
    counts = (starts[-1] - starts[0]).long()
    every = torch.arange(outputs, device=columns.device)
    rows = every.repeat_interleave(counts, output_size=columns.shape[0])
    return rows * row + columns - rows // (outputs // groups) * row


class SparsityPattern:
    """Which weights of a linear layer (outputs, inputs) or a 2-d convolution (outputs, inputs / groups, h, w) are kept.

    Compact weights are the kept ones in the order of the dense tensor, row by row: a tensor ``[kept]``. A pattern does
    not change; copies of it are itself. It holds one bit a weight, and 12 bytes a kept weight for each geometry
    (groups, stride, dilation) it was used with.

    Make one with :meth:`from_mask` or :meth:`from_bits`.
    """

    def __init__(self, bits: Tensor, shape: tuple[int, ...]) -> None:
        self.shape = shape
        """Shape of the dense weight."""
        self.bits = bits
        """The mask, uint8, bit i of byte i // 8 is weight i (least significant bit first)."""
        self.kept: int = core.pattern_kept(to_dlpack(bits), self._filter(1, (1, 1), (1, 1)))
        """Number of kept weights."""
        self.density = self.kept / self.numel()
        """Kept over all weights."""
        self._compiled: dict[tuple[int, Pair, Pair], CompiledPattern] = {}
        self._indices: dict[torch.device, Tensor] = {}

    @classmethod
    def from_bits(cls, bits: Tensor, shape: tuple[int, ...]) -> SparsityPattern:
        """From a bit-packed mask: uint8 ``[ceil(weights / 8)]``, least significant bit first, spare bits zero.

        Raises EdgePruneError when the bits do not fit the shape, or the shape is not one of a weight.
        """
        if not isinstance(shape, Sequence) or not all(is_whole(size) for size in shape):
            raise EdgePruneError(f"sparsity_pattern: shape is {shown(shape)}; give the sizes of the weight")
        shape = tuple(int(size) for size in shape)
        if len(shape) not in (2, 4):
            raise EdgePruneError(
                f"sparsity_pattern: shape {shape} is neither (outputs, inputs) nor (outputs, inputs / groups, h, w)"
            )
        _check_mask(bits)
        if bits.dtype is not torch.uint8 or bits.ndim != 1:
            raise EdgePruneError("sparsity_pattern: bits must be a one-dimensional uint8 tensor")
        with _plain_tensors():
            return cls(bits.detach().to("cpu", copy=True).contiguous(), shape)

    @classmethod
    def from_mask(cls, mask: Tensor) -> SparsityPattern:
        """From a mask of the weight's shape, of any type: kept where it is not zero. Errors as :meth:`from_bits`."""
        _check_mask(mask)
        with _plain_tensors():
            kept = (mask.detach() != 0).cpu().numpy()
            bits = torch.from_numpy(np.packbits(kept.reshape(-1), bitorder="little"))
        return cls.from_bits(bits, tuple(mask.shape))

    def numel(self) -> int:
        """Number of weights of the dense tensor."""
        return int(np.prod(self.shape))

    def mask(self) -> Tensor:
        """The mask: bool, of ``shape``, on the CPU."""
        every = np.unpackbits(self.bits.numpy(), count=self.numel(), bitorder="little")
        return torch.from_numpy(every.view(np.bool_)).view(self.shape)

    def index(self, device: torch.device | str = "cpu") -> Tensor:
        """int64 ``[kept]``: positions of the compact weights in the flattened dense tensor; kept for later calls."""
        device = torch.device(device)
        found = self._indices.get(device)
        if found is None:
            _refuse_tracing("pattern.index()")
            with _plain_tensors():
                found = self.mask().view(-1).nonzero().view(-1).to(device)
            self._indices[device] = found
        return found

    def compact(self, dense: Tensor) -> Tensor:
        """The kept weights of a tensor of ``shape``: ``[kept]``, differentiable. Dropped ones are not read into it."""
        if tuple(dense.shape) != self.shape:
            raise EdgePruneError(f"sparsity_pattern: a tensor of shape {tuple(dense.shape)} for a mask of {self.shape}")
        return dense.reshape(-1).index_select(0, self.index(dense.device))

    def dense(self, compact: Tensor) -> Tensor:
        """The tensor of ``shape`` with zeros where weights are dropped, differentiable."""
        if tuple(compact.shape) != (self.kept,):
            raise EdgePruneError(
                f"sparsity_pattern: compact weights of shape {tuple(compact.shape)} for a mask that keeps {self.kept}"
            )
        flat = compact.new_zeros(self.numel())
        return flat.index_copy(0, self.index(compact.device), compact).view(self.shape)

    def compiled(self, groups: int = 1, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> CompiledPattern:
        """The form that the kernels walk; compiled on first use. Raises EdgePruneError for an impossible geometry."""
        key = (groups, stride, dilation)
        found = self._compiled.get(key)
        if found is None:
            _refuse_tracing(f"pattern.compiled{key}")
            with _plain_tensors():
                found = CompiledPattern(self._filter(*key), self.bits, self.kept)
            self._compiled[key] = found
        return found

    def _filter(self, groups: int, stride: Pair, dilation: Pair) -> tuple[int, ...]:
        outputs, per_group, taps_h, taps_w = (*self.shape, 1, 1)[:4]
        return (outputs, per_group * groups, groups, taps_h, taps_w, *stride, *dilation)

    def __repr__(self) -> str:
        return f"SparsityPattern(shape={self.shape}, kept={self.kept}, density={self.density:.4g})"

    def __copy__(self) -> SparsityPattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SparsityPattern:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SparsityPattern.from_bits, (self.bits, self.shape)
