"""What forward returns, as a file gives it: one tensor, several, or several with names."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import EdgePruneError


def tensors_of(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of what forward returned, in its order."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(outputs.values() if isinstance(outputs, Mapping) else outputs)


def names_of(model: nn.Module, outputs: Any, taken: Collection[str]) -> list[str]:
    """Names for the outputs of a file: the keys of a dict, else "output" or numbered ones.

    EdgePruneError for what no file can give; ``taken`` are the names of its inputs.
    """
    named = isinstance(outputs, Mapping)
    flat = tensors_of(outputs) if named or isinstance(outputs, Tensor | tuple | list) else ()
    if not flat or not all(isinstance(y, Tensor) and y.ndim for y in flat):
        raise EdgePruneError(
            f"export: {type(model).__name__} returns {type(outputs).__name__}; an exported model returns a tensor, or "
            "a tuple or dict of tensors, with the batch in dimension 0"
        )
    if not named:
        return ["output"] if len(flat) == 1 else [f"output_{i}" for i in range(len(flat))]
    for key in outputs:
        if not isinstance(key, str) or not key.isidentifier() or key in taken:
            raise EdgePruneError(
                f"export: {type(model).__name__} returns a dict with the key {key!r}, which cannot be an output's "
                f"name in a file; use letters, digits and _, and none of {', '.join(taken)}"
            )
    return list(outputs)


def returning_tuple(model: nn.Module) -> nn.Module:
    """``model`` itself, changed: forward returns the values of its dict as a tuple, which both exporters know."""
    own = type(model)

    @functools.wraps(own.forward)  # whose signature torch.export reads
    def forward(self: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tensors_of(own.forward(self, *inputs))

    # Under the model's own name, which error messages show, and with its weights' names, which the file keeps.
    model.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    return model
