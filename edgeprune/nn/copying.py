"""Copying a user's model, and the sentence where it cannot be copied."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeprune.errors import EdgePruneError


def copied(op: str, model: nn.Module) -> nn.Module:
    """A deep copy; EdgePruneError names the tensor that stands in the way."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a user's module holds may refuse to be copied in any way
        raise not_copied(op, model, error) from None


def not_copied(op: str, model: nn.Module, error: Exception) -> EdgePruneError:
    """The sentence for a copy that failed with ``error``."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if any(isinstance(x, Tensor) and not x.is_leaf for x in pytree.tree_leaves(value)):
                at = f"{path}.{name}".lstrip(".")
                return EdgePruneError(
                    f"{op}: {type(model).__name__} cannot be copied, since {at!r} was computed with gradients; keep it "
                    "detached, or take away the weight norm or pruning that computes it"
                )
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return EdgePruneError(f"{op}: {type(model).__name__} cannot be copied: {first}")
