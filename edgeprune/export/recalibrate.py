"""Batch-norm statistics of a sub-model, estimated anew on data.

A sub-model cut out of the merged model inherits running means and variances that were averaged over devices of other
widths; its own activations have others. One pass over training data without gradients puts that right (the
"post-statistics of batch normalisation" of universally slimmable networks, arXiv 1903.05134).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_statistics(model: nn.Module) -> bool:
    """Whether ``model`` has any batch norm that keeps running statistics."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def recalibrated(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of ``model`` in eval mode whose batch norms hold the mean statistics over ``batches``.

    Every batch weighs the same, so they should be of one size (a smaller last one is better left out). All else is
    unchanged, ``model`` included; without batch norm it is a plain copy.
    """
    fresh = copy.deepcopy(model).eval()
    norms = [module for module in fresh.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean over the batches
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            fresh(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return fresh.eval()
