"""New memory for large results: what torch's functions give, in pages that the system was asked to make large."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
import torch

from edgeprune import _core
from edgeprune.ops import memory

SMAPS = Path("/proc/self/smaps")
PAGE = mmap.PAGESIZE
LARGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(address: int) -> list[str]:
    """VmFlags of the mapping that holds ``address`` (proc(5))."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


visible = pytest.mark.skipif(not (SMAPS.exists() and LARGE.exists()), reason="no large pages, or no way to see them")


@visible
@pytest.mark.parametrize(("size", "asked"), [(4 << 20, True), ((4 << 20) - 1, False), ((16 << 20) + 5, True)])
def test_whole_pages_inside_are_advised_and_none_beyond(size, asked):
    own = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = (ctypes.c_char * len(own)).from_buffer(own)
    begin = ctypes.addressof(held) + 3 * PAGE
    _core.ask_large_pages(begin - 1, size)  # begins on the last byte of a page, which is not whole
    first, last = begin, (begin - 1 + size) // PAGE * PAGE - 1
    assert ("hg" in flags_at(first)) == ("hg" in flags_at(last)) == asked
    assert "hg" not in flags_at(first - 1) and "hg" not in flags_at(last + 1)
    del held


@visible
def test_large_results_are_advised():
    assert "hg" in flags_at(memory.empty(64 << 20, dtype=torch.uint8).data_ptr() + PAGE)


@pytest.mark.parametrize("shape", [0, 7, (3, 0), (2, 3, 5), (1 << 21) + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_zeros_are_torchs(shape, dtype):
    x = memory.zeros(shape, dtype=dtype)
    want = torch.zeros(shape, dtype=dtype)
    assert x.dtype == dtype and x.is_contiguous() and torch.equal(x, want)


def test_other_devices_get_torchs_memory():
    assert memory.empty((3, 5), device="meta").device.type == "meta"
