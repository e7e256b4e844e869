"""Streaming merge of packed updates: exact sums, so that the order in which updates arrive changes no bit.

Every element has one 64-bit word of two lanes, the weight of its holders below, the weighted sum in fixed point above:

    word[i] += (round(weight * value * 2^s) << b) + weight          b = bits of the largest total weight

Integer addition is exact, so any order gives the same words. weight * value is exact in double (24 + 24 bits; of
float64 values 53 stay), rounded once to a step of 2^-s; s is as large as the lane allows for values within a stated
``reach``, for which no sum can overflow: s = 62 - 2 b - log2(reach). An update beyond the reach is refused before
anything of it is added. Memory is two models (8 bytes an element), whatever the number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, is_number, is_whole, shown
from edgeprune.ops import memory
from edgeprune.wire.tensors import PackedTensor, peak

MAX_WEIGHT_BITS = 24
Index = Sequence[Tensor | None]
Missing = Literal["unit", "worker", "delta"]
Entry = Tensor | PackedTensor


class BeyondReachError(EdgePruneError):
    """A value larger than an accumulator's lanes are made for."""


class Accumulator:
    """Sums updates over the tensors of ``state`` (name -> tensor; only shapes and types are read, floating ones summed
    and of integer ones the largest value kept).

    ``total_weight``: what the weights (whole numbers, such as samples) of all updates may come to, below 2^24.
    ``reach``: the largest magnitude of a value, for all tensors or by name; rounded up to a power of two.
    """

    def __init__(
        self, state: Mapping[str, Tensor], *, total_weight: int, reach: float | Mapping[str, float] = 64.0
    ) -> None:
        _check_tensors("the state", state)
        for name, x in state.items():
            if x.is_complex() or x.is_floating_point() and x.dtype not in _SUMMED:
                raise EdgePruneError(f"accumulate: {name!r} has type {x.dtype}, which cannot be summed; leave it out")
        if not is_whole(total_weight):
            raise EdgePruneError(f"accumulate: total_weight is {shown(total_weight)}; give a whole number")
        self._bits = int(total_weight).bit_length() if total_weight > 0 else 0
        if not 1 <= self._bits <= MAX_WEIGHT_BITS:
            raise EdgePruneError(
                f"accumulate: a total weight of {total_weight} is not in 1..{(1 << MAX_WEIGHT_BITS) - 1}; "
                "divide the weights by a common number"
            )
        self._limit = int(total_weight)
        self._types = {name: x.dtype for name, x in state.items()}
        self._shapes = {name: tuple(x.shape) for name, x in state.items()}
        with torch.inference_mode(False):  # what is made there could be added to only there
            self._words = {
                name: memory.zeros(x.numel(), dtype=torch.int64) for name, x in state.items() if x.is_floating_point()
            }
        self._largest: dict[str, Tensor] = {}
        each = reach if isinstance(reach, Mapping) else dict.fromkeys(self._words, reach)
        self._reach = {name: _power(name, each.get(name)) for name in self._words}
        self._given_out = False
        self.weight = 0
        self.updates = 0

    def shift(self, name: str) -> int:
        """s: the sums of tensor ``name`` are multiples of 2^-s."""
        return 62 - 2 * self._bits - self._reach[name]

    def add(self, update: Mapping[str, Entry], weight: int, indices: Mapping[str, Index] | None = None) -> None:
        """Add ``update`` (message.tensors, message.packed, or both), all of the state's tensors or some of them.

        ``indices``: for sub-models, per tensor and dimension the kept positions (SubmodelPlan.indices), None for all.
        Raises EdgePruneError, with nothing added, for a weight that is not a positive whole number or too much, names
        or shapes that do not fit, positions that are not increasing or outside the tensor, and values that are not
        finite or beyond the reach.
        """
        self._check_open()
        _check_tensors("the update", update, PackedTensor)
        _check_read("the update", update)
        if indices is not None and not isinstance(indices, Mapping):
            raise EdgePruneError(f"accumulate: indices is {shown(indices)}; give the kept positions by name")
        if isinstance(weight, bool) or not is_whole(weight) or weight < 1 or self.weight + weight > self._limit:
            raise EdgePruneError(
                f"accumulate: weight {weight!r} must be a positive whole number, with the {self.weight} so far at most "
                f"{self._limit}"
            )
        weight = int(weight)
        seen: set[tuple[int, int]] = set()
        for name, x in update.items():
            if indices is not None and name in self._types and name not in indices:
                raise EdgePruneError(f"accumulate: indices lacks {name!r}; give the kept positions of every tensor")
            self._check(name, x, None if indices is None else indices.get(name), seen)
        for name, x in update.items():
            index = None if indices is None else indices[name]
            if name in self._words:
                self._add(name, x, weight, index)
            else:
                self._keep_largest(name, x, index)
        self.weight += weight
        self.updates += 1

    def finish(
        self, base: Mapping[str, Tensor], mode: Missing = "unit", beside: Accumulator | None = None
    ) -> dict[str, Tensor]:
        """The merged tensors (new memory, the state's types), this accumulator's own memory given back on the way.

        ``beside``: one over the same tensors with another reach, whose updates count as well; its memory goes too.

        ``mode`` says what an update counts for where it holds nothing. "unit": nothing, and where nobody holds anything
        ``base`` stays, bit for bit. "worker": zero. "delta": ``base``.
        """
        if mode not in get_args(Missing):
            raise EdgePruneError(f"accumulate: the mode must be 'unit', 'worker' or 'delta', not {mode!r}")
        self._check_open()
        if beside is not None:
            beside._check_open()
            if beside is self or (beside._types, beside._shapes) != (self._types, self._shapes):
                raise EdgePruneError("accumulate: beside is not another accumulator over the same tensors")
        _check_tensors("the base", base)
        _check_read("the base", base)
        for name, shape in self._shapes.items():
            if name not in base or tuple(base[name].shape) != shape:
                raise EdgePruneError(f"accumulate: the base lacks {name!r} of shape {shape}; give the model itself")
        everybody = self.weight + (beside.weight if beside else 0)
        if not everybody:
            raise EdgePruneError("accumulate: there is nothing to merge; add at least one update")
        for one in (self, beside):
            if one is not None:
                one._given_out = True
        merged: dict[str, Tensor] = {}
        for name, dtype in self._types.items():
            if name in self._words:
                merged[name] = self._mean(name, base[name], mode, everybody, beside).to(dtype)
            else:
                held = self._largest.pop(name, base[name])
                if beside and name in beside._largest:
                    other = beside._largest.pop(name)
                    held = held | other if dtype == torch.bool else torch.maximum(held, other)
                merged[name] = held | base[name] if dtype == torch.bool else torch.maximum(held, base[name])
        return merged

    def _mean(self, name: str, base: Tensor, mode: Missing, everybody: int, beside: Accumulator | None) -> Tensor:
        flat = base.detach().reshape(-1)
        out = memory.empty(flat.numel(), dtype=torch.float64 if base.dtype == torch.float64 else torch.float32)
        sums = [(each, each._words.pop(name)) for each in (self, beside) if each]
        for start in range(0, flat.numel(), _CHUNK):
            old = flat[start : start + _CHUNK].double()
            total, held = sums[0][0]._sums(name, sums[0][1][start : start + _CHUNK])
            for each, words in sums[1:]:
                more, by = each._sums(name, words[start : start + _CHUNK])
                total, held = total + more, held + by
            if mode == "delta":
                total += (everybody - held) * old
            mean = total / (held if mode == "unit" else float(everybody))
            out[start : start + _CHUNK] = torch.where(held > 0, mean, old) if mode == "unit" else mean
        return out.reshape(base.shape)

    def _sums(self, name: str, words: Tensor) -> tuple[Tensor, Tensor]:
        """(weighted sums, weights of the holders) in some words of tensor ``name``, in double."""
        held = (words & ((1 << self._bits) - 1)).double()
        return (words >> self._bits).double() * 2.0 ** -self.shift(name), held

    def _check(self, name: str, x: Entry, index: Index | None, seen: set[tuple[int, int]]) -> None:
        if name not in self._types:
            raise EdgePruneError(f"accumulate: the update has {name!r}, which the model lacks")
        full = self._shapes[name]
        if index is not None:
            self._check_index(name, full, index, seen)
        shape = full if index is None else tuple(n if i is None else len(i) for n, i in zip(full, index, strict=True))
        if tuple(x.shape) != shape or x.dtype != self._types[name]:
            raise EdgePruneError(
                f"accumulate: the update's {name!r} has shape {tuple(x.shape)} and type {x.dtype}, due are {shape} and "
                f"{self._types[name]}"
            )
        if name in self._words:
            largest = peak(_values(x))
            if not largest <= 2.0 ** self._reach[name]:
                raise BeyondReachError(
                    f"accumulate: the update's {name!r} holds {largest:.4g}, beyond the reach of "
                    f"{2.0 ** self._reach[name]:.4g}"
                )
        elif isinstance(x, PackedTensor) and x.mask is not None:
            raise EdgePruneError(f"accumulate: the update's {name!r} holds integers under a mask; send them whole")

    def _check_index(self, name: str, full: tuple[int, ...], index: Index, seen: set[tuple[int, int]]) -> None:
        """``seen``: (id, size) of positions found right, for many tensors of an update share them."""
        if len(index) != len(full):
            raise EdgePruneError(
                f"accumulate: {len(index)} indices for {name!r} of shape {full}; give one for each dimension"
            )
        for size, kept in zip(full, index, strict=True):
            if kept is None or (id(kept), size) in seen:
                continue
            if not isinstance(kept, Tensor) or kept.dim() != 1 or kept.dtype is not torch.int64:
                raise EdgePruneError(f"accumulate: an index of {name!r} is not a one-dimensional int64 tensor, or None")
            if len(kept) and (kept[0] < 0 or kept[-1] >= size or bool((kept.diff() <= 0).any())):
                raise EdgePruneError(f"accumulate: the positions in {name!r} do not increase within 0..{size - 1}")
            seen.add((id(kept), size))

    def _check_open(self) -> None:
        if self._given_out:
            raise EdgePruneError("accumulate: the sums were given out by finish; make a new accumulator")

    def _add(self, name: str, x: Entry, weight: int, index: Index | None) -> None:
        words = self._words[name]
        mask = x.mask if isinstance(x, PackedTensor) else None
        if index is None or all(i is None for i in index):
            self._sum(name, words, mask, _values(x), weight)
            return
        # A sub-model's slice: its words taken out, added to, and put back.
        full = words.view(self._shapes[name])
        part = _taken(full, index).contiguous()
        self._sum(name, part.view(-1), mask, _values(x), weight)
        _put(full, index, part)

    def _sum(self, name: str, words: Tensor, mask: Tensor | None, values: Tensor, weight: int) -> None:
        if values.dtype != torch.float64:
            ops.accumulate_exact_(
                words, mask, values.float().contiguous(), weight * 2.0 ** self.shift(name), weight, self._bits
            )
            return
        lanes = values.mul(weight).mul_(2.0 ** self.shift(name)).round_().long()
        lanes = lanes.bitwise_left_shift_(self._bits).add_(weight)
        if mask is None:
            words += lanes
        else:
            words[ops.mask_to_indices(mask, words.numel())] += lanes

    def _keep_largest(self, name: str, x: Entry, index: Index | None) -> None:
        value = x.tensor() if isinstance(x, PackedTensor) else x
        held = self._largest.get(name)
        if held is None:
            least = False if value.dtype == torch.bool else torch.iinfo(value.dtype).min
            with torch.inference_mode(False):
                held = self._largest[name] = torch.full(self._shapes[name], least, dtype=value.dtype, device="cpu")
        at = _mesh(index or [None] * value.dim(), held)
        held[at] = held[at] | value if value.dtype == torch.bool else torch.maximum(held[at], value)


