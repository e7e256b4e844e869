"""Merger: the weighted mean of sub-models in global coordinates, in the memory of one model and its counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.ops import memory
from edgeprune.pruning.merge_gate import Gate, MergeMode, summed_as
from edgeprune.pruning.submodel import SubmodelPlan

_GROUP = 1 << 19  # elements; of smaller parts the calls cost more than their place in the cache gives

Index = tuple[Tensor | None, ...]
Rows = tuple[int, int] | None  # of a tensor's first dimension; None: all of it
Sent = tuple[SubmodelPlan, Mapping[str, Tensor], float]


class Merger:
    """Adds sub-models one at a time to sums in global coordinates; the order of additions fixes the bits.

    Floating-point tensors (parameters and buffers) are averaged, of integer tensors (num_batches_tracked) the largest
    value wins. Half-precision tensors are summed in float32. ``state`` is not changed.

    Sums are float32 (float64 for tensors of that type), so their rounding grows with the number of updates: 3e-7 of a
    mean of 16, 1.5e-5 of 1,000 (equal ones, the worst case). wire.Accumulator is exact for any number.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._gate = Gate(state)
        self._sums = _Sums(state)

    def add(self, plan: SubmodelPlan, local_state: Mapping[str, Tensor], weight: float) -> None:
        """Add one sub-model with its weight (a number of samples).

        Raises EdgePruneError, with nothing added, when a name, shape or type does not fit, a value is not finite or so
        large that the sums could overflow, or the weight is not a number from 1e-30 to 1e30.
        """
        weight = self._gate.admit(plan, local_state, weight)
        self._sums.add({n: (t, plan.indices(n)) for n, t in local_state.items() if isinstance(t, Tensor)}, weight)

    def finish(self, mode: MergeMode = "unit") -> dict[str, Tensor]:
        """The new full state (new memory, the base's types and order).

        "unit": each element divided by the weight of those who hold it; what nobody holds keeps its old value bit for
        bit. "worker": divided by the weight of all, so that a missing element counts as zero. "delta": divided by the
        weight of all, a missing element counting as unchanged; what few hold moves slowly but does not shrink.
        """
        return self._sums.finish(mode, self._gate.closed(mode))


def merge_all(state: Mapping[str, Tensor], updates: Sequence[Sent], mode: MergeMode = "unit") -> dict[str, Tensor]:
    """What a Merger makes of ``updates``, (plan, local state, weight) each, to the bit; nothing is summed before all of
    them are checked.

    A few rows at a time, all updates of them: their sums stay in the cache, and besides the result there is no memory
    as large as the model.
    """
    gate = Gate(state)
    weights = [gate.admit(*update) for update in updates]
    total = gate.closed(mode)
    merged = _like(state)
    room = _Room()
    for group in _groups(state):
        room.clear()
        sums = _Sums({name: _rows(state[name], rows) for name, rows in group.items()}, room.zeros)
        for (plan, local, _), weight in zip(updates, weights, strict=True):
            held = {n: _held(local[n], plan.indices(n), rows) for n, rows in group.items() if plan.holds(n)}
            sums.add({n: part for n, part in held.items() if part[0].numel()}, weight)
        sums.finish_into({name: _rows(merged[name], rows) for name, rows in group.items()}, mode, total)
    return {name: merged.get(name, t) for name, t in state.items()}


def _groups(state: Mapping[str, Tensor]) -> Iterator[dict[str, Rows]]:
    """The state's tensors in order, in parts of about _GROUP elements; a large one by its rows (on a GPU whole)."""
    some: dict[str, Rows] = {}
    elements = 0
    for name, t in state.items():
        if not isinstance(t, Tensor):
            continue
        for rows in _parts(t):
            some[name] = rows
            elements += t.numel() if rows is None else (rows[1] - rows[0]) * t[0].numel()
            if elements >= _GROUP:
                yield some
                some, elements = {}, 0
    if some:
        yield some


