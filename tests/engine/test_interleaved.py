"""Rounds that do not wait for everybody: by hand on a hand-made fleet, on real digits, and cut off half way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from short_runs import Killed, command, maker, same, weights

from edgeprune import engine
from edgeprune.algorithms import Barrier
from edgeprune.algorithms.fedasync import FedAsync
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.algorithms.fedbuff import FedBuff
from edgeprune.algorithms.protocol import Recipe, Setting, State, Update
from edgeprune.algorithms.staleness import Discounting
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir
from edgeprune.engine.checkpoint import Checkpoint
from edgeprune.engine.interleaved import InterleavedServer
from edgeprune.engine.rounds import Evaluated
from edgeprune.engine.transport import Arrival, Reply
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.wire import Message, decode, encode


class HandMade:
    """Devices that answer after a fixed number of seconds with what they were sent plus one."""

    def __init__(self, seconds, twice=()):
        self.seconds, self.twice, self.queue = seconds, twice, []

    def begin(self, round_, assignments, now_s, patience):
        for client, blob in assignments.items():
            asked = decode(blob, kind="assignment")
            answer = {name: t + 1 for name, t in asked.tensors.items()}
            message = Message("update", round_, client, asked.plan, answer, {"loss": 0.0}, samples=1)
            due = now_s + self.seconds[client]
            self.queue.append((due, Reply(client, encode(message), self.seconds[client]), round_))
            if client in self.twice:
                self.queue.append((due + 0.25, *self.queue[-1][1:]))

    def next(self, until_s):
        self.queue.sort(key=lambda pair: pair[0])
        if not self.queue or self.queue[0][0] > until_s:
            return None
        at_s, reply, round_ = self.queue.pop(0)
        return Arrival(reply, at_s, round_)

    def memory(self):
        return {}


def hand_made(algorithm, seconds, rounds, twice=()):
    """The records of a run on one weight that starts at zero, and the weight after each round."""
    model = torch.nn.Linear(1, 1, bias=False)
    graph = ChannelGraph.trace(model, (torch.zeros(2, 1),))
    clients = tuple(seconds)
    setting = Setting(graph, clients, dict.fromkeys(clients, 1), Recipe(1, 1, 0.1, 0.0, 0.0), rounds)
    server = InterleavedServer(
        algorithm, setting, HandMade(seconds, twice), lambda state: Evaluated(0.0, 0.0), 0, 1000, 2.0
    )
    begin = server.start({"weight": torch.zeros(1, 1)})
    found = list(server.rounds(begin))
    return [record for _, record in found], [at.state.model["weight"].item() for at, _ in found]


def test_without_a_barrier_devices_interleave():
    # a answers at 1, 2, 3, ...; b at 2.5, then at 5.
    records, weights = hand_made(FedAsync(mixing=0.5, staleness_a=1.0), {"a": 1.0, "b": 2.5}, 5)
    assert [r["time_s"] for r in records] == [1.0, 2.0, 2.5, 3.0, 4.0]
    assert [r["participants"] for r in records] == [["a"], ["a"], ["b"], ["a"], ["a"]]
    assert [r["staleness"] for r in records] == [{"a": 0}, {"a": 0}, {"b": 2}, {"a": 1}, {"a": 0}]
    assert records[2]["in_flight"] == ["a"]
    # a: 0 -> 1, half of it; 0.5 -> 1.5; b was sent 0, answers 1, alpha 1/2 / 3; a was sent 1, answers 2, alpha 1/4.
    expected = [0.5, 1.0, 1.0, 1.0 + 0.25 * (2.0 - 1.0), None]
    expected[4] = 1.25 + 0.5 * (2.25 - 1.25)
    assert weights == pytest.approx(expected)
    assert [r["utilisation"] for r in records] == pytest.approx([1.0] * 5)


def test_k_of_n_leaves_the_slow_one_at_its_old_weights():
    records, weights = hand_made(FedBuff(buffer=2, staleness_a=1.0), {"a": 1.0, "b": 2.0, "c": 5.0}, 3)
    assert [r["time_s"] for r in records] == [2.0, 4.0, 5.0]
    assert [r["participants"] for r in records] == [["a", "b"], ["a", "b"], ["a", "c"]]
    assert records[2]["staleness"] == {"a": 0, "c": 2}
    # Two changes of 1 each, then (1 + 1/3) / 2.
    assert weights == pytest.approx([1.0, 2.0, 2.0 + (1 + 1 / 3) / 2])
    # Round 1: a is busy for 1 of 2 seconds, b and c for both. Round 3: all three for the whole second.
    assert [r["utilisation"] for r in records] == pytest.approx([5 / 6, 5 / 6, 1.0])
    assert records[2]["update_time_s"] == {"a": 1.0, "c": 5.0} and records[2]["in_flight"] == ["b"]


@pytest.mark.parametrize(("grace", "ends", "who"), [(0.0, 2.0, "ab"), (0.2, 2.4, "ab"), (0.25, 2.5, "abc")])
def test_grace_is_a_share_of_the_time_waited(grace, ends, who):
    (record,), _ = hand_made(FedBuff(buffer=2, grace=grace), {"a": 1.0, "b": 2.0, "c": 2.5, "d": 9.0}, 1)
    assert record["time_s"] == pytest.approx(ends) and record["participants"] == list(who)


def test_grace_does_not_wait_for_nobody():
    (record,), _ = hand_made(FedBuff(buffer=2, grace=3.0), {"a": 1.0, "b": 2.0}, 1)
    assert record["time_s"] == 2.0


def test_a_second_copy_is_applied_nowhere():
    once, weights = hand_made(FedAsync(), {"a": 1.0, "b": 1.6}, 6)
    twice, again = hand_made(FedAsync(), {"a": 1.0, "b": 1.6}, 6, twice=("a",))
    assert weights == again and not any(r["strays"] for r in once)
    # The copy of a's answer of round 1 comes when a is at work for round 2: it names another round than was asked.
    assert [r["participants"] for r in twice] == [r["participants"] for r in once]


def test_more_answers_wanted_than_devices_is_everybody():
    records, _ = hand_made(FedBuff(buffer=9), {"a": 1.0, "b": 2.0}, 2)
    assert [r["participants"] for r in records] == [["a", "b"]] * 2


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (Discounting("constant"), [1, 1, 1, 1]),
        (Discounting("polynomial", 0.5), [1, 2**-0.5, 3**-0.5, 11**-0.5]),
        (Discounting("hinge", 10, 1), [1, 1, 1 / 11, 1 / 91]),
    ],
    ids=["constant", "polynomial", "hinge"],
)
def test_discounts_by_hand(discount, expected):
    assert [discount.discount(tau) for tau in (0, 1, 2, 10)] == pytest.approx(expected)


def test_batch_norm_statistics_are_averaged_not_stepped():
    """now + (after - before) of a variance can be negative."""
    plan = SubmodelPlan.full(ChannelGraph.trace(torch.nn.Linear(1, 1), (torch.zeros(2, 1),)))
    update = Update(
        "c", plan, {"v.running_var": torch.tensor([0.1])}, 1, 0.0, 1.0, received={"v.running_var": torch.tensor([5.0])}
    )
    state = State(0, {"v.running_var": torch.tensor([1.0])}, {"c": plan})
    assert FedBuff().merge(None, state, [update]).model["v.running_var"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAsync(mixing=0.0),
        lambda: FedAsync(staleness="lazy"),
        lambda: FedBuff(buffer=0),
        lambda: FedBuff(grace=-1.0),
        lambda: FedBuff(staleness_a=math.nan),
        lambda: Barrier(-1),
    ],
)
def test_a_configuration_that_means_nothing_is_one_sentence(make):
    with pytest.raises(EdgePruneError):
        make()


# --- on real digits --------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(latency):
    """``tiny(algorithm, "key.path=value", ...)``: four devices, the slowest five times the fastest."""

    def make(algorithm, *sets: str):
        short = maker(latency, "run.rounds=8", "run.evaluate_every=8", "data.samples=200", "fleet.devices=4")
        return replace(short(*sets), algorithm=algorithm)

    return make


def records(path):
    return engine.RunDir(path).metrics()


def test_a_buffer_of_everybody_is_federated_averaging_of_equal_clients(tiny, tmp_path):
    """The same clock to a microsecond, the same weights up to rounding: two ways through the engine."""
    quiet = ("run.rounds=3", "fleet.noise=0.05")
    engine.start(engine.prepare(tiny(FedAvg(), *quiet)), tmp_path / "sync")
    engine.start(engine.prepare(tiny(FedBuff(buffer=4), *quiet)), tmp_path / "buffered")
    a, b = records(tmp_path / "sync"), records(tmp_path / "buffered")
    assert [r["time_s"] for r in b] == pytest.approx([r["time_s"] for r in a], rel=1e-9)
    assert [r["utilisation"] for r in b] == pytest.approx([r["utilisation"] for r in a], rel=1e-6)
    found = weights(tmp_path / "buffered")
    for name, value in weights(tmp_path / "sync").items():
        if value.is_floating_point():  # 50 samples each: means without weights are means with them
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", [FedAsync(), FedBuff(buffer=2, upload="int8", feedback=True)], ids=["none", "k"])
def test_resuming_with_updates_under_way_equals_never_stopping(tiny, tmp_path, monkeypatch, algorithm):
    """Killed after rounds 1, 3 and 6 of one run, while an answer is lost and another comes twice."""
    faults = 'fleet.fault=[{device="device-1",kind="drop",first=1,last=2},{device="device-0",kind="duplicate"}]'
    prepared = engine.prepare(tiny(algorithm, faults))
    engine.start(prepared, tmp_path / "whole")
    save, deaths = checkpoints.save, [1, 3, 6]

    def dying_save(path, checkpoint):
        save(path, checkpoint)
        if checkpoint.state.round in deaths:
            deaths.remove(checkpoint.state.round)
            assert checkpoint.flight
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying_save)
        with pytest.raises(Killed):
            engine.start(prepared, tmp_path / "cut")
        for _ in range(2):
            with pytest.raises(Killed):
                engine.resume(tmp_path / "cut", None)
    engine.resume(tmp_path / "cut", None)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert (tmp_path / "cut" / rundir.METRICS).read_bytes() == (tmp_path / "whole" / rundir.METRICS).read_bytes()


def test_answers_that_cannot_be_used_do_not_fill_the_buffer(tiny, tmp_path):
    kinds = {"drop": "no update arrived", "nan": "not finite", "shape": "has shape", "truncated": "truncated"}
    kinds["forged"] = "checksum"
    faults = ",".join(f'{{device="device-{i}", kind="{kind}", last=1}}' for i, kind in enumerate(kinds))
    sets = ("fleet.devices=8", "run.rounds=6", f"fleet.fault=[{faults}]")
    engine.start(engine.prepare(tiny(FedBuff(buffer=3), *sets)), tmp_path / "run")
    found = records(tmp_path / "run")
    assert found[0]["participants"] == ["device-5", "device-6", "device-7"]
    rejected = {client: why for record in found for client, why in record["rejected"].items()}
    assert sorted(rejected) == [f"device-{i}" for i in range(5)]
    assert all(sentence in rejected[f"device-{i}"] for i, sentence in enumerate(kinds.values()))
    # The lost one is given up after twice the longest update time, and is asked again like the others.
    assert "device-0" not in found[0]["rejected"]
    assert {client for record in found[1:] for client in record["participants"]} >= {f"device-{i}" for i in range(4)}


def test_a_duplicate_is_a_stray(tiny, tmp_path):
    fault = 'fleet.fault=[{device="device-0", kind="duplicate"}]'
    engine.start(engine.prepare(tiny(FedBuff(buffer=4), fault, "run.rounds=2")), tmp_path / "with")
    engine.start(engine.prepare(tiny(FedBuff(buffer=4), "run.rounds=2")), tmp_path / "without")
    twice, once = records(tmp_path / "with"), records(tmp_path / "without")
    assert [r["strays"] for r in twice] == [["device-0"], ["device-0"]]
    five, four = ([record["upload_bytes"] for record in run] for run in (twice, once))
    assert five == pytest.approx([sent * 5 / 4 for sent in four], abs=8)  # headers differ by a digit or two
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(one[name], other[name]) for name in other if ":" not in name)


def test_the_sent_weights_are_a_snapshot(tiny, tmp_path):
    """What the server merges into its model must not reach what it will compare a late update with."""
    prepared = engine.prepare(tiny(FedAsync(), "fleet.heterogeneity=30", "run.rounds=4"))
    engine.start(prepared, tmp_path / "run")
    at = checkpoints.load(tmp_path / "run" / checkpoints.FILE, prepared.graph)
    assert isinstance(at, Checkpoint) and len(at.flight) == 3
    late = at.flight["device-3"]
    assert late.round == 1
    for name, value in late.asked.state.items():
        assert torch.equal(value, prepared.model.state_dict()[name])
    assert not torch.equal(at.state.model["0.weight"], late.asked.state["0.weight"])


def test_nobody_waits_so_everybody_is_busy_and_the_model_learns(tiny, tmp_path):
    engine.start(engine.prepare(tiny(FedAsync(), "run.rounds=40", "run.evaluate_every=20")), tmp_path / "run")
    found = records(tmp_path / "run")
    assert min(r["utilisation"] for r in found) > 0.999
    assert found[-1]["loss"] < found[19]["loss"] < math.log(10)
    by_client = [client for r in found for client in r["participants"]]
    assert by_client.count("device-0") > 3 * by_client.count("device-3") > 0


def test_a_terminal_shows_who_is_still_at_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    (tmp_path / "e.toml").write_text(tiny(FedBuff(buffer=1), "run.rounds=2").to_toml())
    result = command("run", tmp_path / "e.toml", "--out", tmp_path / "run")
    assert result.exit_code == 0 and records(tmp_path / "run")[0]["in_flight"]
    assert "at work" in result.output
