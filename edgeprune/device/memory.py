"""Peak memory of a piece of work: the process's on Linux, the allocator's on a GPU. None where it cannot be known."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes of this process that are in memory now, freed heap returned first."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory; it would be counted as used
    return _kilobytes("VmRSS")


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes of this process at the highest moment of ``work``; None where Linux does not allow the mark to be reset."""
    resident()
    try:
        CLEAR.write_text("5")  # the high-water mark starts anew at what is resident
    except OSError:
        work()
        return None
    work()
    return _kilobytes("VmHWM")


def _kilobytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
