"""Rounds whose updates are summed as they come: the model of those that keep them, and nothing kept."""

from __future__ import annotations

import gc

import pytest
import torch
from short_runs import maker, weights

from edgeprune import engine
from edgeprune.algorithms import ALGORITHMS
from edgeprune.algorithms.protocol import Update
from edgeprune.algorithms.running_mean import Summed
from edgeprune.engine import local
from edgeprune.engine.outbox import Outbox

SHARED = ("run.rounds=3", "data.samples=240", "fleet.devices=6", "data.partition=dirichlet")
ALGOS = {
    "fedavg": ("algorithm.name=fedavg", "algorithm.sample=4"),
    "momentum": ("algorithm.name=fedavg", "algorithm.server_momentum=0.5", "algorithm.clip_norm=0.5"),
    "topk": ("algorithm.name=fedavg", "algorithm.density=0.1", "algorithm.feedback=true", "algorithm.upload=int8"),
    "heterofl": ("algorithm.name=heterofl", "algorithm.rates=[1.0,0.5,0.25]"),
    "fedrolex": ("algorithm.name=fedrolex", "algorithm.rates=[1.0,0.5,0.25]"),
    "adaptcl": ("algorithm.name=adaptcl", "algorithm.interval=1", "algorithm.merge_by=delta", "fleet.heterogeneity=4"),
    "mpfl": ("algorithm.name=mpfl", "algorithm.iterations=1", "algorithm.step=0.3"),
}


@pytest.mark.parametrize("sets", ALGOS.values(), ids=ALGOS)
def test_the_model_of_rounds_that_keep_their_updates(latency, tmp_path, monkeypatch, sets):
    prepared = engine.prepare(maker(latency, *SHARED)(*sets))
    kind, seen = ALGORITHMS[prepared.experiment.algorithm.name], []
    merge = kind.merge

    def watched(self, setting, state, updates):
        seen.append((isinstance(updates, Summed), sum(len(update.state) for update in updates)))
        return merge(self, setting, state, updates)

    monkeypatch.setattr(kind, "merge", watched)
    engine.start(prepared, tmp_path / "summed")
    summed, seen[:] = list(seen), []
    monkeypatch.setattr(kind, "summing", lambda self, setting, state: None)
    engine.start(prepared, tmp_path / "kept")
    assert not any(is_summed for is_summed, _ in seen) and all(held for _, held in seen[1:])
    # MPFL counts votes first, and needs them all.
    assert summed == [(sets is not ALGOS["mpfl"], 0), (True, 0), (True, 0)]
    one, other = weights(tmp_path / "summed"), weights(tmp_path / "kept")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)
    lines = [engine.RunDir(tmp_path / name).metrics() for name in ("summed", "kept")]
    for summed_one, kept_one in zip(*lines, strict=True):
        for key in ("participants", "rejected", "retention"):
            assert summed_one[key] == kept_one[key]
        for key in ("upload_bytes", "download_bytes", "time_s", "utilisation"):  # a loss has more digits or fewer
            assert summed_one[key] == pytest.approx(kept_one[key], rel=1e-3)


def test_one_answer_after_the_other_is_in_memory(latency, tmp_path, monkeypatch):
    """Neither messages nor updates of the devices before are alive when one's answer comes."""
    alive: list[int] = []
    others = {id(one) for one in with_weights()}  # of the tests before
    answered = local.LocalTransport._answered

    def counting(self, client, sent, answer):
        alive.append(sum(id(one) not in others for one in with_weights()))
        return answered(self, client, sent, answer)

    monkeypatch.setattr(local.LocalTransport, "_answered", counting)
    engine.start(engine.prepare(maker(latency, *SHARED)("algorithm.name=fedavg")), tmp_path / "run")
    assert alive == [0] * 18


def with_weights():
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Update and one.state]


def test_messages_are_made_when_they_are_sent():
    made: list[str] = []

    def make(client: str) -> bytes:
        made.append(client)
        return client.encode() * 3

    outbox = Outbox(["a", "bc"], make)
    assert list(outbox) == ["a", "bc"] and len(outbox) == 2 and not made and not outbox.sizes
    assert outbox["bc"] == b"bcbcbc" and made == ["bc"] and outbox.sizes == {"bc": 6}
    assert dict(outbox.items()) == {"a": b"aaa", "bc": b"bcbcbc"} and outbox.seconds >= 0
    with pytest.raises(KeyError):
        outbox["d"]


def test_every_algorithm_that_only_averages_sums():
    assert {name for name, kind in ALGORITHMS.items() if hasattr(kind, "summing")} == {
        "adaptcl",
        "fedavg",
        "fedrolex",
        "heterofl",
        "mpfl",
        "scheduled",
    }
