"""The watch over the sampling child, with children that do what they should not. The real one: tests/jetson."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edgeprune.device import jtop_child
from edgeprune.device.jtop import JtopSampler, sentence

SAMPLE = {
    "event": "sample",
    "time_s": 1.0,
    "power_w": 5.0,
    "total": None,
    "rails_w": {"CPU": 2.0, "GPU": 3.0},
    "temperatures_c": {},
    "mode": "15W",
    "clocks_khz": {},
}


def child(*lines: object, after: str = "import time; time.sleep(30)") -> list[str]:
    """A command that prints these lines (JSON unless bytes already) and then does ``after``."""
    shown = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return [sys.executable, "-c", f"import sys\nfor line in {shown!r}: print(line, flush=True)\n{after}"]


def watched(command: list[str], **options: float) -> tuple[JtopSampler, float]:
    began = time.monotonic()
    sampler = JtopSampler(0.1, command=command, **{"deadline_s": 5.0, **options}).start()
    return sampler, time.monotonic() - began


def settled(sampler: JtopSampler) -> str:
    end = time.monotonic() + 8
    while sampler.recording().fault is None and time.monotonic() < end:
        time.sleep(0.02)
    return sampler.recording().fault or ""


def test_one_that_never_speaks():
    sampler, took = watched(child(), deadline_s=0.5)
    assert took < 4 and "sent nothing" in settled(sampler) and sampler.pid is None


def test_one_that_only_repeats_itself():
    sampler, _ = watched(child(*[{"event": "stale"}] * 5), deadline_s=0.5)
    assert "one old sample" in settled(sampler)
    assert sampler.stop().dropped == 5


def test_one_that_falls_silent():
    sampler, _ = watched(child(SAMPLE), patience_s=0.3)
    assert len(sampler.recording().samples) == 1
    assert "went away" in settled(sampler) and sampler.pid is None


@pytest.mark.parametrize("line", ["not json", "{}", "[]", '{"event": "sample"}', json.dumps({**SAMPLE, "time_s": "x"})])
def test_one_that_speaks_nonsense(line):
    sampler, _ = watched(child(line))
    assert "the sampling process died" in settled(sampler)


def test_one_that_dies():
    sampler, _ = watched(child(SAMPLE, after="import os; os.kill(os.getpid(), 9)"))
    assert "died" in settled(sampler) and len(sampler.stop().samples) == 1


def test_one_that_is_not_there():
    sampler, _ = watched(["/nowhere/python"])
    assert "cannot be started" in settled(sampler)
    assert sampler.stop().samples == ()


def test_a_board_without_an_input_sensor_names_what_is_summed():
    sampler, _ = watched(child(SAMPLE))
    assert sampler.stop().rail == "sum of CPU + GPU"


def test_stop_ends_the_child_at_once():
    sampler, _ = watched(child(SAMPLE))
    assert sampler.pid is not None
    began = time.monotonic()
    recording = sampler.stop()
    assert sampler.pid is None and time.monotonic() - began < 5 and recording.fault is None


@pytest.mark.parametrize(
    ("error", "stage", "kind"),
    [
        (RuntimeError("Mismatch version jtop service: [4.3.2] and client: [7.2.2]"), "start", "mismatch"),
        (RuntimeError("I can't access jtop.service."), "start", "forbidden"),
        (PermissionError(13, "x"), "start", "forbidden"),
        (RuntimeError("The jtop.service is not active."), "start", "no-service"),
        (FileNotFoundError(2, "x"), "start", "no-service"),
        (KeyError("init"), "start", "mismatch"),
        (EOFError(), "read", "lost"),
        (ConnectionResetError(), "read", "lost"),
        (RuntimeError("Lost connection with jtop server"), "read", "lost"),
        (ZeroDivisionError("x"), "start", "error"),
    ],
)
def test_kinds_of_trouble(error, stage, kind):
    assert jtop_child.classify(error, stage) == kind
    text = sentence(kind, str(error))
    assert text.startswith("power: not measured: ") and "\n" not in text


def test_a_board_that_lacks_fields_gives_fewer_figures_and_no_guess():
    class Bare:
        power = {"rail": {}, "tot": {"power": 0}}
        nvpmodel = None

        class uptime:
            @staticmethod
            def total_seconds() -> float:
                return 7.0

    sample = jtop_child.read(Bare())
    assert sample["power_w"] is None and sample["mode"] is None and sample["temperatures_c"] == {}


def test_old_clients_are_told():
    assert not jtop_child._recent("3.1.4") and not jtop_child._recent("4.2.12")
    assert jtop_child._recent("4.3.2") and jtop_child._recent("7.2.2") and jtop_child._recent("unknown")
    assert "too old" in sentence("old", "4.2.12")


SPEAKING = f"""
import json, time
for i in range(200):
    print(json.dumps({{**{SAMPLE!r}, "time_s": float(i)}}), flush=True)
    time.sleep(0.1)
"""
WATCHING = f"""
import sys
from edgeprune.device.jtop import JtopSampler
sampler = JtopSampler(0.1, command=[sys.executable, "-c", {SPEAKING!r}], patience_s=0.8).start()
print(sampler.pid, flush=True)
sys.stdin.readline()
print(sampler.recording().fault, flush=True)
sampler.stop()
"""


def test_a_machine_that_stood_still_is_no_fault_of_the_service():
    with subprocess.Popen([sys.executable, "-c", WATCHING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watching:
        assert watching.stdin is not None and watching.stdout is not None
        pid = int(watching.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)  # what it said last is read
        os.kill(watching.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(watching.pid, signal.SIGCONT)
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.5)  # giving up would take a second
        watching.stdin.write(b"\n")
        watching.stdin.flush()
        assert watching.stdout.readline() == b"None\n"
