"""Windows, percentiles and energies, with a board that is played second by second."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.bench.meter import Idle, Meter, Result, percentile
from edgeprune.device.samples import Energy, Recording, Sample, now


class Played:
    """A sampler with samples every 20 ms of ``watts``, from its start until now."""

    def __init__(self, watts: float, fault: str | None = None) -> None:
        self.watts, self.fault, self.began = watts, fault, now()
        self.mode = "25W"
        self.modes: list[tuple[float, str]] = [(0.0, "25W")]

    def start(self) -> Played:
        return self

    def recording(self) -> Recording:
        count = math.floor((now() - self.began) / 0.02) + 1
        times = [self.began + 0.02 * i for i in range(count)]
        samples = tuple(Sample(t, self.watts, {}, {"tj": 40.0 + i}, self._mode(t)) for i, t in enumerate(times))
        return Recording("jtop", samples, "VDD_IN", 0.02, fault=self.fault)

    def _mode(self, when: float) -> str:
        return [name for since, name in self.modes if when >= since][-1]

    def stop(self) -> Recording:
        return self.recording()


def test_energy_of_work_is_net_of_idle(tmp_path: Path):
    meter = Meter(Played(10.0), tmp_path)
    result = meter.measure("x", lambda: time.sleep(0.01), batch=4, seconds=0.2, repeats=2, least_samples=5, least_s=0.1)
    seconds = sum(end - start for start, end in result.windows)
    assert result.energy.joules == pytest.approx(10.0 * seconds)
    joules, why = result.joules_each(Idle(4.0, 6.0))
    assert why is None and joules == pytest.approx((10.0 - 5.0) * seconds / (4 * len(result.times_s)))
    assert result.to_dict(Idle(4.0, 6.0))["energy"]["rail"] == "VDD_IN"


def test_no_energy_without_idle_nor_below_it(tmp_path: Path):
    meter = Meter(Played(10.0), tmp_path)
    result = meter.measure("x", lambda: None, batch=1, seconds=0.1, repeats=1, least_samples=2, least_s=0.05)
    assert result.joules_each(Idle()) == (None, "not measured: idle power is not known")
    joules, why = result.joules_each(Idle(11.0, 11.0))
    assert joules is None and why is not None and "no more than idling" in why


def test_a_short_window_gives_no_energy(tmp_path: Path):
    result = Meter(Played(10.0), tmp_path).measure("x", lambda: None, batch=1, seconds=0.05, repeats=1)
    assert (
        result.energy.joules is None
        and result.energy.reason is not None
        and "shorter than 30 s" in result.energy.reason
    )


def test_a_change_of_mode_is_a_flag(tmp_path: Path):
    sampler = Played(10.0)
    calls: list[float] = []

    def work() -> None:
        time.sleep(0.03)
        calls.append(now())
        if len(calls) == 8:  # after the warm-up, in the first window
            sampler.modes.append((now(), "15W"))

    result = Meter(sampler, tmp_path).measure("x", work, batch=1, seconds=0.15, repeats=2)
    assert "the power mode changed during the measurement: 25W -> 15W" in result.flags


def test_throttling_is_a_flag(tmp_path: Path):
    counter = tmp_path / "sys/class/hwmon/hwmon0/oc1_event_cnt"
    counter.parent.mkdir(parents=True)
    counter.write_text("1\n")
    result = Meter(None, tmp_path).measure(
        "x", lambda: counter.write_text("3\n"), batch=1, seconds=0.01, repeats=1, warm_up=1
    )
    assert result.flags[0] == "throttled during the measurement: 2 over-current events"


def test_without_power_the_measurement_goes_on(tmp_path: Path):
    meter = Meter(Played(0.0, fault="power: not measured: the service went away"), tmp_path)
    assert not meter.has_power and meter.idle(5.0) is None
    result = meter.measure("x", lambda: None, batch=2, seconds=0.01, repeats=3, least=4)
    assert len(result.times_s) >= 12 and len(result.windows) == 3
    assert result.joules_each(Idle())[0] is None


def test_uneven_repeats_are_flagged(tmp_path: Path):
    pauses = iter([0.001] * 6 + [0.02] * 100)
    result = Meter(None, tmp_path).measure(
        "x", lambda: time.sleep(next(pauses)), batch=1, seconds=0.001, repeats=2, warm_up=1, least=5
    )
    assert any(flag.startswith("uneven") for flag in result.flags) and result.spread > 0.1


def test_peak_memory_sees_what_the_work_allocated(tmp_path: Path):
    size = 64 << 20
    small = Meter(None, tmp_path).measure("x", lambda: bytearray(1), batch=1, seconds=0.01, repeats=1)
    large = Meter(None, tmp_path).measure("x", lambda: bytearray(b"\1") * size, batch=1, seconds=0.01, repeats=1)
    if small.peak_memory is not None:  # the kernel may not let a process reset its mark
        assert large.peak_memory is not None and large.peak_memory - small.peak_memory > 0.9 * size


def test_percentiles_by_hand():
    times = tuple(t / 1000 for t in range(1, 101))
    result = Result("x", 8, times, ((0.0, 1.0),), (0.05,), None, Energy(None, 1.0, 0, "none", None, "none"))
    assert [result.percentile_ms(q) for q in (0.5, 0.9, 0.99)] == pytest.approx([50, 90, 99])
    assert result.per_second == pytest.approx(8 * 100 / 5.05)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentile_is_a_member_that_enough_do_not_exceed(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