def _parts(t: Tensor) -> Iterator[Rows]:
    """Rows of at least _GROUP elements each, but for the last."""
    if t.device.type != "cpu" or not t.is_floating_point() or t.dim() < 2 or t.numel() < 2 * _GROUP:
        yield None
        return
    step = -(-_GROUP // t[0].numel())
    for first in range(0, t.shape[0], step):
        yield first, min(first + step, t.shape[0])


def _like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New memory for every tensor of ``state``, contiguous."""
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    return {name: memory.empty(t.shape, dtype=t.dtype, device=t.device) for name, t in tensors.items()}


def _rows(t: Tensor, rows: Rows) -> Tensor:
    return t if rows is None else t[rows[0] : rows[1]]


def _held(x: Tensor, indices: Index, rows: Rows) -> tuple[Tensor, Index]:
    """What a sub-model holds of these rows, and where in them."""
    if rows is None:
        return x, indices
    kept = indices[0]
    if kept is None:
        return x[rows[0] : rows[1]], indices
    first, last = torch.searchsorted(kept, kept.new_tensor(rows)).tolist()
    return x[first:last], (kept[first:last] - rows[0], *indices[1:])


class _Room:
    """Zeros out of memory that is kept from one group of tensors to the next: new memory costs the system's zeroing of
    its pages, several times what the sums themselves take."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._used: dict[tuple[torch.dtype, torch.device], int] = {}

    def clear(self) -> None:
        """What was handed out is no longer needed."""
        self._used.clear()

    def zeros(self, shape: torch.Size, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        key, used = (dtype, device), self._used.get((dtype, device), 0)
        size = shape.numel()
        if key not in self._held or len(self._held[key]) < used + size:
            # What was handed out before lives on in the tensors that view it.
            self._held[key], used = memory.empty(max(size, 4 * _GROUP), dtype=dtype, device=device), 0
        self._used[key] = used + size
        return self._held[key][used : used + size].view(shape).zero_()


class _Sums:
    """Weighted sums of the tensors of ``state``, and the weight of every element's holders. ``zeros``: new ones, or
    where the sums need not outlive the next ones."""

    def __init__(self, state: Mapping[str, Tensor], zeros: Callable[..., Tensor] = memory.zeros) -> None:
        self._base = dict(state)
        self._by_dtype: dict[torch.dtype, list[str]] = {}
        for name, t in state.items():
            if isinstance(t, Tensor) and t.is_floating_point():
                self._by_dtype.setdefault(summed_as(t.dtype), []).append(name)
        self._totals = {
            n: zeros(state[n].shape, dtype=dtype, device=state[n].device)
            for dtype, names in self._by_dtype.items()
            for n in names
        }
        self._counts = {n: zeros(t.shape, dtype=t.dtype, device=t.device) for n, t in self._totals.items()}
        self._largest: dict[str, Tensor] = {}

    def add(self, parts: Mapping[str, tuple[Tensor, Index]], weight: float) -> None:
        """``parts``: by name, what an update holds of the tensor, and where."""
        for dtype, names in self._by_dtype.items():
            held = [name for name in names if name in parts]
            ops.scatter_accumulate_many_(
                [self._totals[n] for n in held],
                [self._counts[n] for n in held],
                [parts[n][0].detach().to(self._totals[n].device, dtype) for n in held],
                [parts[n][1] for n in held],
                weight,
            )
        for name, base in self._base.items():
            if name in parts and not base.is_floating_point():
                x, indices = parts[name]
                self._raise(name, base, indices, x.detach().to(base.device, base.dtype))

    def _raise(self, name: str, base: Tensor, indices: Index, x: Tensor) -> None:
        """Integer buffers: the largest of the base and all sub-models."""
        held = self._largest.setdefault(name, base.clone())
        mesh = []
        for d, index in enumerate(indices):
            kept = torch.arange(held.shape[d], device=held.device) if index is None else index
            mesh.append(kept.reshape([-1 if e == d else 1 for e in range(held.dim())]).to(held.device))
        at = tuple(mesh) if mesh else ...
        held[at] = held[at] | x if held.dtype == torch.bool else torch.maximum(held[at], x)

    def finish(self, mode: MergeMode, weight: float) -> dict[str, Tensor]:
        """The mean, in new memory and the base's order; ``weight``: of all updates."""
        merged = _like(self._base)
        self.finish_into(merged, mode, weight)
        return {n: merged.get(n, t) for n, t in self._base.items()}

    def finish_into(self, into: Mapping[str, Tensor], mode: MergeMode, weight: float) -> None:
        """The mean, written into tensors like the base's."""
        for dtype, names in self._by_dtype.items():
            counts, totals = [self._counts[n] for n in names], [self._totals[n] for n in names]
            bases = [self._base[n].detach().to(dtype) for n in names]
            if mode == "delta":
                totals = [t + (weight - c) * b for t, c, b in zip(totals, counts, bases, strict=True)]
            if mode != "unit":
                counts = [torch.full_like(c, weight) for c in counts]
            ops.merge_finish_many_(bases, totals, counts, [into[n] for n in names])
        for name, base in self._base.items():
            if isinstance(base, Tensor) and not base.is_floating_point():
                into[name].copy_(self._largest.get(name, base))
