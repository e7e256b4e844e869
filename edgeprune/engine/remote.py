"""The port over devices that are elsewhere: envelopes out, envelopes in, by the real clock and with nothing believed.

A carrier moves bytes to and from devices that it has authenticated: Flower, FLARE, or sockets on this machine. What is
the same for all of them stands here: tokens, deadlines, late and double answers, limits, and who counts as who.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from torch import Tensor

from edgeprune.engine import frames
from edgeprune.engine.carrier import Carrier, Delivery
from edgeprune.engine.frames import Frame
from edgeprune.engine.transport import Arrival, Collected, Reply, Take
from edgeprune.errors import EdgePruneError

ROOM = 1 << 20  # bytes that an answer may have beside twice its question
LEAST_S = 1.0  # the least that is waited for the missing: what takes milliseconds varies by as much
BYE_S = 60.0  # how long the end waits for the devices to have heard of it
MOST_W = 1e4  # a device that reports more power than this is not believed
CLOSED = 32  # answered questions that are remembered of each device, to know a second answer by
HELLO_S = 120.0  # a device that has not said who it is by then is asked again


@dataclass
class _Asked:
    """One envelope on its way. ``limit``: bytes its answer may have."""

    client: str
    sent_s: float
    limit: int
    round: int = 0
    kind: str = ""
    answered: bool = False
    wanted: bool = True


@dataclass(frozen=True)
class Terms:
    """What every device must agree with: the version of this package and the experiment (resident.experiment_id)."""

    edgeprune: str
    experiment: str

    def check(self, client: str, about: Mapping[str, Any]) -> None:
        """Raises :class:`EdgePruneError` for a device of another version or with another experiment."""
        got = about.get("edgeprune")
        if got != self.edgeprune:
            raise EdgePruneError(
                f"{client} has edgeprune {frames.shown(got, 40)}, the server {self.edgeprune}; install the same there"
            )
        if about.get("experiment") != self.experiment:
            raise EdgePruneError(f"{client} was started with another experiment; give it the kit of this run")


@dataclass
class _Round:
    """What happened to the envelopes of a round, for its record."""

    counts: Counter[str] = field(default_factory=Counter)
    device_s: dict[str, float] = field(default_factory=dict)
    energy_j: dict[str, float] = field(default_factory=dict)


class RemoteTransport:
    """:class:`edgeprune.engine.transport.Transport` over a carrier. ``run``: which one (Experiment.identity)."""

    def __init__(
        self, carrier: Carrier, terms: Terms, deadline_s: float, clock: Callable[[], float] = monotonic, run: str = ""
    ) -> None:
        self._run = run
        self._carrier = carrier
        self._terms = terms
        self._deadline_s = deadline_s
        self._clock = clock
        self._asked: dict[str, _Asked] = {}
        self._now: dict[str, str] = {}  # client -> token of what it was asked last
        self._limits: dict[str, int] = {}  # client -> the largest limit of what it is asked
        self._usual_s: dict[tuple[str, str], float] = {}  # (client, kind of answer) -> how long it took last time
        self._kind = ""  # of the answers that are waited for
        self._pushed_s = 0.0
        self._began_s, self._run_s = 0.0, 0.0  # this clock and the run's own at the last begin
        self._patience = 1.0
        self._ready: list[Arrival] = []
        self._round = _Round()

    def nodes(self) -> Sequence[str]:
        """The devices that can be reached now."""
        return tuple(self._carrier.devices())

    def enrol(
        self, clients: Sequence[str], wait_s: float, watch: Callable[[str], None] = lambda _: None
    ) -> dict[str, int]:
        """How many samples each of ``clients`` has, by its own word, once all have come.

        Raises :class:`EdgePruneError` naming who is missing, or refused and why, after ``wait_s`` seconds.
        """
        samples: dict[str, int] = {}
        refused: dict[str, str] = {}
        asked_s: dict[str, float] = {}
        end = self._clock() + wait_s
        while len(samples) < len(clients) and self._clock() < end:
            for client in self._carrier.devices():
                due = asked_s.get(client, -HELLO_S) + HELLO_S <= self._clock()
                if client in clients and client not in samples and due:
                    asked_s[client] = self._clock()
                    self._send(client, Frame("hello", client, _token()), HELLO_S)
            for delivery in self._carrier.receive(0.2):
                frame = self._opened(delivery)
                if frame is None:
                    asked_s[delivery.device] = self._clock() - HELLO_S + 1.0  # again in a second
                    continue
                try:
                    samples[frame.client] = self._greeted(frame)
                    refused.pop(frame.client, None)
                    power = frames.shown(frame.about.get("power", "power: not known"))
                    watch(f"{frame.client} is here ({samples[frame.client]} samples; {power})")
                except EdgePruneError as error:
                    if refused.get(frame.client) != str(error):
                        watch(f"refused: {error}")
                    refused[frame.client] = str(error)
                    asked_s[frame.client] = self._clock() - HELLO_S + 5.0
        missing = [client for client in clients if client not in samples]
        if missing:
            raise EdgePruneError(next(iter(refused.values()), absent(missing, wait_s)))
        return {client: samples[client] for client in clients}

    def push(self, round_: int, assignments: Mapping[str, bytes], kind: str = "update") -> None:
        """Send each device its bytes, in an envelope with a token that only its answer can know."""
        self._push(round_, assignments, {"round": round_}, kind)

    def _push(self, round_: int, assignments: Mapping[str, bytes], about: Mapping[str, Any], kind: str) -> None:
        if kind == "update" or kind != self._kind:  # several passes over the data are one calibration
            self._round = _Round()
        self._kind = kind
        self._forget_old()
        self._pushed_s = self._clock()
        about = {**about, "run": self._run}
        for client, blob in assignments.items():
            self._send(client, Frame("work", client, _token(), about, blob), self._deadline_s, round_, kind)

    def _forget_old(self) -> None:
        """Questions of long ago, and all but the last CLOSED that a device has answered."""
        old, closed = self._clock() - 10 * self._deadline_s, Counter[str]()
        kept: dict[str, _Asked] = {}
        for token, asked in reversed(self._asked.items()):
            closed[asked.client] += asked.answered
            if asked.sent_s > old and not (asked.answered and closed[asked.client] > CLOSED):
                kept[token] = asked
        self._asked = dict(reversed(kept.items()))
        self._now = {client: token for client, token in self._now.items() if token in self._asked}
        self._limits = {}
        for asked in kept.values():
            self._limits[asked.client] = max(asked.limit, self._limits.get(asked.client, 0))

    def pull(self, clients: Sequence[str], patience: float, take: Take | None = None) -> Collected:
        """Wait for ``clients``. Who is missing is waited for ``patience`` times as long as the slowest took: of those
        that answered, or that device itself the last time; and never longer than the deadline.

        Between two replies that are taken it looks for more, for an answer's time counts until it is seen."""
        replies: dict[str, Reply] = {}
        waiting: deque[str] = deque()  # whose replies are not taken yet

        def take_next() -> None:
            if take and waiting:
                client = waiting.popleft()
                replies[client] = take(replies[client])

        while len(replies) < len(clients):
            left = self._until(clients, replies, patience) - self._clock()
            if left <= 0:
                break
            for delivery in self._carrier.receive(0.0 if waiting else min(left, 1.0)):
                reply = self._settled(delivery)
                if reply is None:
                    continue
                if delivery.token != self._now.get(reply.client):
                    # To an earlier question, whose answer is still wanted: a round that does not wait for all.
                    self._keep(reply, delivery)
                elif reply.client not in replies:
                    replies[reply.client] = reply
                    if take and reply.blob is not None:
                        waiting.append(reply.client)
            take_next()
        waited = self._clock() - self._pushed_s
        missing = [client for client in clients if client not in replies]
        self.cancel(missing)
        for client in missing:
            self._round.counts["missing"] += 1
            replies[client] = Reply(client, None, waited)
        while waiting:
            take_next()
        return Collected(tuple(replies[client] for client in clients), waited)

    def begin(self, round_: int, assignments: Mapping[str, bytes], now_s: float, patience: float) -> None:
        """Send each device its bytes; the run's clock stands at ``now_s``. Others may be at work still.

        What came since the last round's end came before this one: it is there when this one begins.
        """
        self._push(round_, assignments, {"round": round_, "lasting": True}, "update")
        self._began_s, self._run_s, self._patience = self._pushed_s, now_s, patience
        self._ready = [replace(arrival, at_s=min(arrival.at_s, now_s)) for arrival in self._ready]

    def next(self, until_s: float) -> Arrival | None:
        """The next answer, or who is given up: after ``patience`` times what it took last time, or the deadline."""
        while True:
            now = self._clock()
            run_s = self._run_s + now - self._began_s
            if self._ready:
                return self._ready.pop(0)
            under_way = [one for one in self._asked.values() if one.round and one.wanted and not one.answered]
            if run_s >= until_s or not under_way:
                return None
            for asked in under_way:
                usual = self._usual_s.get((asked.client, asked.kind), self._deadline_s)
                if now - asked.sent_s > min(self._deadline_s, max(self._patience * usual, LEAST_S)):
                    self._round.counts["missing"] += 1
                    asked.wanted = False
                    return Arrival(Reply(asked.client, None, now - asked.sent_s), run_s, asked.round)
            for delivery in self._carrier.receive(min(0.2, until_s - run_s)):
                reply = self._settled(delivery)
                if reply is not None:
                    self._keep(reply, delivery)

    def _keep(self, reply: Reply, delivery: Delivery) -> None:
        at_s = self._run_s + self._clock() - self._began_s
        self._ready.append(Arrival(reply, at_s, self._asked[delivery.token].round))

    def cancel(self, clients: Sequence[str]) -> None:
        """What they still send for this round is counted as late and dropped."""
        tokens = [self._now.pop(client) for client in clients if client in self._now]
        for token in tokens:
            self._asked[token].wanted = False
        self._carrier.forget(tokens)

    def memory(self) -> Mapping[str, Tensor]:
        """Nothing: the devices keep what is theirs."""
        return {}

    def facts(self) -> dict[str, Any]:
        """For the round's record: envelopes and bytes, what was dropped and why, each device's own seconds, and joules
        where it has them."""
        now = self._round
        joules = {"energy_j": dict(now.energy_j)} if now.energy_j else {}
        return {**dict(sorted(now.counts.items())), "device_s": dict(now.device_s), **joules}

    def close(self, clients: Sequence[str]) -> None:
        """Tell the devices that the run is over, and wait a little for their word."""
        self._round = _Round()
        for client in clients:
            self._send(client, Frame("bye", client, _token()), BYE_S)
        end = self._clock() + BYE_S
        waiting = {self._now[client] for client in clients}
        while waiting and self._clock() < end:
            for delivery in self._carrier.receive(0.5):
                waiting.discard(delivery.token)

    # --- envelopes ---------------------------------------------------------------------------------------------------

    def _send(self, client: str, frame: Frame, seconds: float, round_: int = 0, kind: str = "") -> None:
        data = frame.to_bytes()
        limit = 2 * len(data) + ROOM
        self._asked[frame.token] = _Asked(client, self._clock(), limit, round_, kind)
        self._limits[client] = max(limit, self._limits.get(client, 0))
        self._now[client] = frame.token
        self._round.counts["envelopes"] += 1
        self._round.counts["sent_bytes"] += len(data)
        self._carrier.send(client, frame.token, data, seconds)

    def _opened(self, delivery: Delivery) -> Frame | None:
        """The frame that ``delivery`` holds, if it answers an open question of ours to this very device."""
        counts = self._round.counts
        if delivery.data is None:
            counts["unreachable"] += 1
            if delivery.token in self._asked:
                self._asked[delivery.token].answered = True
            return None
        counts["received_bytes"] += len(delivery.data)
        try:
            # By the largest question that the device may be answering.
            frame = Frame.from_bytes(delivery.data, frames.ANSWERS, self._limits.get(delivery.device, ROOM))
        except EdgePruneError:
            counts["unreadable"] += 1
            return None
        asked = self._asked.get(frame.token)
        if asked is None:
            counts["unasked"] += 1  # a token that was never given out: made up, or from another run
        elif asked.client != delivery.device or frame.client != delivery.device:
            counts["impostor"] += 1  # a device that speaks for another
        elif frame.token != delivery.token:
            counts["replayed"] += 1  # an answer to an earlier question in place of this one
        elif asked.answered:
            counts["duplicate"] += 1
        elif not asked.wanted:
            counts["late"] += 1
            asked.answered = True
            self._usual_s[asked.client, asked.kind] = self._since(frame.token)  # so long it is to be waited for
        else:
            asked.answered = True
            return frame
        return None

    def _settled(self, delivery: Delivery) -> Reply | None:
        """The reply that ``delivery`` brings to the question that it came for; None if it settles nothing."""
        client, asked = delivery.device, self._asked.get(delivery.token)
        open_ = asked is not None and asked.wanted and not asked.answered
        frame = self._opened(delivery)
        if frame is None:
            if asked is None or not open_:
                return None
            asked.answered = True  # each question has one answer, and this was it
            bad = "what it sent is not the answer to what was asked"
            return Reply(
                client, None, self._since(delivery.token), fault=delivery.fault if delivery.data is None else bad
            )
        seconds = self._since(frame.token)
        if frame.verb != "done":
            self._round.counts["refused"] += 1
            reason = frames.shown(frame.about.get("reason", "it did not say why"))
            return Reply(client, None, seconds, fault=f"the device says: {reason}")
        try:
            self._terms.check(client, frame.about)
        except EdgePruneError as error:
            self._round.counts["other_version"] += 1
            return Reply(client, None, seconds, fault=str(error))
        assert asked is not None
        self._usual_s[client, asked.kind] = seconds
        parts = {"engine": seconds}
        own = frame.about.get("compute_s")
        if isinstance(own, float) and 0 <= own <= seconds:
            self._round.device_s[client] = self._round.device_s.get(client, 0.0) + own
            parts = {"compute": own, "engine": seconds - own}
        joules = frame.about.get("energy_j")
        if isinstance(joules, float) and 0 <= joules <= MOST_W * seconds:
            self._round.energy_j[client] = self._round.energy_j.get(client, 0.0) + joules
        return Reply(client, frame.blob, seconds, parts)

    def _greeted(self, frame: Frame) -> int:
        if frame.verb != "hello":
            raise EdgePruneError(f"{frame.client}: {frames.shown(frame.about.get('reason', 'it gave no name'))}")
        self._terms.check(frame.client, frame.about)
        samples = frame.about.get("samples")
        if type(samples) is not int or not 0 < samples < 1 << 48:
            raise EdgePruneError(f"{frame.client} reports {frames.shown(samples, 40)} samples; it needs some")
        return samples

    def _since(self, token: str) -> float:
        return self._clock() - self._asked[token].sent_s

    def _until(self, clients: Sequence[str], replies: Mapping[str, Reply], patience: float) -> float:
        """When patience with the missing ends. A device that left an earlier question open is not waited for by its
        own time: it may hang for ever."""
        deadline = self._pushed_s + self._deadline_s
        if not replies:
            return deadline
        slowest = max(reply.update_time_s for reply in replies.values())
        hung = {asked.client for asked in self._asked.values() if not asked.wanted and not asked.answered}
        for client in clients:
            if client in replies or client in hung:
                continue
            if (client, self._kind) not in self._usual_s:
                return deadline
            slowest = max(slowest, self._usual_s[client, self._kind])
        return min(deadline, self._pushed_s + max(patience * slowest, LEAST_S))


def _token() -> str:
    return secrets.token_hex(8)


def absent(missing: Sequence[str], wait_s: float) -> str:
    """The sentence about devices that did not come."""
    few = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"serve: {few} did not join within {wait_s:.0f} s; start 'edgeprune join' there, or give --wait more seconds"
