"""What an answer holds where changes are asked for, and where what is owed goes when the plan moves."""

from __future__ import annotations

import torch

from edgeprune.algorithms.heterofl import channels
from edgeprune.algorithms.protocol import Job
from edgeprune.engine.answers import answer_with
from edgeprune.engine.worker import carried_over
from edgeprune.pruning import ChannelGraph, SubmodelPlan, extract_state


def test_statistics_go_as_they_are_and_nothing_of_them_is_owed():
    """A device measures a variance of 0.1 twice; the server's is 1, then 0.4. Half of the changes may go."""
    job = Job(change=True, density=0.5, feedback=True)
    measured = {"w": torch.tensor([5.0, 1.0]), "bn.running_var": torch.tensor([0.1])}
    owed = {}
    for server, sent in ((1.0, [5.0, 0.0]), (0.4, [5.0, 0.0])):
        received = {"w": torch.zeros(2), "bn.running_var": torch.tensor([server])}
        answer = answer_with(measured, received, {}, {}, {}, job, owed)
        assert answer.whole["bn.running_var"].item() == measured["bn.running_var"].item()
        assert answer.packed["w"].tensor().tolist() == sent and answer.residual.keys() == {"w"}
        owed = answer.residual
    assert owed["w"].tolist() == [0.0, 2.0]


def test_statistics_beyond_float16_travel_beside_weights_in_it():
    """Of inputs that are not normalised: their variance is larger, or smaller, than float16 can hold."""
    state = {"w": torch.tensor([5.0, 1.0]), "bn.running_var": torch.tensor([3e5, 1e-9])}
    answer = answer_with(state, state, {}, {}, {}, Job(dtype="fp16"), {})
    assert answer.packed.keys() == {"w"} and answer.packed["w"].tensor().tolist() == [5.0, 1.0]
    assert torch.equal(answer.whole["bn.running_var"], state["bn.running_var"])


def test_what_is_owed_follows_its_weights_to_another_plan():
    model = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(4, 1, bias=False))
    graph = ChannelGraph.trace(model, (torch.zeros(2, 2),))
    (group,) = graph.prunable
    old, new = (SubmodelPlan(graph.map, {group: kept}) for kept in ((0, 1, 2), (1, 2, 3)))
    whole = {"0.weight": torch.arange(1.0, 9.0).reshape(4, 2), "2.weight": torch.arange(1.0, 5.0).reshape(1, 4)}
    moved = carried_over(extract_state(whole, old), old, new)
    assert moved["0.weight"].tolist() == [[3.0, 4.0], [5.0, 6.0], [0.0, 0.0]]
    assert moved["2.weight"].tolist() == [[2.0, 3.0, 0.0]]


def test_a_share_of_channels_is_what_it_is_in_decimals():
    assert 0.55 * 100 > 55
    assert [channels(rate, 100) for rate in (0.55, 0.551, 0.001, 1.0)] == [55, 56, 1, 100]
