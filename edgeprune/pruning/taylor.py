"""Taylor importance: how much the loss would change if a weight were zero, to first order, on given batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgePruneError, shown
from edgeprune.nn.copying import copied
from edgeprune.pruning.capture import sentence

Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]


def saliencies(model: nn.Module, batches: Batches, loss: Loss = functional.cross_entropy) -> Mapping[str, Tensor]:
    """Per tensor of the state |gradient x weight|, the mean over the batches; zero for what has no gradient.

    ``batches``: (inputs, target) each, inputs a tensor or a tuple; ``loss(output, target)``: a scalar. The model is
    copied and stays in evaluation mode, so that its statistics are not touched.
    P. Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771, equation 3, with the
    magnitude in the place of the square and summed over elements: where a batch norm follows, gradient x weight of a
    whole filter adds up to zero, so the sum must be taken after the magnitude.
    Raises EdgePruneError when there is no batch or the loss is not one finite number.
    """
    if not isinstance(batches, Iterable):
        raise EdgePruneError(f"importance 'taylor': batches is {shown(batches)}; give [(inputs, target), ...]")
    frozen = copied("prune", model).eval()
    weights = dict(frozen.named_parameters(remove_duplicate=False))
    for p in weights.values():
        p.requires_grad_(p.is_floating_point())
    total = {name: torch.zeros_like(t) for name, t in frozen.state_dict().items() if isinstance(t, Tensor)}
    count = 0
    with torch.enable_grad():
        for batch in batches:
            frozen.zero_grad()
            try:
                x, y = batch
                value = loss(frozen(*(x if isinstance(x, tuple) else (x,))), y)
            except Exception as e:
                raise EdgePruneError(
                    f"importance 'taylor': the loss of batch {count} cannot be computed: {sentence(e)}; give (inputs, "
                    "target) that the model and the loss take"
                ) from e
            if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value)):
                raise EdgePruneError(f"importance 'taylor': the loss of batch {count} is not one finite number")
            value.backward()
            for name, p in weights.items():
                if p.grad is not None:
                    total[name] += (p.grad * p.detach()).abs()
            count += 1
    if not count:
        raise EdgePruneError("importance 'taylor' needs data; give batches=[(inputs, target), ...]")
    return {name: t / count if t.is_floating_point() else t for name, t in total.items()}
