"""The safety net of ChannelGraph.trace: cut the model at random, and compare with the full one where the cut is zero.

What the rules cannot see, such as a ``view(-1, 6272)`` with the number written out or a size held in an attribute,
shows here. The weights are replaced by random ones, because trained ones may hide a wrong coupling (a residual branch
that starts at zero).
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeprune.pruning.attributes import MOST, Candidate, choices
from edgeprune.pruning.axes import Axis
from edgeprune.pruning.capture import Walk, cloned, sentence
from edgeprune.pruning.masked_run import MaskedRun
from edgeprune.pruning.steady import Steady
from edgeprune.pruning.submodel import SubmodelPlan
from edgeprune.pruning.surgery import extract

if TYPE_CHECKING:
    from edgeprune.pruning.graph import ChannelGraph


def check(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: tuple[Any, ...],
    walks: Mapping[bool, Walk],
    candidates: list[Candidate],
    taken: Collection[str],
) -> tuple[dict[str, str], Mapping[str, Axis], list[str]]:
    """The groups that cannot be cut, with the reason, which attributes hold which sizes, and what could not be told.

    All groups are tried at once; on failure the first one that breaks is found by bisection. Other readings of the
    attributes of its modules are tried, then the group is given up, with those of its name in other blocks that fail
    alone, and the rest is tried again. Where all is well, attributes that it does not take to make it so are no sizes.
    Groups ``taken`` are those of which a fixed number of channels may be taken: one that is left must do.
    """
    trial = _Trial(model, graph, inputs, walks, taken)
    names = list(graph.prunable)
    sizes = graph.map.sizes
    failing: dict[str, str] = {}
    while names and (why := trial.failure(names, sizes)) is not None:
        low, high = 0, len(names)  # names[:low] works, names[:high] fails
        while high - low > 1:
            middle = (low + high) // 2
            reason = trial.failure(names[:middle], sizes)
            if reason is None:
                low = middle
            else:
                high, why = middle, reason
        first = names[high - 1]
        other = (c for c in choices(candidates, first, sizes) if trial.failure(names[:high], c) is None)
        better = next(other, None)
        if better is not None:
            sizes = better
            continue
        failing[first] = why
        del names[high - 1]
        for name in [n for n in names if re.sub(r"\d+", "#", n) == re.sub(r"\d+", "#", first)]:
            if (reason := trial.failure([name], sizes)) is not None:
                failing[name] = reason
                names.remove(name)
    if failing or not names:
        return failing, sizes, []
    notes = [
        f"in {'training' if mode else 'evaluation'} the model gives other numbers in every run, so its cut "
        "copy was compared by the shapes of its outputs only"
        for mode, same in trial.comparable.items()
        if not same
    ]
    if trial.comparable[False]:
        sizes, left = _needed(trial, names, sizes, candidates)
        if left:
            notes.append(f"{', '.join(left)}: equal to a width, but right in the cut model as it is, so not changed")
    return failing, sizes, notes


def _needed(
    trial: _Trial, names: list[str], sizes: Mapping[str, Axis], candidates: list[Candidate]
) -> tuple[Mapping[str, Axis], list[str]]:
    """The sizes without which the cut model is not right, with those that are called so; by class the others."""
    kinds: dict[str, list[str]] = {}
    for c in candidates:
        if c.name in sizes and not c.sized:
            kinds.setdefault(c.label, []).append(c.name)
    called = {name: axis for name, axis in sizes.items() if not any(name in same for same in kinds.values())}
    if kinds and trial.failure(names, called) is None:
        return called, list(kinds)
    left = []
    for label, same in list(kinds.items())[:MOST]:
        fewer = {name: axis for name, axis in sizes.items() if name not in same}
        if trial.failure(names, fewer) is None:
            sizes = fewer
            left.append(label)
    return sizes, left


def failing_blocks(model: nn.Module, graph: ChannelGraph, inputs: tuple[Any, ...]) -> dict[str, str]:
    """The blocks without which the model does not run or puts out another shape, with the reason."""
    failing = {}
    shapes = [getattr(y, "shape", None) for y in _outputs(copy.deepcopy(model).eval(), inputs)]
    full = SubmodelPlan.full(graph)
    for block in graph.blocks:
        try:
            got = [getattr(y, "shape", None) for y in _outputs(extract(model, full.drop(block)).eval(), inputs)]
        except Exception as e:
            failing[block] = f"without it the forward pass fails: {sentence(e)}"
            continue
        if got != shapes:
            failing[block] = "without it the output has another shape"
    return failing


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*cloned(inputs)))


class _Trial:
    """One random cut per group, fixed, so that a failure is the same in every subset of groups."""

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        inputs: tuple[Any, ...],
        walks: Mapping[bool, Walk],
        taken: Collection[str],
    ) -> None:
        rng = np.random.default_rng(0)
        self.taken = taken
        self.graph, self.walks = graph, walks
        self.dtype = torch.float64
        self.random = any(walk.random for walk in walks.values())
        self.model = copy.deepcopy(model).double()
        self.inputs = pytree.tree_map(lambda x: x.double() if _is_float(x) else x, inputs)
        self.kept: dict[str, tuple[int, ...]] = {}
        for name, size in graph.map.groups.items():
            count = int(rng.integers(1, size))
            self.kept[name] = tuple(sorted(rng.choice(size, count, replace=False).tolist()))
        self._expected: tuple[tuple[str, ...], dict[bool, list[Any]]] = ((), {})
        trained = {n: t.clone() for n, t in self.model.state_dict().items() if isinstance(t, Tensor)}
        randomise(self.model, rng)
        try:
            outputs = self._run(self.model, False)
        except RuntimeError:  # a forward that asks for float32 cannot run in double
            self.model, self.inputs, self.dtype = self.model.float(), inputs, torch.float32
            outputs = self._run(self.model, False)
        if not all(bool(torch.isfinite(y).all()) for y in outputs if _is_float(y)):
            self.model.load_state_dict(trained, strict=False)
        self.comparable = {mode: not self.random or self._repeats(mode) for mode in (False, True)}

    def failure(self, names: list[str], sizes: Mapping[str, Axis]) -> str | None:
        """Why the model cut in these groups differs from the full one, or None."""
        kept = {n: self.kept[n] if n in names else tuple(range(s)) for n, s in self.graph.map.groups.items()}
        plan = SubmodelPlan(replace(self.graph.map, sizes=sizes), kept)
        small = extract(self.model, plan)
        least = {n: k[:1] if n in self.taken and n in names else k for n, k in kept.items()}
        try:
            if least != kept:
                self._run(extract(self.model, SubmodelPlan(plan.map, least)), False)
        except Exception as e:
            return f"with one channel the forward pass fails: {sentence(e)}"
        if self._expected[0] != tuple(names):  # it does not depend on the sizes
            self._expected = (tuple(names), {})
        for training in (False, True):
            try:
                actual = self._run(small, training)
            except Exception as e:
                return f"with fewer channels the forward pass fails: {sentence(e)}"
            if training not in self._expected[1]:
                self._expected[1][training] = self._full(plan, training)
            expected = self._expected[1][training]
            if [getattr(y, "shape", y) for y in expected] != [getattr(y, "shape", y) for y in actual]:
                return "with fewer channels the output has another shape"
            if self.comparable[training] and not all(_close(a, b) for a, b in zip(actual, expected, strict=True)):
                return "with fewer channels the output differs from that of the full model with zeros"
        return None

    def _full(self, plan: SubmodelPlan, training: bool) -> list[Any]:
        """The outputs of the full model whose cut channels are zero and, where a norm runs over some, left out of its
        statistics."""
        walk = self.walks[training]
        masked = copy.deepcopy(self.model)
        mask(masked, plan)
        if not any(s.group for axes in walk.axes.values() for axis in axes for s in axis):
            return self._run(masked, training)
        with self._steady(), self._precision():
            return MaskedRun(walk, plan).outputs(masked, self.inputs)

    def _repeats(self, training: bool) -> bool:
        """Whether the model gives the same numbers twice, so that they can be compared, not only shapes."""
        first, second = self._run(copy.deepcopy(self.model), training), self._run(copy.deepcopy(self.model), training)
        return all(_close(a, b) for a, b in zip(first, second, strict=True))

    def _run(self, model: nn.Module, training: bool) -> list[Any]:
        model.train(training)
        with torch.no_grad(), self._steady(), self._precision():
            return pytree.tree_leaves(model(*cloned(self.inputs)))

    def _steady(self) -> contextlib.AbstractContextManager[Any]:
        return Steady() if self.random else contextlib.nullcontext()

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """Tensors that a forward makes without a type are of the model's."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def mask(model: nn.Module, plan: SubmodelPlan) -> None:
    """Zero, in place, every element of the full model that the plan removes (running variances become one)."""
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            for d, index in enumerate(plan.indices(name)):
                if index is not None:
                    gone = torch.ones(t.shape[d], dtype=torch.bool)
                    gone[index] = False
                    t.index_fill_(d, gone.nonzero()[:, 0].to(t.device), 1.0 if name.endswith("running_var") else 0.0)


def randomise(model: nn.Module, rng: np.random.Generator) -> None:
    """Fill parameters and batch norm statistics with random numbers of a size that keeps activations bounded."""

    def draw(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.from_numpy(rng.uniform(low, high, tuple(t.shape))))

    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                width = float(np.sqrt(6 / max(1, p.numel() // p.shape[0]))) if p.dim() > 1 else 1.0
                draw(p, -width, width)
        for module in model.modules():
            mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                draw(mean, -0.5, 0.5)
                draw(var, 0.5, 1.5)


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b)
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    error = (a.double() - b.double()).abs().max() if a.numel() else torch.zeros(())
    scale = b.double().abs().max() if b.numel() else torch.zeros(())
    tolerance = 1e-6 if a.dtype == torch.float64 else 1e-4
    return bool(error <= tolerance * (1e-6 + scale))  # not true for NaN
