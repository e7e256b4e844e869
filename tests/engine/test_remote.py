"""The port over devices elsewhere: the same model as on this machine, and every bad answer refused, named and
counted."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from bench_carrier import bench, rewritten
from remote_runs import FEEDBACK, fedavg, lead, of, same, weights

from edgeprune import engine, wire
from edgeprune.engine import federation, frames
from edgeprune.engine.carrier import Delivery
from edgeprune.engine.frames import Frame
from edgeprune.engine.remote import RemoteTransport, Terms
from edgeprune.errors import EdgePruneError

BAD = "device-1"


@pytest.mark.parametrize(
    "algorithm",
    # AdaptCL decides by the clock, the one thing that differs; so its first decision lies beyond the last round.
    [["algorithm.name=adaptcl", "algorithm.interval=50"], FEEDBACK, ["algorithm.name=feddst"]],
    ids=["adaptcl", "fedavg with feedback", "feddst"],
)
def test_the_same_model_bit_for_bit_as_on_the_local_engine(small, tmp_path, algorithm):
    experiment = of(small, algorithm, "run.rounds=2", "run.deadline_s=60")
    engine.start(engine.prepare(experiment), tmp_path / "local")
    records, _ = lead(experiment, tmp_path)
    assert same(weights(tmp_path / "local"), weights(tmp_path / "run"))
    expected = engine.RunDir(tmp_path / "local").metrics()
    for key in ("accuracy", "upload_bytes", "download_bytes", "participants"):
        assert [record[key] for record in records] == [record[key] for record in expected]


def test_a_server_that_goes_on_from_an_older_round_finds_devices_that_know_its_plans(small, tmp_path):
    """FedRolex: another plan in every round; the devices are three rounds ahead of the checkpoint."""
    experiment = of(small, ["algorithm.name=fedrolex", "algorithm.rates=[1, 0.5]"], "run.rounds=6", "run.deadline_s=60")
    carrier = bench(experiment, tmp_path / "state")

    def copy(at, record):
        if record["round"] == 3:
            shutil.copytree(tmp_path / "run", tmp_path / "older")

    federation.lead(experiment, carrier, tmp_path / "run", None, wait_s=5, clock=carrier.clock, watch=copy)
    federation.lead_on(tmp_path / "older", carrier, None, wait_s=5, clock=carrier.clock)
    assert [record["rejected"] for record in engine.RunDir(tmp_path / "older").metrics()] == [{}] * 6
    assert same(weights(tmp_path / "older"), weights(tmp_path / "run"))


def test_error_feedback_on_devices_needs_every_checkpoint(small, tmp_path):
    experiment = of(small, FEEDBACK, "run.checkpoint_every=4")
    with pytest.raises(EdgePruneError, match="run.checkpoint_every is 4.* use 1"):
        lead(experiment, tmp_path)
    assert not (tmp_path / "run").exists()


def update_of(delivery):
    frame = Frame.from_bytes(delivery.data, frames.ANSWERS)
    return frame, wire.decode(frame.blob, kind="update")


def nan(carrier, asked, answer):
    frame, update = update_of(answer)
    name = next(name for name, t in sorted(update.tensors.items()) if t.is_floating_point())
    tensors = {**update.tensors, name: update.tensors[name] * float("nan")}
    return [rewritten(answer, blob=wire.encode(replace(update, tensors=tensors)))]


def huge(carrier, asked, answer):
    frame, update = update_of(answer)
    name = next(name for name, t in sorted(update.tensors.items()) if t.is_floating_point())
    tensors = {**update.tensors, name: torch.full_like(update.tensors[name], 3e38)}
    return [rewritten(answer, blob=wire.encode(replace(update, tensors=tensors)))]


def other_client(carrier, asked, answer):
    _, update = update_of(answer)
    return [rewritten(answer, blob=wire.encode(replace(update, client="device-0")))]


def replayed_blob(carrier, asked, answer):
    old = next(a for q, a in carrier.history if q.client == BAD)
    return [rewritten(answer, blob=Frame.from_bytes(old.data, frames.ANSWERS).blob)]


def replayed_frame(carrier, asked, answer):
    old = next(a for q, a in carrier.history if q.client == BAD)
    return [replace(old, token=asked.token)]


def forged(carrier, asked, answer):
    frame = Frame.from_bytes(answer.data, frames.ANSWERS)
    middle = len(frame.blob) // 2
    return [rewritten(answer, blob=frame.blob[:middle] + b"\x5a" * 64 + frame.blob[middle + 64 :])]


# name -> (what comes in place of a round's answer, words of the reason, counter that must show it)
FAULTS = {
    "nan": (nan, "not finite", None),
    "huge": (huge, "beyond 1e+20", None),
    "truncated": (lambda c, q, a: [replace(a, data=a.data[: len(a.data) // 2])], "truncated", None),
    "cut to nothing": (lambda c, q, a: [replace(a, data=b"")], "not the answer", "unreadable"),
    "forged": (forged, "checksum", None),
    "too large": (lambda c, q, a: [replace(a, data=a.data + bytes(1 << 24))], "not the answer", "unreadable"),
    "another's name inside": (other_client, "names client 'device-0'", None),
    "another's name outside": (lambda c, q, a: [rewritten(a, client="device-0")], "not the answer", "impostor"),
    "another's token": (lambda c, q, a: [rewritten(a, token="feedfeedfeedfeed")], "not the answer", "unasked"),
    "replayed update": (replayed_blob, "names round 1, asked was ", None),
    "replayed envelope": (replayed_frame, "not the answer", "replayed"),
    "another version": (
        lambda c, q, a: [rewritten(a, about={"edgeprune": "0.0.9"})],
        "install the same",
        "other_version",
    ),
    "refused there": (
        lambda c, q, a: [rewritten(a, verb="refused", about={"reason": "no\nmemory"})],
        "says: no memory",
        "refused",
    ),
    "gone": (lambda c, q, a: [replace(a, data=None, fault="the link broke")], "the link broke", "unreachable"),
    "silent": (lambda c, q, a: [], "before the deadline", "missing"),
}


def test_each_bad_answer_is_refused_named_counted_and_harms_nothing(small, tmp_path):
    """One run: the faults strike the same device in one round each, from the second on."""
    faults = dict(zip(range(2, 2 + len(FAULTS)), FAULTS.values(), strict=True))
    last = max(faults)

    def strike(carrier, asked, answer):
        struck = faults.get(asked.about["round"]) if asked.client == BAD else None
        return struck[0](carrier, asked, answer) if struck else [answer]

    experiment = fedavg(small, f"run.rounds={last + 1}", "data.samples=96", "run.evaluate_every=100")
    records, _ = lead(experiment, tmp_path, strike)
    assert not records[0]["rejected"] and not records[last]["rejected"]
    for record in records[1:last]:
        name = list(FAULTS)[record["round"] - 2]
        _, reason, counter = FAULTS[name]
        assert list(record["rejected"]) == [BAD], name
        assert reason in record["rejected"][BAD], name
        assert counter is None or record["transport"][counter] == 1, name
    fault = {"device": BAD, "kind": "drop", "first": 2, "last": last}
    dropped = replace(experiment, fleet=replace(experiment.fleet, fault=(fault,)))
    engine.start(engine.prepare(dropped), tmp_path / "local")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "local"))


def test_late_and_double_answers_are_dropped_and_counted(small, tmp_path):
    kept = []

    def strike(carrier, asked, answer):
        if asked.client == BAD and asked.about["round"] == 1:
            kept.append(answer)
            return []
        if asked.client == BAD and asked.about["round"] == 2:
            return [kept[0], answer, answer, answer]
        return [answer]

    records, _ = lead(fedavg(small), tmp_path, strike)
    assert [list(record["rejected"]) for record in records] == [[BAD], [], []]
    second = records[1]["transport"]
    assert second["late"] == 1 and second["duplicate"] >= 1  # the third copy may be read after the round has ended
    third = records[2]["transport"]
    assert second["duplicate"] + third.get("duplicate", 0) == 2


class Prompt:
    """Devices that answer at once; ``more``: what comes besides."""

    def __init__(self, *names):
        self._names, self._waiting, self.sent, self.more = names, [], [], []

    def devices(self):
        return self._names

    def send(self, device, token, data, seconds):
        about = {"edgeprune": "1", "experiment": "x"}
        self._waiting.append(Delivery(device, Frame("done", device, token, about, b"x").to_bytes(), token))
        self.sent.append(self._waiting[-1])

    def receive(self, seconds):
        found, self._waiting, self.more = [*self.more, *self._waiting], [], []
        return found

    def forget(self, tokens):
        pass


def test_what_is_remembered_of_answered_questions_does_not_grow_with_the_rounds():
    """Every answer is compared with it: it made a round the slower the more had been."""
    carrier = Prompt("a", "b")
    transport = RemoteTransport(carrier, Terms("1", "x"), 600.0)
    for round_ in range(1, 201):
        if round_ in (150, 200):
            carrier.more = [carrier.sent[-4], carrier.sent[0]]  # of two rounds before, and of the first
        transport.push(round_, {"a": b"?", "b": b"?"})
        assert all(reply.blob == b"x" for reply in transport.pull(["a", "b"], 2.0).replies)
        if round_ in (150, 200):
            assert transport.facts()["duplicate"] == 1 and transport.facts()["unasked"] == 1
        if round_ == 100:
            before = len(transport._asked)
    assert len(transport._asked) == before < 100


def test_a_device_that_hangs_is_waited_for_once_by_the_deadline_then_by_patience(small, tmp_path):
    def strike(carrier, asked, answer):
        return [] if asked.client == BAD else [answer]

    records, _ = lead(fedavg(small), tmp_path, strike)
    waits = [record["update_time_s"][BAD] for record in records]
    assert waits[0] == pytest.approx(2.0)  # nobody knows yet how long it takes
    assert waits[1] < waits[0] and waits[2] < waits[0]
    assert all(record["participants"] == ["device-0", "device-2"] for record in records)


def test_energy_is_recorded_where_a_device_has_it_and_can_be_true(small, tmp_path):
    claims = {"device-0": 0.05, BAD: 1e9, "device-2": "much"}

    def strike(carrier, asked, answer):
        about = Frame.from_bytes(answer.data, frames.ANSWERS).about
        assert "energy_j" not in about  # no sensor here
        return [rewritten(answer, about={**about, "energy_j": claims[asked.client]})]

    records, _ = lead(fedavg(small), tmp_path, strike)
    assert all(record["transport"]["energy_j"] == {"device-0": 0.05} for record in records)
    assert all(not record["rejected"] for record in records)


def test_a_device_of_another_version_is_not_enrolled(small, tmp_path, monkeypatch):
    experiment = fedavg(small)
    monkeypatch.setattr("edgeprune.engine.resident.__version__", "0.0.9")
    with pytest.raises(EdgePruneError, match=r"has edgeprune 0\.0\.9, the server "):
        carrier = bench(experiment, tmp_path / "state")
        federation.lead(experiment, carrier, tmp_path / "run", None, wait_s=1, clock=carrier.clock)
    assert not (tmp_path / "run").exists()


def test_another_experiment_or_other_data_are_not_enrolled(small, tmp_path):
    other = bench(fedavg(small, "run.seed=7"), tmp_path / "a")
    with pytest.raises(EdgePruneError, match="another experiment"):
        federation.lead(fedavg(small), other, tmp_path / "run", None, wait_s=1, clock=other.clock)


def test_who_is_missing_is_named(small, tmp_path):
    carrier = bench(fedavg(small), tmp_path / "a")
    carrier._devices = {"device-0": carrier._devices["device-0"]}
    with pytest.raises(EdgePruneError, match="device-1, device-2 did not join within 1 s"):
        federation.lead(fedavg(small), carrier, tmp_path / "run", None, wait_s=1, clock=carrier.clock)


def test_time_never_falls_where_answers_come_with_statistics(small, tmp_path):
    """Two answers to the first round take so long that they come while statistics are asked for."""
    late = {}

    def strike(carrier, asked, answer):
        first = asked.about["round"] == 1 and asked.about.get("lasting")
        if first and asked.client == "device-0":
            carrier._now += 100.0
        elif first:
            late[asked.client] = answer
            return []
        elif asked.client in late:
            return [late.pop(asked.client), answer]
        return [answer]

    experiment = of(small, ["algorithm.name=fedbuff", "algorithm.buffer=1", "algorithm.calibrate=1"])
    run = replace(experiment.run, deadline_s=3000.0, rounds=5, evaluate_every=1)
    records, _ = lead(replace(experiment, run=run), tmp_path, strike)
    times = [record["time_s"] for record in records]
    assert not late and times[0] > 100 and times == sorted(times)


def test_rounds_that_wait_for_nobody_take_answers_as_they_come(small, tmp_path):
    def strike(carrier, asked, answer):
        return [] if asked.client == BAD and asked.about["round"] == 1 else [answer]

    records, _ = lead(of(small, ["algorithm.name=fedasync"], "run.rounds=6"), tmp_path, strike)
    assert len(records) == 6 and all(record["participants"] for record in records)
    assert any(BAD in record["in_flight"] for record in records)


def test_an_answer_that_comes_while_statistics_are_asked_for_is_not_lost(small, tmp_path):
    held = []

    def strike(carrier, asked, answer):
        if asked.client != BAD or held == ["given"]:
            return [answer]
        if not held:
            held.append(answer)
            return []
        honest, held[:] = held[0], ["given"]  # a device under way is asked for nothing but statistics
        return [honest, answer]

    experiment = of(small, ["algorithm.name=fedasync", "algorithm.calibrate=1"], "run.rounds=6", "run.evaluate_every=2")
    records, _ = lead(replace(experiment, run=replace(experiment.run, deadline_s=60.0)), tmp_path, strike)
    assert records[1]["calibration"]["rejected"] == {}
    late = next(record for record in records if BAD in record["participants"])
    assert late["round"] > 2 and late["staleness"][BAD] >= 2


def test_only_a_virtual_clock_has_faults_to_order(small, tmp_path):
    fault = 'fleet.fault=[{device="device-2", kind="nan"}]'
    with pytest.raises(EdgePruneError, match=r"fleet\.fault is for the virtual clock"):
        federation.lead(fedavg(small, fault), bench(fedavg(small), tmp_path / "a"), tmp_path / "run", None, wait_s=1)
