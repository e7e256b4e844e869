"""What info() says, what the library contains, and what loads without torch."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgeprune
from edgeprune import _core, ops

LIBRARY = Path(_core.__file__)


def test_info_and_self_test() -> None:
    info = ops.info()
    assert info["version"] == edgeprune.__version__
    assert info["chosen"] in info["present"] and set(info["present"]) <= set(info["compiled"])
    assert info["cuda"] and info["compiler"]
    assert {"gather", "channel_norms", "scatter_accumulate", "masked_linear", "masked_conv2d"} <= set(info["self_test"])
    assert {"select", "pack", "unpack", "feedback", "gaps", "max_pool"} <= set(info["self_test"])
    assert set(info["self_test"].values()) == {"ok"}


def test_self_test_whatever_torch_is_set_to() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            assert set(ops.self_test().values()) == {"ok"}
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_self_test_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.status.channels, "gather", lambda x, index: ops.reference.gather(x, index) + 1)
    assert "differs" in ops.self_test()["gather"]


def test_every_public_name_exists() -> None:
    assert all(hasattr(ops, name) for name in ops.__all__)
    assert set(edgeprune.__all__) <= set(dir(edgeprune))
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = edgeprune.prunes


def test_errors_and_the_core_load_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgeprune, edgeprune.errors\n"
        "from edgeprune import _core\n"
        "print(edgeprune.__version__, _core.chosen_variant())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == edgeprune.__version__


def test_library_needs_neither_libtorch_nor_cuda() -> None:
    if shutil.which("ldd") is None:
        pytest.skip("not installed here: ldd")
    needed = subprocess.run(["ldd", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in needed or "libc" in needed
    assert not [line for line in needed.splitlines() if "torch" in line or "cuda" in line or "c10" in line]


def gpu_code() -> set[tuple[str, int]]:
    """("machine code" | "PTX", architecture) of every piece of GPU code in the library.

    Fat binaries: a header (magic, version, header size, total size), then entries (kind, -, header size, size, ...,
    architecture at byte 28); checked against what nvcc 13 writes.
    """
    data, found, start = LIBRARY.read_bytes(), set(), 0
    while (start := data.find(struct.pack("<I", 0xBA55ED50), start)) >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, start)
        entry, end = start + header, start + header + size
        while entry < end <= len(data):
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
            (arch,) = struct.unpack_from("<I", data, entry + 28)
            found.add(("PTX" if kind == 1 else "machine code", arch))
            entry += entry_header + entry_size
        start += 4
    return found


def test_cuda_build_has_code_for_orin_and_ptx() -> None:
    if not _core.cuda_built():
        pytest.skip(f"built without CUDA kernels: {_core.cuda_text()}")
    if "87" not in _core.cuda_text():
        pytest.skip(f"built for this machine's own GPU: {_core.cuda_text()}")
    assert {("machine code", 87), ("PTX", 87)} <= gpu_code()
