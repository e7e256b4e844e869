"""Who holds how much of a network: by a table, and by profiles, against a search over all rates by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from edgeprune.algorithms.cos2p import CoS2P
from edgeprune.algorithms.protocol import Recipe, Setting
from edgeprune.algorithms.rates import dealt, rungs
from edgeprune.errors import EdgePruneError
from edgeprune.fleet.link import Link
from edgeprune.fleet.reports import Report
from edgeprune.pruning import ChannelGraph
from edgeprune.tasks import transformers


@pytest.fixture(scope="module")
def vit():
    """A ViT of four blocks and its graph, traced once."""
    torch.manual_seed(0)
    model = transformers.vit(width=16, heads=4, depth=4, patch=8, side=16, classes=3)
    return model, ChannelGraph.trace(model, (torch.zeros(2, 3, 16, 16),))


@dataclass(frozen=True)
class Speed:
    """A device whose step takes so many seconds a multiply-add, and a byte of memory a parameter."""

    each_s: float

    def step_s(self, size):
        return self.each_s * size.macs

    def memory(self, size):
        return size.parameters

    def energy_j(self, size):
        return None


def profiled(graph, slowdowns, **limits):
    names = tuple(f"d{i}" for i in range(len(slowdowns)))
    link = Link(1e9, 1e9, 0.0)
    reports = tuple(Report(n, Speed(s * 1e-6), link, steps=10, **limits) for n, s in zip(names, slowdowns, strict=True))
    return Setting(graph, names, dict.fromkeys(names, 8), Recipe(1, 4, 0.1, 0.0, 0.0), 5, reports=reports)


def test_the_table_is_dealt_evenly():
    assert dealt((1.0, 0.5), ("a", "b", "c", "d", "e")) == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.5, "e": 0.5}


def test_a_profile_gives_each_the_largest_rate_that_is_in_time(vit):
    model, graph = vit
    setting = profiled(graph, (1.0, 1.5, 3.0, 40.0))
    state = CoS2P(rates_by="profile").init(setting, model.state_dict())
    every = rungs(graph, 0.25, True)
    assert [rung.retention for rung in every] == pytest.approx([1 - 0.05 * i for i in range(16)])
    for report, slowdown in zip(setting.reports[:3], (1.0, 1.5, 3.0), strict=True):
        fits = [rung.retention for rung in every if slowdown * rung.size.macs <= every[0].size.macs * 1.0001]
        assert state.memory["rates"][report.name] == max(fits)
    assert state.memory["rates"]["d3"] == 0.25 and "still take" in state.memory["why"]["d3"]
    assert state.memory["learning"] == ["d1", "d2", "d3"]
    small = CoS2P(rates_by="profile").init(profiled(graph, (1.0, 1.0), memory_bytes=5000.0), model.state_dict())
    held = next(rung for rung in every if rung.size.parameters <= 5000)
    assert small.memory["rates"] == {"d0": held.retention, "d1": held.retention}


def test_who_cannot_meet_the_deadline_sits_out(vit):
    model, graph = vit
    setting = profiled(graph, (1.0, 2.0, 1e4))
    whole_s = 10 * 1e-6 * rungs(graph, 0.25, True)[0].size.macs
    algorithm = CoS2P(rates_by="profile", deadline_s=1.01 * whole_s)
    state = algorithm.init(setting, model.state_dict())
    assert state.memory["rates"]["d0"] == 1.0 and 0.25 <= state.memory["rates"]["d1"] < 1
    assert state.memory["rates"]["d2"] == 0.0
    assert [asked.client for asked in algorithm.assign(setting, state)] == ["d0", "d1"]
    assert (
        state.memory["coverage"]
        == replace(algorithm, deadline_s=0.0).init(profiled(graph, (1.0, 2.0)), model.state_dict()).memory["coverage"]
    )
    with pytest.raises(EdgePruneError, match="no device is as fast"):
        replace(algorithm, deadline_s=1e-9).init(setting, model.state_dict())


def test_rates_by_profile_need_profiles(vit):
    model, graph = vit
    bare = replace(profiled(graph, (1.0,)), reports=())
    with pytest.raises(EdgePruneError, match="algorithm 'cos2p' needs a profile of every client"):
        CoS2P(rates_by="profile").init(bare, model.state_dict())
