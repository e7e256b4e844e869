"""How long the server waits for whom, by hand-made clocks."""

from __future__ import annotations

from collections import Counter

from edgeprune._version import __version__
from edgeprune.engine import frames
from edgeprune.engine.carrier import Delivery
from edgeprune.engine.frames import Frame
from edgeprune.engine.remote import RemoteTransport, Terms


class Scripted:
    """A carrier on a clock of its own: ``waits(device, number, round)`` says after how long the answer to a device's
    question ``number`` comes."""

    def __init__(self, waits):
        self.now, self.waits = 0.0, waits
        self.asked, self.due = Counter(), []

    def devices(self):
        return ["a", "b"]

    def send(self, device, token, data, seconds):
        frame = Frame.from_bytes(data, frames.ASKS)
        self.asked[device] += 1
        wait = self.waits(device, self.asked[device], frame.about["round"])
        about = {"edgeprune": __version__, "experiment": "e", "energy_j": 2.0, "compute_s": wait}
        answer = Frame("done", device, token, about, b"x").to_bytes()
        self.due.append((self.now + wait, Delivery(device, answer, token)))

    def receive(self, seconds):
        self.now += 0.25 if seconds else 0.0
        found = [d for at, d in self.due if at <= self.now]
        self.due = [(at, d) for at, d in self.due if at > self.now]
        return found

    def forget(self, tokens):
        pass

    def transport(self):
        return RemoteTransport(self, Terms(__version__, "e"), 600.0, clock=lambda: self.now)


BOTH = {"a": b"", "b": b""}


def test_patience_is_by_the_slowest_known():
    """By hand: the others take 1 s, this one took 4 s last time, patience 2: it is given up after 8 s."""
    transport = Scripted(
        lambda device, number, round_: 1.0 if device == "a" else 4.0 if round_ == 1 else 1e9
    ).transport()
    transport.push(1, BOTH)
    assert transport.pull(["a", "b"], 2.0).seconds == 4.0
    transport.push(2, BOTH)
    collected = transport.pull(["a", "b"], 2.0)
    assert collected.seconds == 8.0 and collected.replies[1].blob is None
    transport.push(3, BOTH)  # it left a question open: now only the others count
    assert transport.pull(["a", "b"], 2.0).seconds == 2.0


def test_each_kind_of_answer_has_times_of_its_own():
    """A slow device whose statistics are quick is waited for in the next round all the same."""
    carrier = Scripted(lambda device, number, round_: 0.5 if number % 2 == 0 else 1.0 if device == "a" else 9.0)
    transport = carrier.transport()
    for round_ in (1, 2, 3):
        transport.push(round_, BOTH)
        assert [reply.blob for reply in transport.pull(["a", "b"], 2.0).replies] == [b"x", b"x"]
        trained = transport.facts()
        transport.push(round_, BOTH, "statistics")
        assert transport.pull(["a", "b"], 2.0).seconds == 0.5
        assert trained["device_s"] == {"a": 1.0, "b": 9.0} and trained["energy_j"] == {"a": 2.0, "b": 2.0}
        assert transport.facts()["device_s"] == {"a": 0.5, "b": 0.5}


def test_several_passes_are_one_calibration():
    transport = Scripted(lambda device, number, round_: 0.5).transport()
    transport.push(1, BOTH)
    transport.pull(["a", "b"], 2.0)
    for _ in range(3):
        transport.push(1, BOTH, "statistics")
        transport.pull(["a", "b"], 2.0)
    assert transport.facts()["device_s"] == {"a": 1.5, "b": 1.5} and transport.facts()["envelopes"] == 6


def test_a_late_answer_says_how_long_to_wait():
    """20 s once more: given up after 8, it comes, and from then on it is waited for."""
    carrier = Scripted(lambda device, number, round_: 1.0 if device == "a" else 4.0 if number == 1 else 20.0)
    transport = carrier.transport()
    came = []
    for round_ in range(1, 6):
        transport.push(round_, BOTH)
        came.append(transport.pull(["a", "b"], 2.0).replies[1].blob is not None)
        if round_ == 3:
            carrier.now += 30.0
    assert came == [True, False, False, True, True]


def test_what_takes_milliseconds_is_waited_for_a_second():
    carrier = Scripted(lambda device, number, round_: 0.01 if device == "a" or number == 1 else 0.75)
    transport = carrier.transport()
    for round_ in (1, 2, 3):
        transport.push(round_, BOTH)
        assert transport.pull(["a", "b"], 2.0).replies[1].blob == b"x"
