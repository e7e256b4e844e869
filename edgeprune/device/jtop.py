"""Power and temperature through jtop's service, sampled by a child process that is watched against a clock.

Whatever goes wrong there is one sentence with its remedy in :attr:`Recording.fault`; the measurement goes on without
power. This process never imports jtop.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.device.samples import Recording, Sample, forget, now

_ROOT = Path(__file__).resolve().parents[2]
_RESTART = "sudo systemctl restart jtop"
_OVERSLEPT_S = 0.5
SENTENCES = {
    "absent": "jetson-stats is not in this Python; pip install 'edgeprune[jetson]'",
    "no-service": "no jtop service runs here; sudo systemctl enable --now jtop (jetson-stats 7: first "
    "sudo jtop --install-service)",
    "forbidden": "this user may not use jtop's service; sudo usermod -aG jtop $USER, then log in again",
    "silent": f"jtop's service took the connection and sent nothing; {_RESTART}",
    "lost": f"jtop's service went away in the middle; {_RESTART}",
    "stale": f"jtop's service repeats one old sample; {_RESTART}",
    "died": "the sampling process died; try 'edgeprune doctor', then report it",
    "error": f"jtop failed; {_RESTART}",
}


def sentence(kind: str, detail: str = "", client: str | None = None) -> str:
    """What to tell the user: ``power: not measured``, why, and what to do."""
    if kind == "mismatch":
        service = re.search(r"service: \[([^\]]+)\]", detail)
        theirs = f" {service[1]}" if service else ""
        ours = f" {client}" if client else ""
        remedy = f"pip install 'jetson-stats=={service[1]}'" if service else "install one version of jetson-stats"
        return (
            f"power: not measured: jtop's service{theirs} and this Python's jetson-stats{ours} do not understand each "
            f"other; {remedy} here, or update the service and {_RESTART}"
        )
    if kind == "old":
        return f"power: not measured: jetson-stats {detail} is too old, 4.3 is needed; sudo pip install -U jetson-stats"
    text = SENTENCES.get(kind, SENTENCES["error"])
    return f"power: not measured: {text}" + (f" ({detail.splitlines()[0]})" if kind == "error" and detail else "")


class JtopSampler:
    """Samples at ``interval_s`` until :meth:`stop`. The service's own rate may be another; the recording holds it.

    ``deadline_s`` is the longest wait for the first fresh sample (importing jtop takes seconds on a small board);
    later, ``patience_s`` without a line means that the service hangs, and the child is killed. ``python`` must see
    jetson-stats; the default is this one.
    """

    def __init__(
        self,
        interval_s: float = 0.5,
        deadline_s: float = 15.0,
        patience_s: float | None = None,
        python: str = sys.executable,
        command: Sequence[str] | None = None,
    ) -> None:
        self._interval = interval_s
        self._deadline = deadline_s
        self._patience = patience_s
        self._command = list(command or (python, "-m", "edgeprune.device.jtop_child", str(interval_s)))
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._dropped = 0
        self._rail: str | None = None
        self._fault: str | None = None
        self._effective = interval_s
        self._client: str | None = None
        self._decided = threading.Event()
        self._stopping = False
        self._stale_last = False
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> JtopSampler:
        """Begin; returns with the first fresh sample, or at the latest after the deadline. Never raises."""
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                start_new_session=True,  # Ctrl-C is for the training process to handle
            )
        except OSError as error:
            self._fault = f"power: not measured: {self._command[0]} cannot be started ({error.strerror})"
            return self
        self._thread = threading.Thread(target=self._listen, name="jtop sampler", daemon=True)
        self._thread.start()
        self._decided.wait(self._deadline + 1)
        return self

    def recording(self) -> Recording:
        """What was seen so far."""
        with self._lock:
            seen = tuple(self._samples)
            return Recording("jtop", seen, self._rail, self._effective, self._dropped, self._fault)

    def forget(self, before_s: float) -> None:
        """Drop samples older than ``before_s``, but the last of them."""
        with self._lock:
            forget(self._samples, before_s)

    def stop(self) -> Recording:
        """End the child and return everything."""
        self._stopping = True
        if self._child is not None:
            self._end_child()
        if self._thread is not None:
            self._thread.join(2)
        return self.recording()

    def __enter__(self) -> JtopSampler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- the listening thread ---

    def _listen(self) -> None:
        child = self._child
        assert child is not None and child.stdout is not None
        waited_since, pending = now(), b""
        try:
            while True:
                left, began = waited_since + self._limit() - now(), now()
                ready = select.select([child.stdout], [], [], max(0.0, left))[0]
                if now() - began > max(0.0, left) + _OVERSLEPT_S:  # the machine stood still, the service too
                    waited_since = now()
                elif not ready and left <= 0:
                    text = self._silence()
                    self._end_child()
                    self._fail(text)
                    return
                if not ready:
                    continue
                chunk = os.read(child.stdout.fileno(), 65536)
                if not chunk:
                    if not self._stopping:
                        self._fail(sentence("died"))
                    return
                pending += chunk
                *lines, pending = pending.split(b"\n")
                # Only a fresh sample counts as a sign of life: a service that repeats itself is as good as hung.
                if any(self._take(line) for line in lines):
                    waited_since = now()
                if self._fault:
                    return
        except (OSError, ValueError):
            if not self._stopping:
                self._fail(sentence("died"))
        finally:
            self._decided.set()
            self._end_child()

    def _limit(self) -> float:
        if not self._samples:
            return self._deadline
        return self._patience if self._patience is not None else max(2.0, 5 * self._effective)

    def _silence(self) -> str:
        """Why there was no fresh sample: nothing at all came, or only old ones did."""
        return sentence("stale" if self._stale_last else "silent" if not self._samples else "lost")

    def _take(self, line: bytes) -> bool:
        """One line of the child; whether it was a fresh sample."""
        try:
            said: Mapping[str, Any] = json.loads(line)
            event = said["event"]
            if event == "started":
                self._client = str(said["client"])
                self._effective = float(said["interval_s"])
                return False  # the deadline is for the first sample
            if event == "stale":
                self._dropped, self._stale_last = self._dropped + 1, True
                return False
            if event == "fault":
                self._fail(sentence(str(said["kind"]), str(said["detail"]), said.get("client") or self._client))
                return False
            sample = _sample(said)
        except (ValueError, KeyError, TypeError):
            self._fail(sentence("died"))
            return False
        with self._lock:
            self._stale_last = False
            self._samples.append(sample)
            if self._rail is None and sample.power_w is not None:
                self._rail = said["total"] or "sum of " + " + ".join(sample.rails_w)
        self._decided.set()
        return True

    def _fail(self, text: str) -> None:
        with self._lock:
            self._fault = self._fault or text
        self._decided.set()

    def _end_child(self) -> None:
        child = self._child
        if child is None:
            return
        with contextlib.suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()
        try:
            child.wait(0.5)
        except subprocess.TimeoutExpired:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)
        if child.stdout is not None and threading.current_thread() is self._thread:
            child.stdout.close()


def _sample(said: Mapping[str, Any]) -> Sample:
    time_s, power = float(said["time_s"]), said["power_w"]
    if not math.isfinite(time_s):
        raise ValueError("time")
    return Sample(
        time_s,
        None if power is None else float(power),
        {str(name): float(value) for name, value in said["rails_w"].items()},
        {str(name): float(value) for name, value in said["temperatures_c"].items()},
        said["mode"],
        {str(name): int(value) for name, value in said["clocks_khz"].items()},
    )
