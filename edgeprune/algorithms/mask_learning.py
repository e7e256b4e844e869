"""A device learns which channels its own data need, with the weights left as they are (Co-S2P, arXiv 2410.08457).

    every channel i of every group has a score s_i and stays with probability p_i = sigmoid(s_i)
    each step draws m_i ~ Bernoulli(p_i) and computes with m_i times the channel
    loss = task loss + lambda |mean m - r|                        r: the share of the channels to keep
    straight through:  the gradient of s_i is p_i times that of m_i
    in the end every group keeps the round(r size) channels with the largest p, and the structure is fixed

A masked channel is one whose outputs are zero: the weights that make it, its bias, its norm's scale. In an attention
layer a channel is a head, its query, key and value together. Scores are moved by Adam, so that their step does not
depend on the scale of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.training import LocalData, Trained
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose

STEP = 0.1  # Adam's, in units of the score


@dataclass(frozen=True)
class Learnt:
    """The plan, every group's probabilities, and the work that finding them took."""

    plan: SubmodelPlan
    kept: Mapping[str, Tensor]
    trained: Trained


class _StraightThrough(torch.autograd.Function):
    """A Bernoulli draw of sigmoid(score) whose gradient is p times what arrives."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        p = torch.sigmoid(score)
        ctx.save_for_backward(p)
        return torch.bernoulli(p)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p * grads[0]


def learn_mask(
    model: nn.Module,
    graph: ChannelGraph,
    plan: SubmodelPlan,
    data: LocalData,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    job: Job,
    seed: int,
) -> Learnt:
    """Learn for ``recipe.epochs`` which ``job.learn`` of the channels of ``model`` stay; ``plan`` says which blocks it
    has. Groups that it lacks keep their first channels. The weights are not changed. Where the loss is no number any
    more, nothing can be learnt: it ends there, and that is the loss it tells.
    """
    order = torch.Generator().manual_seed(seed)
    made = channel_makers(graph, plan)
    groups = sorted({group for parts in made.values() for _, group, _ in parts})
    scores = {group: torch.zeros(graph.map.groups[group], requires_grad=True) for group in groups}
    optimizer = torch.optim.Adam(list(scores.values()), lr=STEP)
    weights = {name: t.detach() for name, t in model.state_dict(keep_vars=True).items()}
    steps, total, seen = 0, 0.0, 0
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(recipe.epochs):
            total, seen = 0.0, 0
            for batch in torch.randperm(len(data), generator=order).split(recipe.batch_size):
                if len(batch) == 1 < min(recipe.batch_size, len(data)):
                    continue
                masks = {group: _StraightThrough.apply(score) for group, score in scores.items()}
                output = functional_call(model, masked(weights, masks, made), (data.normalise(data.x[batch]),))
                loss = loss_of(output, data.y[batch])
                mean = torch.cat(list(masks.values())).mean()
                objective = loss + job.pull * (mean - job.learn).abs()
                optimizer.zero_grad(set_to_none=True)
                objective.backward()
                if not all(bool(score.grad.isfinite().all()) for score in scores.values() if score.grad is not None):
                    return _learnt(graph, scores, job, plan, Trained(math.nan, steps))
                optimizer.step()
                total, seen, steps = total + float(loss.detach()) * len(batch), seen + len(batch), steps + 1
    return _learnt(graph, scores, job, plan, Trained(total / max(seen, 1), steps))


def _learnt(
    graph: ChannelGraph, scores: Mapping[str, Tensor], job: Job, plan: SubmodelPlan, trained: Trained
) -> Learnt:
    kept = {group: torch.sigmoid(score.detach()) for group, score in scores.items()}
    found = {group: kept.get(group, torch.zeros(size)) for group, size in graph.map.groups.items()}
    return Learnt(cut(graph, found, job.learn, plan), kept, trained)


def cut(graph: ChannelGraph, scores: Mapping[str, Tensor], share: float, plan: SubmodelPlan) -> SubmodelPlan:
    """The best ``share`` of every group, without the blocks that ``plan`` lacks."""
    return choose(graph, scores, share).drop(*plan.dropped)


Part = tuple[int, str, Tensor]


def channel_makers(graph: ChannelGraph, plan: SubmodelPlan) -> dict[str, list[Part]]:
    """By name the tensors that make channels: (dimension, group, [length] the channel of every position, -1 for those
    that are nobody's)."""
    found: dict[str, list[Part]] = {}
    for group in graph.prunable.values():
        for member in group.members:
            if member.role == "in" or not plan.holds(member.tensor):
                continue
            where = _channel_of(graph, member.tensor, member.dim, group.name)
            found.setdefault(member.tensor, []).append((member.dim, group.name, where))
    return found


def masked(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], made: Mapping[str, list[Part]]
) -> dict[str, Tensor]:
    """``weights`` with what makes masked channels multiplied by their mask; norms' statistics and integers are copies,
    since a network in training writes to them."""
    result = {}
    for name, weight in weights.items():
        if not weight.is_floating_point() or name.endswith(("running_mean", "running_var")):
            result[name] = weight.clone()
            continue
        for d, group, where in made.get(name, ()):
            by_position = torch.where(where >= 0, masks[group][where.clamp(min=0)], 1.0)
            weight = weight * by_position.reshape([-1 if e == d else 1 for e in range(weight.dim())])
        result[name] = weight
    return result


def _channel_of(graph: ChannelGraph, tensor: str, d: int, group: str) -> Tensor:
    """For every position along a dimension the channel of ``group`` that it belongs to, else -1."""
    runs = [
        np.tile(np.repeat(np.arange(s.size), s.block), s.repeat) if s.group == group else np.full(s.length, -1)
        for s in graph.axes[tensor][d]
    ]
    return torch.from_numpy(np.concatenate(runs))
