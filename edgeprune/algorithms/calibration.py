"""Batch-norm statistics of merged weights, measured anew on the devices' own data.

Training under batch-norm uses each batch's own mean and variance; the running statistics serve evaluation only. After
a merge of unequal sub-models they are wrong: a narrow worker's activations have other means and variances than the
whole model's, and averaging the two fits neither (HeteroFL keeps statistics out of the merge and queries them
afterwards; slimmable networks keep one set for each width). So the merged model is calibrated: every device passes its
data forward, and the server pools what they saw (a few passes make it exact, see :func:`local_statistics`):

    mean = sum_c n_c m_c / N          var = sum_c n_c (v_c + m_c^2) / N - mean^2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MEAN, VAR = "running_mean", "running_var"


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norms of ``model`` that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@torch.no_grad()
def local_statistics(model: nn.Module, batches: Iterable[Tensor], *, own: bool) -> dict[str, Tensor]:
    """Mean and variance of every batch-norm's input over ``batches``, exact, under their names in the state dict; one
    that nothing came to (of an exit, which only training runs) keeps its own.

    ``own``: the layers in front normalise by each batch's own statistics (the first pass, when the model's are not to
    be trusted); otherwise by the model's. The first layer's figures do not depend on that, the second layer's are
    exact once the first's are in the model, and so on: a network of n batch-norms needs n passes to be exact.
    """
    model.train(own)
    norms = norms_of(model)
    sums = {name: torch.zeros(3, norm.num_features, dtype=torch.float64) for name, norm in norms.items()}
    handles = []
    for name, norm in norms.items():
        norm.momentum, kept = 0.0, norm.momentum  # normalise, but leave the running statistics alone

        def record(_: nn.Module, inputs: tuple[Tensor, ...], into: Tensor = sums[name]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1).double()
            into += torch.stack([x.sum(1), x.square().sum(1), torch.full_like(into[0], x.shape[1])])

        handles.append((norm, norm.register_forward_pre_hook(record), kept))
    try:
        for batch in batches:
            model(batch)
    finally:
        for norm, handle, kept in handles:
            handle.remove()
            norm.momentum = kept
        model.eval()
    found: dict[str, Tensor] = {}
    for name, norm in norms.items():
        total, square, count = sums[name]
        prefix = f"{name}." if name else ""
        assert norm.running_mean is not None and norm.running_var is not None
        if not count.any():
            found |= {prefix + MEAN: norm.running_mean.clone(), prefix + VAR: norm.running_var.clone()}
            continue
        mean = total / count
        found[prefix + MEAN] = mean.to(norm.running_mean.dtype)
        found[prefix + VAR] = (square / count - mean * mean).clamp_min(0).to(norm.running_var.dtype)
    return found


def pooled(found: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Statistics of all data together, from each client's (samples, statistics), in the given order, in double."""
    total = sum(samples for samples, _ in found)
    result: dict[str, Tensor] = {}
    for name in found[0][1]:
        if not name.endswith(MEAN):
            continue
        twin = name.removesuffix(MEAN) + VAR
        mean = torch.zeros_like(found[0][1][name], dtype=torch.float64)
        square = torch.zeros_like(mean)
        for samples, statistics in found:
            m, v = statistics[name].double(), statistics[twin].double()
            mean += m * (samples / total)
            square += (v + m * m) * (samples / total)
        result[name] = mean.to(found[0][1][name].dtype)
        result[twin] = (square - mean * mean).clamp_min(0).to(found[0][1][twin].dtype)
    return result
