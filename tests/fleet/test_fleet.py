"""Fleet descriptions, links, faults and the virtual clock, by hand-computed numbers."""

from __future__ import annotations

import math
import statistics
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import EdgePruneError
from edgeprune.fleet import (
    Device,
    Fault,
    FleetConfig,
    LatencyTable,
    Link,
    Probe,
    Slowdown,
    Work,
    build_fleet,
    charge,
    measure,
)

TABLE = LatencyTable("t", 32, (100, 300, 1000), (1.0, 2.0, 9.0), (0.5, 1.0, 4.0), rebuild_ms=4.0)


def test_even_spread_of_times():
    fleet = build_fleet(FleetConfig(devices=5, heterogeneity=3.0))
    assert [d.slowdown for d in fleet.devices] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert fleet.names == ("device-0", "device-1", "device-2", "device-3", "device-4")


def test_unpruned_times_have_the_stated_ratio():
    fleet = build_fleet(FleetConfig(devices=3, heterogeneity=7.0, noise=0.0))
    work = Work(download_bytes=10_000, upload_bytes=20_000, steps=5, macs=1000)
    times = [charge(d, work, TABLE, round_=1, seed=0).total for d in fleet.devices]
    assert times[2] / times[0] == pytest.approx(7.0)


def test_link_by_hand():
    link = Link(download_mbps=8.0, upload_mbps=4.0, latency_ms=10.0)
    assert link.download_s(1_000_000) == pytest.approx(1.01)
    assert link.upload_s(1_000_000) == pytest.approx(2.01)


def test_figures_that_no_clock_can_divide_by_are_refused():
    for make in (
        lambda: Link(download_mbps=0.0),
        lambda: Link(upload_mbps=math.nan),
        lambda: Link(latency_ms=-1.0),
        lambda: Device("d", slowdown=0.0),
        lambda: Device("d", share=math.inf),
    ):
        with pytest.raises(EdgePruneError, match="must be"):
            make()


def test_charge_by_hand():
    device = Device("d", slowdown=2.0, link=Link(8.0, 8.0, 0.0))
    cost = charge(device, Work(1_000_000, 500_000, steps=10, macs=200, rebuilds=1), TABLE, round_=1, seed=0)
    assert cost.download_s == pytest.approx(1.0)
    assert cost.upload_s == pytest.approx(0.5)
    assert cost.compute_s == pytest.approx(10 * 2.0 * 1.5e-3)  # half way between 1 and 2 ms, twice as slow
    assert cost.rebuild_s == pytest.approx(2.0 * 4e-3)
    assert cost.total == pytest.approx(1.0 + 0.5 + 0.03 + 0.008)


def test_slowdown_strikes_everything_from_its_round_on():
    device = Device("d", slowdowns=(Slowdown(round=5, factor=2.0),))
    work = Work(1000, 1000, 3, 300)
    before, after = (charge(device, work, TABLE, round_=r, seed=0).total for r in (4, 5))
    assert after == pytest.approx(2 * before)


def test_noise_is_of_mean_one_and_the_same_for_every_algorithm():
    device = Device("d", noise=0.1)
    times = [charge(device, Work(0, 0, 1, 1000), TABLE, round_=r, seed=3).compute_s / 9e-3 for r in range(2000)]
    assert statistics.fmean(times) == pytest.approx(1.0, abs=0.01)
    assert statistics.pstdev(map(math.log, times)) == pytest.approx(0.1, rel=0.1)
    again = charge(device, Work(0, 0, 1, 1000), TABLE, round_=7, seed=3).compute_s / 9e-3
    assert again == times[7]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_smaller_model_is_never_slower(a, b):
    small, large = sorted((a, b))
    assert TABLE.step_s(small) <= TABLE.step_s(large)


def test_table_never_promises_less_than_was_measured():
    assert TABLE.step_s(1) == TABLE.step_s(100) == 1e-3
    assert TABLE.step_s(2000) == pytest.approx(18e-3)


def test_table_round_trip_and_refusals():
    assert LatencyTable.from_json(TABLE.to_json()) == TABLE
    for broken in (
        {},
        [],
        {**TABLE.to_json(), "macs": [3, 2, 1]},
        {**TABLE.to_json(), "macs": [1, 2]},
        {**TABLE.to_json(), "step_ms": [1.0, float("nan"), 2.0]},
        {**TABLE.to_json(), "rebuild_ms": -1.0},
    ):
        with pytest.raises(EdgePruneError, match="latency table"):
            LatencyTable.from_json(broken)


def test_measured_table_is_monotone_and_counts_real_calls():
    calls = {10: 0, 20: 0, 30: 0}

    def build(width: float) -> Probe:
        macs = int(width * 10)

        def step() -> None:
            calls[macs] += 1

        return Probe(macs, step, lambda: None, lambda: None)

    table = measure("t", 4, build, {"cpu": "here"}, widths=(3, 1, 2), seconds=0.003)
    assert table.macs == (10, 20, 30)
    assert list(table.step_ms) == sorted(table.step_ms)
    assert all(count >= 3 for count in calls.values())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (FleetConfig(devices=0), "fleet.devices is 0"),
        (FleetConfig(heterogeneity=0.5), "at least 1"),
        (FleetConfig(noise=-0.1), "noise is -0.1"),
        (FleetConfig(download_mbps=0.0), "download_mbps is 0"),
        (FleetConfig(device=({"name": "a"}, {"name": "a"})), "two devices are called 'a'"),
        (FleetConfig(device=({"name": "a", "slowdwon": 2.0},)), "did you mean 'slowdown'"),
        (FleetConfig(device=({"name": "a", "slowdown": float("inf")},)), "finite"),
        (FleetConfig(device=({"name": ""},)), "name ''"),
        (FleetConfig(device=({"name": "."},)), "name '.' means a folder"),
        (FleetConfig(device=({"name": ".."},)), "name '..' means a folder"),
        (FleetConfig(device=({"name": "a" * 65},)), "1 to 64 printable characters"),
        (FleetConfig(device=({"name": "\u673a" * 27},)), "has 81 bytes in UTF-8; give at most 80"),
        (FleetConfig(latency_ms=1e308), "latency_ms is 1e.308; give 1e.09 or less"),
        (FleetConfig(download_mbps=1e-320), "download_mbps is 1e-320; give 1e-06 to 1e.09"),
        (FleetConfig(heterogeneity=1e300), "heterogeneity is 1e.300; give 1e.09 or less"),
        (FleetConfig(device=({"name": "a", "slowdown": 1e-320},)), "slowdown is 1e-320; give 1e-06"),
        (FleetConfig(device=({"name": "a", "memory_mib": 1e300},)), "memory_mib is 1e.300; give 1e.09 or less"),
        (FleetConfig(event=({"device": "device-1", "round": 3, "slowdown": 1e300},)), "factor 1e.300; give 1e-06"),
        (FleetConfig(device=("a",)), "expected a table"),
        (FleetConfig(event=({"device": "device-77", "round": 3, "slowdown": 2.0},)), "unknown device 'device-77'"),
        (FleetConfig(event=({"device": "device-1", "round": 3, "slowdown": 0.0},)), "positive"),
        (FleetConfig(fault=({"device": "device-1", "kind": "nana"},)), "did you mean 'nan'"),
        (FleetConfig(fault=({"device": "device-1", "kind": "nan", "first": 5, "last": 4},)), "before it begins"),
        (FleetConfig(fault=({"device": "device-1", "kind": "nan", "first": "5"},)), "first must be given as int"),
    ],
)
def test_a_wrong_description_is_one_sentence(config, sentence):
    with pytest.raises(EdgePruneError, match=sentence.replace("[", r"\[")) as caught:
        build_fleet(config)
    assert "\n" not in str(caught.value)


def test_a_name_is_also_a_files_name():
    """The longest that are allowed, as the files of a device are called."""
    for name in ("\u673a" * 26, "\U0001f600" * 20, "%" * 64):
        (device,) = build_fleet(FleetConfig(device=({"name": name},))).devices
        assert len(f"device-{quote(device.name, safe='')}.tmp") <= 255


@pytest.mark.parametrize("key", ["latency_ms", "download_mbps", "upload_mbps", "slowdown"])
@pytest.mark.parametrize("value", [1e-6, 1e9])
def test_times_at_the_bounds_are_finite(key, value):
    (device,) = build_fleet(FleetConfig(device=({"name": "a", "slowdown": 1e9, key: value, "noise": 10.0},))).devices
    for round_ in range(100):
        took = charge(device, Work(2**40, 2**40, 1000, 10**9), TABLE, round_=round_, seed=0)
        assert 0 < took.total < 1e100


def test_faults_strike_in_their_rounds_only():
    fleet = build_fleet(FleetConfig(fault=({"device": "device-1", "kind": "drop", "first": 3, "last": 4},)))
    assert [fleet["device-1"].fault_at(r) for r in (2, 3, 4, 5)] == [None, "drop", "drop", None]
    assert fleet["device-0"].fault_at(3) is None
    assert Fault("nan").active(10**6)
