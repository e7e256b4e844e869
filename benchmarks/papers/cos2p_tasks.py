"""What benchmarks/papers/cos2p.py trains: the fleet's classes, their budgets, and the model that fits everybody."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn

from edgeprune import tasks
from edgeprune.algorithms.rates import depth_plan
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, extract
from edgeprune.tasks import Task

RATES = (1.0, 0.75, 0.5, 0.25)


@cache
def graph_of(name: str) -> ChannelGraph:
    """The channel graph of a built-in task's model."""
    task = tasks.get(name)
    return ChannelGraph.trace(task.make_model(), task.example_inputs())


def class_plan(name: str, rate: float) -> SubmodelPlan:
    """A sub-model of Co-S2P's shape at ``rate``: its depth, and that share of every group."""
    graph = graph_of(name)
    return width_plan(name, rate).drop(*depth_plan(graph, rate).dropped)


def width_plan(name: str, share: float) -> SubmodelPlan:
    """All blocks, ``share`` of every group (HeteroFL's shape)."""
    graph = graph_of(name)
    return choose(graph, {group: -torch.arange(size) for group, size in graph.map.groups.items()}, share)


@cache
def equal_width(name: str, rate: float) -> float:
    """The largest width share (in steps of 1/64) whose sub-model has no more parameters and no more multiply-adds than
    Co-S2P's at ``rate``; the smallest step where even that has more."""
    graph, ours = graph_of(name), class_plan(name, rate)
    budget = ours.parameters, graph.macs(ours.counts, ours.dropped)
    least, most = 1, 65  # of 64ths: the smallest step is taken as it is, one above all is too much
    while most - least > 1:
        step = (least + most) // 2
        plan = width_plan(name, min(1.0, step / 64))
        within = plan.parameters <= budget[0] and graph.macs(plan.counts) <= budget[1]
        least, most = (step, most) if within else (least, step)
    return least / 64


def fits_all(name: str) -> Task:
    """The task with the largest all-blocks model that Co-S2P's smallest class can hold."""
    task, plan = tasks.get(name), width_plan(name, equal_width(name, RATES[-1]))

    def make() -> nn.Module:
        return extract(task.make_model(), plan)

    return replace(task, make_model=make)


def fits_shallow(name: str) -> Task:
    """The task with just the sub-model that Co-S2P's smallest class holds: a quarter of the blocks, thin."""
    task, plan = tasks.get(name), class_plan(name, RATES[-1])
    return replace(task, make_model=lambda: extract(task.make_model(), plan))


def har_fits() -> Task:
    return fits_all("uci-har")


def har_shallow() -> Task:
    return fits_shallow("uci-har")


def vit_fits() -> Task:
    return fits_all("cifar10-vit")


def text_fits() -> Task:
    return fits_all("shakespeare")
