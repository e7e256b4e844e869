"""The probe on made-up machines: a folder with the files that a kernel would show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.device import probe

ORIN_CPU = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd42

processor\t: 1
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""

X86_CPU = """\
processor\t: 0
model name\t: Imaginary 9000 @ 3 GHz
flags\t\t: fpu sse4_2 avx f16c fma avx2 avx512f

processor\t: 1
model name\t: Imaginary 9000 @ 3 GHz
flags\t\t: fpu sse4_2 avx f16c fma avx2
"""


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    put(tmp_path, "proc/cpuinfo", ORIN_CPU)
    put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    put(tmp_path, "proc/device-tree/serial-number", "1421223055555\0")
    put(tmp_path, "proc/meminfo", "MemTotal:        7802516 kB\nMemFree: 100 kB\nMemAvailable:    5000000 kB\n")
    put(
        tmp_path,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    )
    put(tmp_path, "etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
    put(tmp_path, "etc/hostname", "annas-desk\n")
    return tmp_path


def test_an_orin(orin: Path) -> None:
    machine = probe.machine(orin)
    assert machine.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (machine.l4t, probe.jetpack(machine.l4t)) == ("36.4.3", "jetpack6")
    assert machine.cpu == "Cortex-A78AE"
    assert machine.simd == ("asimd", "asimdhp", "asimddp")
    assert (machine.memory_total, machine.memory_free) == (7802516 * 1024, 5000000 * 1024)
    assert machine.system.startswith("Ubuntu 22.04.5 LTS, ")


def test_nothing_that_names_one_board_or_person(orin: Path) -> None:
    shown = json.dumps(probe.machine(orin).to_dict())
    assert "1421223055555" not in shown and "annas-desk" not in shown and "38968081" not in shown


def test_simd_is_what_every_core_has(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", X86_CPU)
    machine = probe.machine(tmp_path)
    assert machine.cpu == "Imaginary 9000 @ 3 GHz"
    assert machine.simd == ("sse4_2", "avx", "f16c", "fma", "avx2")


def test_mixed_cores_are_all_named() -> None:
    text = "CPU implementer\t: 0x4e\nCPU part\t: 0x003\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd07\n"
    assert probe.cpu_name(text) == "Denver 2 + Cortex-A57"
    assert probe.cpu_name("CPU implementer\t: 0x99\nCPU part\t: 0x001\n") == "ARM core 0x99/0x001"


def test_missing_files_are_none_and_not_a_guess(tmp_path: Path) -> None:
    machine = probe.machine(tmp_path)
    assert (machine.board, machine.l4t, machine.memory_total, machine.memory_free) == (None, None, None, None)
    assert machine.simd == ()
    assert machine.cores_usable >= 1


@pytest.mark.parametrize(
    ("text", "release", "target"),
    [
        ("# R35 (release), REVISION: 5.0, GCID: 1", "35.5.0", "jetpack5"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0", "jetpack7"),
        ("# R32 (release), REVISION: 7.1, GCID: 1", "32.7.1", None),
        ("something else", None, None),
        ("", None, None),
    ],
)
def test_releases(text: str, release: str | None, target: str | None, tmp_path: Path) -> None:
    put(tmp_path, "etc/nv_tegra_release", text)
    assert probe.l4t(tmp_path) == release
    assert probe.jetpack(release) == target


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("4096000\n", "1024000\n", (4096000, 3072000)),
        ("max\n", "1024000\n", (8192000, 6144000)),
        ("999999999999\n", "1\n", (8192000, 6144000)),
        ("4096000\n", "9999999\n", (4096000, 0)),
        ("junk\n", "junk\n", (8192000, 6144000)),
    ],
)
def test_memory_respects_a_containers_limit(limit: str, used: str, expected: tuple[int, int], tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 6000 kB\n")
    put(tmp_path, "sys/fs/cgroup/memory.max", limit)
    put(tmp_path, "sys/fs/cgroup/memory.current", used)
    assert probe.memory(tmp_path) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_a_container_has_read_leave_its_memory_free(version: int, tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 6000 kB\n")
    group, limit, used, idle = {
        1: ("memory/", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
        2: ("", "max", "current", "inactive_file"),
    }[version]
    put(tmp_path, f"sys/fs/cgroup/{group}memory.{limit}", "2048000\n")
    put(tmp_path, f"sys/fs/cgroup/{group}memory.{used}", "2000000\n")
    put(tmp_path, f"sys/fs/cgroup/{group}memory.stat", f"cache 1\n{idle} 1500000\nactive_file 7\n")
    assert probe.memory(tmp_path) == (2048000, 1548000)


def test_this_machine_answers() -> None:
    machine = probe.machine()
    assert machine.cores >= machine.cores_usable >= 1
    json.dumps(machine.to_dict())
