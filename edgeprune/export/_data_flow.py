"""Does a forward turn its input's values into Python values? A recorded graph would hold those of the example for ever.

torch's own warnings do not tell: they come for sizes and for constants too. Here one run is watched, operator by
operator, and what was computed from the inputs is followed through the memory that it was written to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = ("_local_scalar_dense", "equal")  # operators whose result is a Python value
_COPIES = ("tolist", "numpy", "__array__")  # methods that read the memory without an operator


def value_read(model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """Where ``model(*inputs)`` turns data into a Python value, such as "net.py, line 12"; None where it does not.

    Sizes, weights and buffers are no data: only what was computed from the values of ``inputs`` counts.
    """
    watch = _Watch(inputs)
    with torch.no_grad(), _Methods(watch), watch:
        model(*inputs)
    return watch.found


class _Watch(TorchDispatchMode):
    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.found: str | None = None
        # By address; the storages are kept, so that no address is used twice.
        self._data = {s._cdata: s for s in map(_storage, inputs) if s is not None}

    def holds(self, values: Any) -> bool:
        return any(s._cdata in self._data for s in _storages(values))

    def note(self) -> None:
        self.found = self.found or _place()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        from_data = self.holds((args, kwargs))
        if from_data and func.overloadpacket.__name__ in _READS:
            self.note()
        out = func(*args, **kwargs)
        if from_data and not _only_shaped_like(func):
            self._data.update((s._cdata, s) for s in _storages(out))
        return out


class _Methods(TorchFunctionMode):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _COPIES and self._watch.holds(args[:1]):
            self._watch.note()
        return func(*args, **(kwargs or {}))


def _only_shaped_like(func: Any) -> bool:
    """zeros_like, new_ones and the like: a new tensor that has nothing of the data but its size."""
    name = func.overloadpacket.__name__
    return name.endswith("_like") or name.startswith("new_")


def _storages(values: Any) -> Iterator[Any]:
    return (s for s in map(_storage, tree_leaves(values)) if s is not None)


def _storage(value: Any) -> Any:
    try:
        return value.untyped_storage() if isinstance(value, Tensor) else None
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one
        return None


def _place() -> str:
    """The file, without its folders, and the line of the innermost code that is not torch's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "edgeprune"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}, line {frame.f_lineno}"
