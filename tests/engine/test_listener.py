"""The queue of one worker that serves several devices: what a newer question takes the place of."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest

from edgeprune.engine import frames
from edgeprune.engine.frames import Frame
from edgeprune.engine.resident import Listener


class Slow:
    """A device whose work begins when it is let."""

    def __init__(self, name: str, let: threading.Event) -> None:
        self._name, self._let, self.asked = name, let, threading.Event()

    def work(self, frame: Frame) -> Frame:
        self.asked.set()
        assert self._let.wait(10)
        return Frame("done", self._name, frame.token, {}, b"x")


@pytest.mark.parametrize(("lasting", "verb"), [(True, "done"), (False, "refused")])
def test_statistics_take_the_place_of_work_only_where_rounds_wait(lasting, verb):
    """Device b's work waits behind a's; then b is asked for statistics."""
    let = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        first = Slow("a", let)
        listener = Listener({"a": first, "b": Slow("b", let)}, path, 10.0)
        threading.Thread(target=listener.run, daemon=True).start()
        answers: dict[str, Frame] = {}

        def ask(client: str, token: str, about: dict[str, object]) -> None:
            data = frames.ask(str(path), Frame("work", client, token, about).to_bytes())
            answers[token] = Frame.from_bytes(data, frames.ANSWERS)

        work = {"round": 1, "lasting": True} if lasting else {"round": 1}
        threads = []
        for client, token, about in (("a", "a-work", work), ("b", "b-work", work), ("b", "b-asked", {"round": 1})):
            threads.append(threading.Thread(target=ask, args=(client, token, about)))
            threads[-1].start()
            assert first.asked.wait(10)
            while listener._jobs.qsize() < len(threads) - 1:
                threading.Event().wait(0.01)
        let.set()
        for thread in threads:
            thread.join(10)
    assert [answers[token].verb for token in ("a-work", "b-work", "b-asked")] == ["done", verb, "done"]
