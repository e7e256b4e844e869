"""The merge rules of the configuration: what they do to a cohort with one liar, and what is refused."""

from __future__ import annotations

import pytest
import torch

from edgeprune.algorithms import ALGORITHMS
from edgeprune.algorithms.averaging import average
from edgeprune.algorithms.protocol import Update
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.axes import AxisMap, Segment

AVERAGING = [name for name, kind in sorted(ALGORITHMS.items()) if "merge_rule" in kind.__dataclass_fields__]
PLAN = SubmodelPlan(AxisMap({"g": 2}, {"w": ((Segment("g", 2),),)}), {})
BASE = {"w": torch.tensor([0.0, 1.0])}


def update(client: str, *w: float, samples: int = 1) -> Update:
    return Update(client, PLAN, {"w": torch.tensor(w, dtype=torch.float32)}, samples, 0.1, 1.0)


HONEST = [update("a", 1, 2), update("b", 3, 2, samples=3), update("c", 2, 2)]
LIAR = update("d", 1e20, -1e20, samples=1000)


def test_each_rule_by_hand():
    assert average(BASE, HONEST)["w"].tolist() == pytest.approx([2.4, 2.0])
    assert average(BASE, HONEST, rule="median")["w"].tolist() == [2, 2]
    assert average(BASE, HONEST, rule="trimmed", trim=0.34)["w"].tolist() == [2, 2]
    assert average(BASE, []) == BASE


def test_one_liar_moves_the_mean_only():
    assert average(BASE, [*HONEST, LIAR])["w"].abs().max() > 1e19
    assert average(BASE, [*HONEST, LIAR], rule="median")["w"].tolist() == [2.5, 2]
    assert average(BASE, [*HONEST, LIAR], rule="trimmed", trim=0.25)["w"].tolist() == [2.5, 2]
    clipped = average(BASE, [*HONEST, LIAR], clip_norm=1.0)["w"]
    assert float((clipped - BASE["w"]).norm()) <= 1.0 + 1e-6


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"merge_rule": "medain"}, "did you mean 'median'"),
        ({"trim": 0.5}, "algorithm.trim is 0.5"),
        ({"trim": -0.1}, "algorithm.trim is -0.1"),
        ({"clip_norm": -1.0}, "algorithm.clip_norm is -1.0"),
        ({"clip_norm": float("inf")}, "algorithm.clip_norm is inf"),
    ],
)
def test_a_configuration_that_means_nothing_is_one_sentence(name, options, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        ALGORITHMS[name](**options)


@pytest.mark.parametrize("name", ["adaptcl", "fedavg"])
def test_the_algorithms_use_what_they_are_told(name, monkeypatch):
    seen = {}
    algorithm = ALGORITHMS[name](merge_rule="trimmed", trim=0.3, clip_norm=2.0)

    def spy(model, updates, *mode, **options):
        seen.update(options)
        raise InterruptedError

    monkeypatch.setattr(f"edgeprune.algorithms.{name}.average", spy)
    from edgeprune.algorithms.protocol import State

    memory = {"target_s": None, "ranking": None, "workers": {}}
    with pytest.raises(InterruptedError):
        algorithm.merge(None, State(0, BASE, {}, memory), [])  # type: ignore[arg-type]
    assert seen == {"rule": "trimmed", "trim": 0.3, "clip_norm": 2.0}
