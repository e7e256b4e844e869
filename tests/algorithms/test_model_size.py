"""What a retention amounts to, for a real graph."""

from __future__ import annotations

import pytest
import torch

from edgeprune import EdgePruneError, tasks
from edgeprune.algorithms.adaptcl import AdaptCL, scale
from edgeprune.pruning import ChannelGraph, ranking, scores
from edgeprune.pruning.cost import macs
from edgeprune.pruning.surgery import extract


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    task = tasks.get("digits")
    model = task.make_model()
    graph = ChannelGraph.trace(model, task.example_inputs())
    return model, graph, ranking(graph, scores(model, graph, how="l1"), min_channels=2), task.example_inputs()


@pytest.mark.parametrize("count", [1, 6, 7, 100, 300, 448])
def test_work_is_that_of_the_extracted_model(digits, count):
    model, graph, frozen, inputs = digits
    size = scale(graph, frozen, "work").size(count)
    plan = frozen.plan(count / 448)
    assert size == macs(extract(model, plan), inputs) / macs(model, inputs)
    assert frozen.counts(count) == plan.counts


def test_work_rises_with_every_channel(digits):
    _, graph, frozen, _ = digits
    sizes = scale(graph, frozen, "work")
    found = [sizes.size(count) for count in range(sizes.least, sizes.channels + 1)]
    assert found == sorted(set(found)) and found[-1] == 1.0


def test_channels_are_the_papers_scale(digits):
    _, graph, frozen, _ = digits
    sizes = scale(graph, frozen, "channels")
    assert sizes.least == 6 and sizes.of(0.25) == 112 / 448


def test_unknown_size_is_one_sentence():
    with pytest.raises(EdgePruneError, match=r"size_by is 'wrok'; did you mean 'work'"):
        AdaptCL(size_by="wrok")  # type: ignore[arg-type]
