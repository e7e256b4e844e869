"""Sizes that modules hold in attributes (num_heads, hidden_dim, split sizes ...): found once, set at extraction.

An attribute is found by its number: one that equals the length of a prunable dimension which the module handles. Two
dimensions of one length, or a number that only happens to be equal, are told apart by the check run of the trace.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeprune.errors import EdgePruneError
from edgeprune.pruning.axes import Axis, axis_length

_REPAIRED = frozenset(
    ("in_features", "out_features", "in_channels", "out_channels", "groups", "num_features", "num_parameters",
     "num_groups", "num_channels", "normalized_shape", "embedding_dim", "num_embeddings", "embed_dim", "kdim", "vdim",
     "num_heads", "head_dim", "input_size", "hidden_size", "kernel_size", "stride", "padding", "dilation",
     "output_padding")
)  # fmt: skip
_COUNTED = re.compile("layer|depth|block|stage|class|vocab|window|patch|kernel|stride|image|batch|seed|length|place")
"""Names of attributes that seldom hold channels: left alone until the check run fails with them."""
_SIZED = re.compile("head|dim$|width|hidden|chan|feature|embed|planes|intermediate")
_LIMIT = re.compile("max|min|limit|most")
"""Names that say a size, and those that say a limit of something: the former follow what they equal, read or not."""

MOST = 64
"""Choices of attributes tried for one failing group, and kinds of them tried without a change."""


@dataclass(frozen=True)
class Candidate:
    """``name`` ("blocks.0.attn.num_heads"), its class and attribute, the dimensions it may be, and ``plain``: whether
    a dimension that stays whole has the same length."""

    name: str
    kind: tuple[type, str]
    options: tuple[Axis, ...]
    plain: bool

    @property
    def sized(self) -> bool:
        """Whether its name says that it is a size."""
        return bool(_SIZED.search(self.kind[1])) and not _LIMIT.search(self.kind[1])

    @property
    def label(self) -> str:
        """Class and attribute ("Attention.num_heads"), with the place in a row of numbers ("Split.sizes.0")."""
        *_, last, item = ("", *self.name.split("."))
        return f"{self.kind[0].__name__}.{self.kind[1]}" + (f".{item}" if last == self.kind[1] != item else "")

    @property
    def first(self) -> Axis | None:
        return None if self.plain or _COUNTED.search(self.kind[1]) else self.options[0]


def candidates(model: nn.Module, handled: Mapping[str, Iterable[Axis]], repaired: tuple[type, ...]) -> list[Candidate]:
    """The attributes that may hold a size. ``handled``: by module path the dimensions it sees; ``repaired``: kinds of
    modules whose sizes follow from their tensors (surgery.REPAIRS)."""
    found = []
    for path, axes in handled.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        own = isinstance(module, repaired) and any(t is not None for t in module._parameters.values())
        by_length: dict[int, list[Axis]] = {}
        for axis in axes:
            by_length.setdefault(sum(s.length for s in axis), []).append(axis)
        for attribute, value in _numbers(module):
            same = [] if own and attribute.partition(".")[0] in _REPAIRED else by_length.get(value, [])
            cut = tuple(dict.fromkeys(axis for axis in same if any(s.group for s in axis)))
            if cut:
                kind = (type(module), attribute.partition(".")[0])
                name = f"{path}.{attribute}" if path else attribute
                found.append(Candidate(name, kind, cut, len(cut) < len(set(same))))
    return found


def choices(found: list[Candidate], group: str, sizes: Mapping[str, Axis]) -> Iterator[dict[str, Axis]]:
    """Other readings of the attributes that may be a size of ``group``: all of them are, none is, then the same for one
    attribute of one class, then for two."""
    near: dict[tuple[type, str], list[Candidate]] = {}
    for c in found:
        if any(s.group == group for axis in c.options for s in axis):
            near.setdefault(c.kind, []).append(c)
    every = [c for same in near.values() for c in same]
    changes = [_read(every, group, True), _read(every, group, False)]
    single = [(kind, _read(same, group, take)) for kind, same in near.items() for take in (True, False)]
    changes += [change for _, change in single]
    changes += [{**a, **b} for (k, a), (m, b) in itertools.combinations(single, 2) if k != m]
    tried = [dict(sizes)]
    for change in changes[:MOST]:
        read: dict[str, Axis | None] = {**sizes, **change}
        new = {name: axis for name, axis in read.items() if axis is not None}
        if new not in tried:
            tried.append(new)
            yield new


def _read(found: list[Candidate], group: str, take: bool) -> dict[str, Axis | None]:
    """Each of these attributes is a size of the group, or is none."""
    new: dict[str, Axis | None] = {}
    for c in found:
        of = [axis for axis in c.options if any(s.group == group for s in axis)]
        others = [axis for axis in c.options if axis not in of]
        new[c.name] = of[0] if take else others[0] if others else None
    return new


def resize(model: nn.Module, sizes: Mapping[str, Axis], counts: Mapping[str, int]) -> None:
    """Set every such attribute to the number of kept positions; EdgePruneError if it does not hold the full one."""
    for name, axis in sizes.items():
        path, _, attribute = name.rpartition(".")
        item = int(attribute) if attribute.isascii() and attribute.isdigit() else None
        if item is not None:
            path, _, attribute = path.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        held = vars(module).get(attribute) if module is not None else None
        value = held[item] if isinstance(held, (tuple, list)) and item is not None and item < len(held) else held
        if type(value) is not int or value != sum(s.length for s in axis):
            raise EdgePruneError(f"the plan was made for another model: {name!r} does not hold the size it names")
        new: Any = axis_length(axis, counts)
        if isinstance(held, (tuple, list)):
            new = type(held)(new if i == item else v for i, v in enumerate(held))
        setattr(module, attribute, new)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Attributes that are whole numbers above one, and the items of short rows of whole numbers ("sizes.0")."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if type(value) is int and value > 1:
            yield name, value
        elif type(value) in (tuple, list) and len(value) <= 8 and all(type(v) is int for v in value):
            yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if v > 1)