_REACHES = 2.0**-900, 2.0**999  # between them sums and their steps are doubles
_CHUNK = 1 << 16  # the temporaries of a mean stay in a second-level cache


_SUMMED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _check_tensors(what: str, given: object, *more: type) -> None:
    if not isinstance(given, Mapping):
        raise EdgePruneError(f"accumulate: {what} is {shown(given)}; give tensors by name")
    for name, x in given.items():
        if not isinstance(x, (Tensor, *more)):
            raise EdgePruneError(f"accumulate: {what} holds {shown(x)} as {name!r}; give a tensor")


def _check_read(what: str, given: Mapping[str, Entry]) -> None:
    """Values on the CPU, one for each element."""
    for name, x in given.items():
        if isinstance(x, Tensor) and (x.layout is not torch.strided or not x.is_cpu):
            raise EdgePruneError(
                f"accumulate: {what} holds {name!r} on {x.device} with layout {x.layout}; give a dense one on the CPU"
            )


def _power(name: str, reach: object) -> int:
    """The smallest e with 2^e >= reach."""
    if not is_number(reach) or not (reach > 0 and math.isfinite(reach)):  # type: ignore[operator, arg-type]
        raise EdgePruneError(f"accumulate: a reach of {shown(reach)} for {name!r} is not a positive number")
    if not _REACHES[0] <= reach <= _REACHES[1]:  # type: ignore[operator]
        raise EdgePruneError(
            f"accumulate: a reach of {shown(reach)} for {name!r} is not between 2^-900 and 2^999; scale the values"
        )
    return math.ceil(math.log2(reach))  # type: ignore[arg-type]


