"""What this machine is, read from the system's own files. No serial number, host name or user name is ever read.

Every function takes ``root`` so that it can be tried on a tree that looks like another machine's; where a file is
missing the answer is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")

# What the kernels can use, as the Linux kernel spells it in /proc/cpuinfo, in order of age.
_X86 = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
_ARM = ("asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16", "sve2")

# /proc/cpuinfo of an ARM core gives numbers; these are the cores found on Jetson modules and in ARM servers.
_ARM_CORES = {
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True)
class Machine:
    """``board`` and ``l4t`` only on a Jetson. Memory in bytes; ``memory_free`` is what programs can still get."""

    board: str | None
    l4t: str | None
    system: str
    architecture: str
    cpu: str | None
    simd: tuple[str, ...]
    cores: int
    cores_usable: int
    memory_total: int | None
    memory_free: int | None
    python: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def machine(root: Path = ROOT) -> Machine:
    """The machine that ``root`` belongs to (the architecture and Python are always this process's)."""
    cpuinfo = _read(root / "proc/cpuinfo") or ""
    total, free = memory(root)
    return Machine(
        board=board(root),
        l4t=l4t(root),
        system=system(root),
        architecture=platform.machine(),
        cpu=cpu_name(cpuinfo),
        simd=simd(cpuinfo),
        cores=os.cpu_count() or 1,
        cores_usable=usable_cores(),
        memory_total=total,
        memory_free=free,
        python=platform.python_version(),
    )


def usable_cores() -> int:
    """Cores this process may run on, which a container can limit."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def beside_figures() -> dict[str, Any]:
    """The few facts that stand beside every measured figure: board or processor, cores, system, Python, torch."""
    import torch

    return {
        "cpu": board() or cpu_name(_read(ROOT / "proc/cpuinfo") or "") or "unknown",
        "cores": usable_cores(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def board(root: Path = ROOT) -> str | None:
    """The board's model from the device tree (such as ``NVIDIA Jetson Orin Nano``); None where there is none."""
    # The second is what the first is a link to; containers often show only that.
    text = _read(root / "proc/device-tree/model") or _read(root / "sys/firmware/devicetree/base/model")
    return text.replace("\0", "").strip() or None if text else None


def l4t(root: Path = ROOT) -> str | None:
    """The Jetson Linux release as ``36.4.3`` from /etc/nv_tegra_release; None on anything else."""
    text = _read(root / "etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+)\b.*?REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(release: str | None) -> str | None:
    """The export target (``jetpack5``, ``jetpack6``, ``jetpack7``) of a Jetson Linux release; None if not known."""
    major = (release or "").split(".")[0]
    return {"34": "jetpack5", "35": "jetpack5", "36": "jetpack6", "38": "jetpack7"}.get(major)


def system(root: Path = ROOT) -> str:
    """Operating system and kernel, such as ``Ubuntu 22.04.5 LTS, Linux 5.15.148``."""
    kernel = f"{platform.system()} {platform.release()}"
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release") or "", re.MULTILINE)
    return f"{found[1]}, {kernel}" if found else kernel


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name; on ARM the kinds of cores in the order they are listed."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if found:
        return found[1].strip()
    makers = re.findall(r"^CPU implementer\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, re.MULTILINE)
    names = []
    for maker, part in zip(makers, parts, strict=False):
        name = _ARM_CORES.get((int(maker, 16), int(part, 16)), f"ARM core {maker}/{part}")
        if name not in names:
            names.append(name)
    return " + ".join(names) or platform.processor() or None


def simd(cpuinfo: str) -> tuple[str, ...]:
    """Instruction sets of use to the kernels that every listed core has."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if not lines:
        return ()
    common = set.intersection(*(set(line.split()) for line in lines))
    return tuple(name for name in (*_X86, *_ARM) if name in common)


def memory(root: Path = ROOT) -> tuple[int | None, int | None]:
    """(total, free) bytes: the system's, cut to the control group's limit where one is set (a container)."""
    info = dict(re.findall(r"^(\w+):\s*(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE))
    total = int(info["MemTotal"]) * 1024 if "MemTotal" in info else None
    free = int(info["MemAvailable"]) * 1024 if "MemAvailable" in info else None
    group, names, idle = root / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
    if (group / "memory/memory.limit_in_bytes").exists():  # the first version of control groups
        group, names, idle = group / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    limit, used = (_integer(group / name) for name in names)
    if total is not None and limit is not None and limit < total:
        total = limit
        if used is not None and free is not None:
            # Files that were read count as used until somebody needs the memory.
            cached = re.search(rf"^{idle} (\d+)$", _read(group / "memory.stat") or "", re.MULTILINE)
            free = min(free, max(0, limit - used + (int(cached[1]) if cached else 0)))
    return total, free


def _integer(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
