"""The sampler against the real jtop service on an emulated Orin: energy, modes, and everything that goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jtop_service
import pytest
from jtop_service import Service
from versions import ENVIRONMENTS, WHY_NOT, sampler_of

from edgeprune.device import hwmon
from edgeprune.device.jtop import JtopSampler
from edgeprune.device.samples import Recording, now


def fault_of(sampler: JtopSampler, patience_s: float) -> str:
    """The fault, waited for at most that long."""
    end = time.monotonic() + patience_s
    while sampler.recording().fault is None and time.monotonic() < end:
        time.sleep(0.02)
    fault = sampler.recording().fault
    assert fault is not None, f"no fault within {patience_s} s"
    return fault


def test_energy_of_a_step(service: Service, version: str) -> None:
    """5 W for 2.5 s, then 15 W for 2.5 s: 50 J, within 2 %."""
    service.board.set_power("VDD_IN", 5.0)
    with sampler_of(version) as sampler:
        time.sleep(0.5)
        start = now()
        time.sleep(2.5)
        service.board.set_power("VDD_IN", 15.0)
        step = now()
        time.sleep(2.5)
        end = now()
        time.sleep(0.4)
        recording = sampler.stop()
    energy = recording.energy(start, end, least_samples=40, least_s=5)
    assert energy.reason is None and energy.rail == "VDD_IN"
    assert energy.joules == pytest.approx(5 * (step - start) + 15 * (end - step), rel=0.02)
    assert recording.interval_s == pytest.approx(0.1)
    assert recording.samples[-1].rails_w == {"VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5}
    assert recording.samples[-1].temperatures_c["tj"] == pytest.approx(46.5)


def test_a_change_of_mode_is_flagged(service: Service, version: str) -> None:
    with sampler_of(version) as sampler:
        start = now()
        time.sleep(0.3)
        service.board.set_mode(0)
        end = time.monotonic() + 15
        while len(sampler.recording().modes()) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        recording = sampler.stop()
    assert recording.modes() == ("25W", "15W")
    assert any("power mode changed during the measurement: 25W -> 15W" in flag for flag in recording.flags(start))


def test_a_stale_first_sample_is_dropped(service: Service, version: str) -> None:
    """Without clients the service sleeps and keeps its last sample; the next client must not take it for news."""
    with sampler_of(version):
        time.sleep(0.3)
    time.sleep(3)
    service.board.set_power("VDD_IN", 12.0)
    began = now()
    with sampler_of(version) as sampler:
        time.sleep(1)
        recording = sampler.stop()
    assert recording.fault is None and recording.samples
    assert recording.samples[0].time_s >= began - recording.interval_s
    times = [sample.time_s for sample in recording.samples]
    assert times == sorted(set(times))
    assert recording.samples[-1].power_w == pytest.approx(12.0)


def test_the_first_client_sets_the_rate(service: Service, version: str) -> None:
    with sampler_of(version, 0.2), sampler_of(version, 0.5) as second:
        assert second.recording().interval_s == pytest.approx(0.2)


def test_a_service_that_is_killed(service: Service, version: str) -> None:
    with sampler_of(version) as sampler:
        time.sleep(0.3)
        service.kill()
        fault = fault_of(sampler, 4)
        recording = sampler.stop()
    assert fault.startswith("power: not measured: ") and "went away" in fault and "restart jtop" in fault
    assert recording.samples, "what was seen before stays"
    assert recording.energy(now() - 40, now()).joules is None


def test_a_service_that_hangs_in_the_middle(service: Service, version: str) -> None:
    with sampler_of(version, patience_s=2) as sampler:
        time.sleep(0.3)
        service.hang()
        assert "restart jtop" in fault_of(sampler, 5)
        assert sampler.pid is None, "the child is gone"


def test_a_service_that_hangs_from_the_start(service: Service, version: str) -> None:
    service.hang()
    began = time.monotonic()
    with sampler_of(version, deadline_s=3) as sampler:
        assert time.monotonic() - began < 6
        fault = fault_of(sampler, 3)
        assert "sent nothing" in fault and "restart jtop" in fault
        assert sampler.pid is None


def test_a_user_outside_the_group(service: Service, version: str, tmp_path: Path) -> None:
    """The child runs as nobody: the socket is root's and the group's."""
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    python = str(ENVIRONMENTS[version] / "bin/python")
    if shutil.which("setpriv") is None or subprocess.run([*become, python, "-c", "0"], capture_output=True).returncode:
        pytest.skip("cannot become nobody here, or nobody may not run this Python")
    package = tmp_path / "as-nobody" / "edgeprune"
    shutil.copytree(Path(jtop_service.ROOT) / "edgeprune" / "device", package / "device")
    (package / "__init__.py").write_text("")
    for folder in (*tmp_path.parents, tmp_path):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); sys.argv = ['x', '0.1']; " + (
        "from edgeprune.device import jtop_child; jtop_child.main()"
    )
    with JtopSampler(0.1, deadline_s=10, command=[*become, python, "-c", code]) as sampler:
        fault = fault_of(sampler, 5)
    assert "usermod -aG jtop" in fault


def test_the_two_readers_agree(service: Service, version: str) -> None:
    """jtop and the sensors' own files, read at the same time from the same board."""
    service.board.set_power("VDD_SOC", 3.25)
    with sampler_of(version) as sampler:
        time.sleep(0.5)
        theirs = sampler.stop().samples[-1]
    ours = hwmon.read(hwmon.channels(service.board.root), service.board.root)
    assert ours.power_w == pytest.approx(theirs.power_w) == pytest.approx(6.0)
    assert ours.rails_w == pytest.approx(dict(theirs.rails_w))


def test_this_process_stays_as_it_was(service: Service, version: str) -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    with sampler_of(version):
        time.sleep(0.2)
    assert multiprocessing.get_start_method(allow_none=True) == before
    assert not any(name == "jtop" or name.startswith("jtop.") for name in sys.modules)


@pytest.mark.parametrize(("theirs", "ours"), [("4.3", "7.2"), ("7.2", "4.3")])
def test_versions_that_do_not_match(theirs: str, ours: str, tmp_path: Path) -> None:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    if not {theirs, ours} <= set(ENVIRONMENTS):
        pytest.skip("needs both jetson-stats 4.3 and 7.2 (scripts/jtop)")
    with jtop_service.running(ENVIRONMENTS[theirs], tmp_path), sampler_of(ours) as sampler:
        fault = fault_of(sampler, 5)
    assert f"service {theirs}." in fault and f"jetson-stats=={theirs}." in fault


def test_nothing_to_connect_to(version: str) -> None:
    if jtop_service.SOCKET.exists():
        pytest.skip("a service runs on this machine just now")
    with sampler_of(version) as sampler:
        assert "systemctl enable --now jtop" in fault_of(sampler, 5)
    assert isinstance(sampler.recording(), Recording)
