"""A slow and lossy link in front of a worker's socket: a relay that lets bytes through at a pace, stalls, and cuts."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

CHUNK = 16384
LOST, AGAIN_S = 0.02, 0.2  # share of chunks that are lost, and how long until they are sent again


class SlowLink(AbstractContextManager["SlowLink"]):
    """Listens on ``path`` and passes on to ``to`` at ``bytes_per_s``, each way.

    ``cut``: the connections (the first is 0) that end in the middle of the answer. ``carried``: bytes that got through.
    """

    def __init__(self, path: Path, to: Path, bytes_per_s: float, cut: Collection[int] = ()) -> None:
        self._to, self._rate, self._cut = str(to), bytes_per_s, set(cut)
        self._draw = random.Random(0)
        self.carried = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(8)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._socket.close()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                asking, _ = self._socket.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._carry, args=(asking, number in self._cut)))
            self._threads[-1].start()

    def _carry(self, asking: socket.socket, cut: bool) -> None:
        with asking, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as working:
            working.connect(self._to)
            there = threading.Thread(target=self._pump, args=(asking, working))
            there.start()
            self._pump(working, asking, 2 * CHUNK if cut else sys.maxsize)
            for end in (asking, working):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join(10)

    def _pump(self, source: socket.socket, sink: socket.socket, most: int = sys.maxsize) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while passed < most and (data := source.recv(CHUNK)):
                time.sleep(len(data) / self._rate + AGAIN_S * (self._draw.random() < LOST))
                sink.sendall(data)
                passed += len(data)
                self.carried += len(data)
