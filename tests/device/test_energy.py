"""A meter in a process that lives for days: windows by hand, bounded memory, a source that comes back."""

from __future__ import annotations

import threading
import time

import pytest

from edgeprune.device.energy import EnergyMeter
from edgeprune.device.polling import NoSampler, PollingSampler
from edgeprune.device.samples import Sample, forget, now


def steady(watts: float = 8.0, interval_s: float = 0.01) -> PollingSampler:
    return PollingSampler("hwmon INA3221", "VDD_IN", lambda: Sample(now(), watts), interval_s).start()


def until(what, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(what())


def test_steady_power_is_power_times_time():
    with EnergyMeter(steady) as meter:
        assert meter.source == "power through hwmon INA3221, rail VDD_IN"
        for _ in range(2):
            meter.begin()
            time.sleep(0.3)
            energy = meter.finish()
            assert energy.joules == pytest.approx(8.0 * energy.seconds) and energy.seconds >= 0.3


def test_too_short_to_see_is_not_measured():
    with EnergyMeter(lambda: steady(interval_s=5.0)) as meter:
        meter.begin()
        energy = meter.finish()
    assert energy.joules is None and "samples in the window" in (energy.reason or "")


def test_no_source_is_a_sentence():
    with EnergyMeter(lambda: NoSampler("power: not measured: no sensor")) as meter:
        meter.begin()
        assert meter.finish().reason == meter.source == "power: not measured: no sensor"


def test_idle_days_leave_nothing_behind_and_a_window_loses_nothing():
    sampler = steady()
    with EnergyMeter(lambda: sampler, tend_s=0.05) as meter:
        time.sleep(0.5)
        assert len(sampler.recording().samples) < 30  # about 50 were taken
        meter.begin()
        time.sleep(0.5)
        assert meter.finish().samples > 20


def test_a_source_that_stopped_answering_is_opened_again():
    broken = threading.Event()

    def fragile() -> Sample:
        if broken.is_set():
            raise OSError("gone")
        return Sample(now(), 3.0)

    sources = iter([PollingSampler("first", "VDD_IN", fragile, 0.01).start(), steady()])
    with EnergyMeter(lambda: next(sources), tend_s=0.02, again_s=0.0) as meter:
        broken.set()
        assert until(lambda: "hwmon INA3221" in meter.source)
        meter.begin()
        time.sleep(0.2)
        energy = meter.finish()
    assert energy.joules == pytest.approx(8.0 * energy.seconds)


def test_forgetting_keeps_the_sample_at_which_a_window_begins():
    samples = [Sample(float(t), 1.0) for t in range(6)]
    forget(samples, 2.5)
    assert [sample.time_s for sample in samples] == [2, 3, 4, 5]
    forget(samples, 99.0)
    assert [sample.time_s for sample in samples] == [5]
    forget(samples, 0.0)
    assert len(samples) == 1
