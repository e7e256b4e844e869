"""How much a channel matters: norms of the weights that make it, batch norm scales, what the loss would lose (Taylor),
or the user's own measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune import ops
from edgeprune.errors import EdgePruneError, nearest, shown
from edgeprune.pruning.axes import Axis
from edgeprune.pruning.graph import ChannelGraph, ChannelGroup
from edgeprune.pruning.taylor import Batches, Loss, saliencies

IMPORTANCES = ("l1", "l2", "bn", "taylor")
Measure = Callable[[Mapping[str, Tensor], ChannelGroup], Tensor]


def scores(
    model_or_state: nn.Module | Mapping[str, Tensor],
    graph: ChannelGraph,
    how: str | Measure = "l2",
    batches: Batches | None = None,
    loss: Loss = functional.cross_entropy,
) -> dict[str, Tensor]:
    """One float32 score per channel of every prunable group; higher stays longer.

    "l1": sum of the magnitudes of all weights that make the channel (over all layers of the group). "l2": square root
    of the sum of their squares. "bn": mean magnitude of the channel's batch norm scales; a group without batch norm
    gets its l2 norms, scaled so that their mean is the mean of all batch norm scales of the graph (1 if there are
    none). "taylor": mean over ``batches`` of |gradient x weight|, summed over the weights that make the channel; needs
    the model itself and ``loss`` (see taylor.saliencies). A callable ``how(state, group)`` returns its own scores, one
    finite number per channel.
    """
    state = dict(model_or_state.state_dict()) if isinstance(model_or_state, nn.Module) else model_or_state
    groups = graph.prunable
    if callable(how):
        return {name: _own(how(state, group), group) for name, group in groups.items()}
    if how == "l1":
        return {name: _norms(state, graph, group, 1) for name, group in groups.items()}
    if how == "taylor":
        if not isinstance(model_or_state, nn.Module) or batches is None:
            raise EdgePruneError("importance 'taylor' needs the model and data; give batches=[(inputs, target), ...]")
        state = saliencies(model_or_state, batches, loss)
        return {name: _norms(state, graph, group, 1) for name, group in groups.items()}
    l2 = {name: _norms(state, graph, group, 2) for name, group in groups.items()}
    if how == "l2":
        return l2
    if how != "bn":
        raise EdgePruneError(f"unknown importance {shown(how)}{nearest(how, IMPORTANCES)}")
    scales = {name: found for name, group in groups.items() if (found := _scales(state, graph, group)) is not None}
    level = float(torch.cat(list(scales.values())).mean()) if scales else 1.0
    return {name: scales[name] if name in scales else _with_mean(l2[name], level) for name in groups}


def relative(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores divided by the mean of their group, so that groups with larger weights do not win for that alone."""
    return {name: _with_mean(values, 1.0) for name, values in found.items()}


def _with_mean(values: Tensor, level: float) -> Tensor:
    mean = float(values.double().mean())
    return values * (level / mean) if mean > 0 else torch.full_like(values, level)


def _norms(state: Mapping[str, Tensor], graph: ChannelGraph, group: ChannelGroup, p: int) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.role == "out":
            norms = _channel_norms(state, member.tensor, member.dim, p)
            total += _fold(norms if p == 1 else norms.square(), graph.axes[member.tensor][member.dim], group.name)
    return (total if p == 1 else total.sqrt()).float()


def _scales(state: Mapping[str, Tensor], graph: ChannelGraph, group: ChannelGroup) -> Tensor | None:
    sums = torch.zeros(group.size, dtype=torch.float64)
    positions = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.role == "scale":
            norms = _channel_norms(state, member.tensor, 0, 1)
            axis = graph.axes[member.tensor][0]
            sums += _fold(norms, axis, group.name)
            positions += _fold(torch.ones_like(norms), axis, group.name)
    return (sums / positions).float() if bool((positions > 0).all()) else None


def _fold(values: Tensor, axis: Axis, group: str) -> Tensor:
    """Sums over the positions of each channel of the group along one dimension."""
    parts, start = [], 0
    for s in axis:
        if s.group == group:
            parts.append(values[start : start + s.length].reshape(s.repeat, s.size, s.block).sum((0, 2)))
        start += s.length
    return torch.stack(parts).sum(0)


def _channel_norms(state: Mapping[str, Tensor], name: str, dim: int, p: int) -> Tensor:
    if name not in state:
        raise EdgePruneError(
            f"the state lacks {name!r}, which the channel graph reads; give the state of the traced model"
        )
    norms: Tensor = ops.channel_norms(state[name].detach(), dim, p).double()
    if not bool(torch.isfinite(norms).all()):
        raise EdgePruneError(
            f"the importance of {name!r} is not finite: it holds NaN, infinity or enormous values; repair the weights "
            "before pruning"
        )
    return norms


def _own(values: object, group: ChannelGroup) -> Tensor:
    try:
        values = torch.as_tensor(values).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise EdgePruneError(
            f"the importance of {group.name!r} must be {group.size} finite numbers, not {shown(values)}"
        ) from None
    if values.shape != (group.size,) or not bool(torch.isfinite(values).all()):
        raise EdgePruneError(
            f"the importance of {group.name!r} must be {group.size} finite numbers, not shape {tuple(values.shape)}"
            + ("" if values.shape != (group.size,) else " with NaN or infinity")
        )
    return values