def _taken(full: Tensor, index: Index) -> Tensor:
    """The positions ``index`` of ``full``."""
    for d, kept in enumerate(index):
        if kept is not None:
            full = full.narrow(d, int(kept[0]), len(kept)) if _is_run(kept) else full.index_select(d, kept)
    return full


def _put(full: Tensor, index: Index, part: Tensor, at: int = 0) -> None:
    """What :func:`_taken` took, back in its place: one dimension after the other, from ``at`` on."""
    d = next((d for d in range(at, len(index)) if index[d] is not None), None)
    if d is None:
        full.copy_(part)
        return
    kept = index[d]
    assert kept is not None
    if _is_run(kept):
        _put(full.narrow(d, int(kept[0]), len(kept)), index, part, d + 1)
    elif all(i is None for i in index[d + 1 :]):
        full.index_copy_(d, kept, part)
    else:
        rows = full.index_select(d, kept)
        _put(rows, index, part, d + 1)
        full.index_copy_(d, kept, rows)


def _is_run(kept: Tensor) -> bool:
    """Whether each of these positions is the one after the one before."""
    return len(kept) > 0 and bool((kept.diff() == 1).all())


def _mesh(index: Index, full: Tensor) -> tuple[Tensor, ...]:
    """Positions for advanced indexing: one index a dimension, broadcast against each other."""
    mesh = []
    for d, kept in enumerate(index):
        kept = torch.arange(full.shape[d], device=full.device) if kept is None else kept
        mesh.append(kept.reshape([-1 if e == d else 1 for e in range(full.dim())]))
    return tuple(mesh)


def _values(x: Entry) -> Tensor:
    """The held values, flat, in a floating type."""
    if isinstance(x, Tensor):
        return x.detach().reshape(-1)
    whole = PackedTensor((x.kept,), x.dtype, x.coding, x.values, x.scales, None, x.kept)
    return whole.tensor()
