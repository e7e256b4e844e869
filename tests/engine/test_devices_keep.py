"""What a device keeps of a run: its answers, its plan and what error feedback owes, through its end and no further."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_carrier import bench
from remote_runs import FEEDBACK, lead, of, same, weights

from edgeprune import engine
from edgeprune.engine import federation, frames
from edgeprune.engine.frames import Frame


def test_an_assignment_that_comes_again_is_answered_as_before(small, tmp_path):
    """A server that resumes sends its round again; error feedback must not be applied twice."""
    _, carrier = lead(of(small, FEEDBACK), tmp_path)
    asked, honest = [(q, a) for q, a in carrier.history if q.client == "device-0"][-1]
    again = carrier._devices["device-0"].work(replace(asked, token="0123456789abcdef"))
    assert again.about["again"] is True and again.token == "0123456789abcdef"
    assert again.blob == Frame.from_bytes(honest.data, frames.ANSWERS).blob


def test_what_a_device_must_keep_survives_its_end(small, tmp_path):
    experiment = of(small, FEEDBACK, "run.rounds=4")
    carrier = bench(experiment, tmp_path / "state")

    def end_of_process(at, record):
        if record["round"] == 2:
            carrier._devices = bench(experiment, tmp_path / "state")._devices

    federation.lead(experiment, carrier, tmp_path / "run", None, wait_s=5, clock=carrier.clock, watch=end_of_process)
    engine.start(engine.prepare(experiment), tmp_path / "local")
    assert same(weights(tmp_path / "local"), weights(tmp_path / "run"))


def test_an_assignment_that_comes_again_to_a_new_process_is_answered_as_before(small, tmp_path):
    """The worker was killed between its work and its answer: what error feedback owes is on disk already."""
    experiment = of(small, FEEDBACK)
    _, carrier = lead(experiment, tmp_path)
    asked, honest = [(q, a) for q, a in carrier.history if q.client == "device-0"][-1]
    again = bench(experiment, tmp_path / "run.state")._devices["device-0"].work(asked)
    assert again.about["again"] is True
    assert again.blob == Frame.from_bytes(honest.data, frames.ANSWERS).blob


def test_a_device_asked_for_statistics_still_knows_its_plan_after_its_end(small, tmp_path):
    half = ["algorithm.name=heterofl", "algorithm.rates=[0.5]", "algorithm.calibrate=1"]
    experiment = of(small, half, "run.evaluate_every=1", "run.deadline_s=60")
    carrier = bench(experiment, tmp_path / "state")

    def end_of_process(at, record):
        if record["round"] == 1:
            carrier._devices = bench(experiment, tmp_path / "state")._devices

    federation.lead(experiment, carrier, tmp_path / "run", None, wait_s=5, clock=carrier.clock, watch=end_of_process)
    assert [record["rejected"] for record in engine.RunDir(tmp_path / "run").metrics()] == [{}, {}, {}]


def test_a_device_with_a_new_run_owes_nothing_of_the_old_one(small, tmp_path):
    experiment = of(small, FEEDBACK)
    carrier = bench(experiment, tmp_path / "state")
    for name in ("first", "second"):
        federation.lead(experiment, carrier, tmp_path / name, None, wait_s=5, clock=carrier.clock)
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))


@pytest.mark.parametrize("anew", [False, True], ids=["the same process", "a new one"])
def test_a_device_owes_nothing_to_a_run_that_another_took_the_place_of_after_one_round(small, tmp_path, anew):
    carrier = bench(of(small, FEEDBACK), tmp_path / "state")
    federation.lead(of(small, FEEDBACK, "run.rounds=1"), carrier, tmp_path / "a", None, wait_s=5, clock=carrier.clock)
    if anew:
        carrier = bench(of(small, FEEDBACK), tmp_path / "state")
    second = of(small, [*FEEDBACK, "algorithm.lr=0.02"], "run.deadline_s=60")
    federation.lead(second, carrier, tmp_path / "b", None, wait_s=5, clock=carrier.clock)
    engine.start(engine.prepare(second), tmp_path / "local")
    assert same(weights(tmp_path / "local"), weights(tmp_path / "b"))
