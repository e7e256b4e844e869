"""The few facts about this machine that stand beside every measured figure. No serial number, no host or user name."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, usable cores, system, Python and torch versions, as a JSON-able dict."""
    import torch

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it; the board's name on a device-tree machine."""
    for path in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        try:
            return Path(path).read_text().rstrip("\0\n ")
        except OSError:
            continue
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def usable_cores() -> int:
    """Cores this process may run on, which a container can limit."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
