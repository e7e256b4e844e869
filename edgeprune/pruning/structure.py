"""copy.deepcopy for modules, without its detours: a model's structure is copied for every new sub-model."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

from torch import nn

_ATOMIC = (int, float, str, bool, bytes, complex, type(None), type)
_OWN_WAY = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__slots__")


class Skip(nn.Module):
    """Stands for a block that was left out: its first argument passes unchanged."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x


def copy_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy(module, memo)`` gives; classes that say themselves how they are copied are asked."""
    return _copy(module, memo)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in _ATOMIC:
        return value
    done = memo.get(id(value))
    if done is not None:
        return done
    if kind is tuple and all(type(v) in _ATOMIC for v in value):
        return value
    if kind is set and all(type(v) in _ATOMIC for v in value):
        memo[id(value)] = set(value)
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        twin = memo[id(value)] = kind()
        for key, item in value.items():
            twin[key if type(key) in _ATOMIC else copy.deepcopy(key, memo)] = _copy(item, memo)
        return twin
    if _plain(kind):
        new = memo[id(value)] = object.__new__(kind)
        for key, item in value.__dict__.items():
            if key != "_compiled_call_impl":  # as nn.Module says: compiled code is not copied
                new.__dict__[key] = _copy(item, memo)
        return new
    return copy.deepcopy(value, memo)


@functools.cache
def _plain(kind: Any) -> bool:
    """A module whose classes leave copying to Python (torch's own ``__setstate__`` only mend old pickles)."""
    if not issubclass(kind, nn.Module):
        return False
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        own = [*_OWN_WAY, "__new__", *([] if base.__module__.startswith("torch.nn.modules.") else ["__setstate__"])]
        if any(name in base.__dict__ for name in own):
            return False
    return True
