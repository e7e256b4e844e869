"""Processes that this one starts and answers for: they end with it, however it ends, and are started again when they
fail."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from edgeprune.errors import EdgePruneError

PR_SET_PDEATHSIG = 1
GRACE_S = 5.0
TAIL = 400  # characters of a log in a sentence
MISTAKE, SAYS = 78, "edgeprune worker: "  # a worker's status and how its last line begins: what a user has to put right


class Child:
    """One process with its own group and its log. ``restart_s``: seconds before it is started again; None: never."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        restart_s: float | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._restart_s = restart_s
        self._cwd = cwd
        self._died_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Child:
        """Start it; what it prints goes to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                raise EdgePruneError(f"{self.name}: cannot be started ({error})") from None
        self.starts += 1
        return self

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process else 0

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll() if self._process else -1

    def tend(self) -> bool:
        """Start it again if it ended and its time has come; whether it runs now."""
        if self.status() is None:
            self._died_s = 0.0
            return True
        if self._restart_s is None:
            return False
        if not self._died_s:
            self._died_s = time.monotonic()
        if time.monotonic() - self._died_s < self._restart_s:
            return False
        self._died_s = 0.0
        self.start()
        return True

    def tail(self) -> str:
        """The end of its log, as one line."""
        try:
            return " ".join(self.log.read_text(errors="replace").split())[-TAIL:]
        except OSError:
            return ""

    def last_line(self) -> str:
        """What it said last, shortened to fit a sentence."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip()[:TAIL] for line in reversed(lines) if line.strip()), "")

    def check(self) -> None:
        """Pass on the sentence of a worker that ended for a user's mistake."""
        if self.status() == MISTAKE:
            raise EdgePruneError(self.last_line().removeprefix(SAYS))

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End its whole group: asked first, then made to."""
        if self._process is None:
            return
        for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if number == signal.SIGTERM:
                with contextlib.suppress(ProcessLookupError):  # its own children, if it left any behind
                    os.killpg(self._process.pid, signal.SIGKILL)
            return


class Children:
    """Several; a context manager that ends all of them, the last started first."""

    def __init__(self) -> None:
        self._all: list[Child] = []

    def start(self, child: Child) -> Child:
        """Start ``child`` and answer for it."""
        self._all.append(child)
        return child.start()

    def tend(self) -> None:
        """Start again what may be."""
        for child in self._all:
            child.tend()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._all):
            child.stop()


def wait_for(what: Callable[[], bool], seconds: float, child: Child | None = None, step_s: float = 0.05) -> bool:
    """Whether ``what`` came true within ``seconds``. Raises :class:`EdgePruneError` if ``child`` ends meanwhile."""
    end = time.monotonic() + seconds
    while not what():
        if child is not None and child.status() is not None:
            child.check()
            raise EdgePruneError(f"{child.name} ended at once (status {child.status()}): {child.last_line()}")
        if time.monotonic() > end:
            return False
        time.sleep(step_s)
    return True


def stop_on_term() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that what it started is ended too."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _die_with(parent: int) -> Callable[[], None] | None:
    """In the child, before its program begins: the kernel ends it when its parent is gone, kill -9 included."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind
