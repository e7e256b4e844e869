"""Sensors read from files, NVML, the machine's state, and the choice between sources."""

from __future__ import annotations

import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.device import hwmon, nvml, power
from edgeprune.device.state import MachineState, changes, machine_state
from edgeprune.errors import EdgePruneError

CHIP = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def board(root: Path, **rails: tuple[int, int]) -> Path:
    for i, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        put(root, f"{CHIP}/in{i}_label", f"{label}\n")
        put(root, f"{CHIP}/in{i}_input", f"{millivolts}\n")
        put(root, f"{CHIP}/curr{i}_input", f"{milliamperes}\n")
    put(root, f"{CHIP}/in7_label", "sum of shunt voltages\n")
    put(root, f"{CHIP}/in7_input", "0\n")
    put(root, "sys/class/thermal/thermal_zone0/type", "tj-thermal\n")
    put(root, "sys/class/thermal/thermal_zone0/temp", "51500\n")
    put(root, "sys/class/thermal/thermal_zone1/type", "off-thermal\n")
    put(root, "sys/class/thermal/thermal_zone1/temp", "-256000\n")
    return root


def test_the_input_rail_is_the_total(tmp_path: Path):
    root = board(tmp_path, VDD_IN=(5000, 1200), VDD_SOC=(5000, 300))
    sample = hwmon.read(hwmon.channels(root / "sys"), root / "sys")
    assert sample.power_w == pytest.approx(6.0) and sample.rails_w == {"VDD_SOC": pytest.approx(1.5)}
    assert sample.temperatures_c == {"tj": 51.5}


def test_of_two_sensors_of_one_name_the_hotter_counts(tmp_path: Path):
    root = board(tmp_path, VDD_IN=(5000, 1200))
    for zone, millidegrees in ((2, 92000), (3, 40000)):
        put(root, f"sys/class/thermal/thermal_zone{zone}/type", "cpu-thermal\n")
        put(root, f"sys/class/thermal/thermal_zone{zone}/temp", f"{millidegrees}\n")
    assert hwmon.read(hwmon.channels(root / "sys"), root / "sys").temperatures_c == {"tj": 51.5, "cpu": 92.0}


def test_without_an_input_rail_the_sum_is_named(tmp_path: Path):
    root = board(tmp_path, VDD_GPU_SOC=(19000, 500), VDD_CPU_CV=(19000, 200))
    sampler = hwmon.sampler(0.1, root / "sys")
    assert sampler is not None
    with sampler:
        time.sleep(0.25)
        recording = sampler.stop()
    assert recording.rail == "sum of VDD_GPU_SOC + VDD_CPU_CV"
    assert len(recording.samples) >= 3 and recording.samples[0].power_w == pytest.approx(13.3)


def test_sensors_that_vanish_are_a_sentence(tmp_path: Path):
    root = board(tmp_path, VDD_IN=(5000, 1200))
    sampler = hwmon.sampler(0.1, root / "sys")
    assert sampler is not None
    with sampler:
        (root / f"{CHIP}/in1_input").unlink()
        time.sleep(0.3)
        recording = sampler.stop()
    assert recording.fault is not None and "stopped answering" in recording.fault


@pytest.mark.parametrize("broken", ["in1_input", "curr1_input"])
def test_unreadable_sensors_are_none(tmp_path: Path, broken: str):
    root = board(tmp_path, VDD_IN=(5000, 1200))
    put(root, f"{CHIP}/{broken}", "junk")
    assert hwmon.sampler(0.1, root / "sys") is None
    assert hwmon.sampler(0.1, root / "nothing") is None


def test_unconnected_channels_do_not_count(tmp_path: Path):
    root = board(tmp_path, NC=(5000, 1), VDD_IN=(5000, 1200))
    assert [channel.label for channel in hwmon.channels(root / "sys")] == ["VDD_IN"]


def test_auto_falls_back_to_the_sensors(tmp_path: Path):
    root = board(tmp_path, VDD_IN=(5000, 1200))
    put(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    recording = power.open_sampler("auto", 0.1, root, deadline_s=10).stop()
    assert recording.source == "hwmon INA3221" and recording.samples[0].power_w == pytest.approx(6.0)
    assert recording.fault is None and recording.instead_of, "why it is not jtop is said as well"


def test_none_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    recording = power.open_sampler("none").stop()
    assert recording.fault == "power: not measured: it was not asked for"
    fault = power.open_sampler("hwmon", root=tmp_path).stop().fault
    assert fault is not None and "no INA3221 sensor" in fault
    fault = power.open_sampler("nvml", root=tmp_path).stop().fault
    assert fault is not None and "no NVML here" in fault
    with pytest.raises(EdgePruneError, match="jtop"):
        power.open_sampler("jtopp")
    with pytest.raises(EdgePruneError, match=r"0\.1 to 60"):
        power.open_sampler("none", 0.01)


def test_nvml(monkeypatch: pytest.MonkeyPatch):
    played = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPowerUsage=lambda handle: 71_500,
        nvmlDeviceGetTemperature=lambda handle, kind: 44,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 1980,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
    )
    monkeypatch.setitem(sys.modules, "pynvml", played)
    recording = power.open_sampler("nvml", 0.1).stop()
    assert recording.rail == "GPU 0" and recording.samples[0].power_w == 71.5

    def broken() -> None:
        raise RuntimeError("Driver Not Loaded")

    played.nvmlInit = broken
    assert "Driver Not Loaded" in str(nvml.sampler())


def test_state_of_a_jetson(tmp_path: Path):
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0002\n")
    put(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\nX\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1510400\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    put(tmp_path, "sys/class/devfreq/17000000.gpu/max_freq", "624750000\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/oc1_event_cnt", "3\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/oc3_event_cnt", "4\n")
    for number, (kind, level) in enumerate((("pwm-fan", 2), ("gpu-throttle-alert", 1), ("cpufreq-cpu0", 0))):
        put(tmp_path, f"sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
        put(tmp_path, f"sys/class/thermal/cooling_device{number}/cur_state", f"{level}\n")
    state = machine_state(tmp_path)
    assert state.cooling == {"gpu-throttle-alert": 1}, "a fan takes nothing away"
    assert (state.mode, state.governor) == ("MAXN_SUPER", "schedutil")
    assert state.clocks_khz == {"CPU clock": 1_510_400, "GPU clock": 624_750}
    assert state.throttled == {"over-current": 7}
    put(tmp_path, "etc/nvpmodel.conf", "")
    assert machine_state(tmp_path).mode == "mode 2"
    assert machine_state(tmp_path / "nothing") == MachineState()


def test_changes_are_sentences():
    before = MachineState("25W", "schedutil", {"GPU clock": 624_000}, {}, {"thermal": 2})
    after = MachineState("15W", "performance", {"GPU clock": 420_000}, {}, {"thermal": 5})
    assert changes(before, before) == []
    assert changes(before, after) == [
        "the power mode changed during the measurement: 25W -> 15W",
        "the CPU governor changed during the measurement: schedutil -> performance",
        "the GPU clock limit changed during the measurement: 624 -> 420 MHz",
        "throttled during the measurement: 3 thermal events",
    ]
    hot = replace(before, cooling={"cpu-throttle-alert": 1})
    assert changes(before, hot) == ["slowed down by heat, as seen after the measurement: cpu-throttle-alert"]
    assert "before and after" in changes(hot, hot)[0] and "seen before the" in changes(hot, before)[0]
