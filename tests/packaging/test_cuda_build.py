"""What machine code a build with CUDA holds: Orin's own (sm_87; sm_80 would not do) and PTX for what comes later."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
PTX, MACHINE = 1, 2  # kinds of entries


def fat_entries(data: bytes) -> Iterator[tuple[int, int]]:
    """(kind, architecture) of everything in the fat binaries that nvcc embeds: a header, then one entry after another.

    Header: u32 magic, u16 version, u16 its own size, u64 size of what follows. Entry: u16 kind, u16 version, u32 size
    of its header, u64 size of what follows it, and at byte 28 the architecture (87 for sm_87).
    """
    at = -1
    while (at := data.find(struct.pack("<IH", 0xBA55ED50, 1), at + 1)) >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, own, rest = struct.unpack_from("<HHIQ", data, entry)
            yield kind, struct.unpack_from("<I", data, entry + 28)[0]
            entry += own + rest


@pytest.fixture
def setup_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py's functions, on a machine without a GPU and without wishes."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.delenv("EDGEPRUNE_CUDA_ARCHS", raising=False)
    spec = importlib.util.spec_from_file_location("edgeprune_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "own_gpu_arch", lambda: None)
    return module


def test_what_is_built_without_wishes_runs_on_an_orin(setup_module: ModuleType, tmp_path: Path) -> None:
    nvcc = setup_module.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here: the code that it makes cannot be looked at")
    archs = setup_module.cuda_archs(nvcc).split(";")
    generate = []
    for arch in archs:  # as CMake reads them
        number = arch.removesuffix("-real")
        code = f"sm_{number}" if arch.endswith("-real") else f"compute_{number},sm_{number}"
        generate.append(f"-gencode=arch=compute_{number},code=[{code}]")
    built = tmp_path / "norms.o"
    source = ROOT / "csrc/kernels/channels/cuda_norms.cu"
    command = [str(nvcc), "-std=c++17", *generate, "-I", str(ROOT / "csrc"), "-c", str(source), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    entries = set(fat_entries(built.read_bytes()))
    assert (MACHINE, 87) in entries and (PTX, 87) in entries
    assert (MACHINE, 90) in entries and {arch for kind, arch in entries if kind == PTX} == {87}


def test_cmake_alone_has_architectures_too(setup_module: ModuleType, tmp_path: Path) -> None:
    nvcc, cmake = setup_module.find_nvcc(), shutil.which("cmake")
    if nvcc is None or cmake is None:
        pytest.skip("no nvcc or no cmake here")
    options = ["-DEDGEPRUNE_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    done = subprocess.run([cmake, "-S", str(ROOT), "-B", str(tmp_path), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert all(code in (tmp_path / "compile_commands.json").read_text() for code in ("compute_87,sm_87", "[sm_90]"))


def test_the_installed_core_holds_what_it_says() -> None:
    from edgeprune import _core

    if not _core.cuda_built():
        pytest.skip(f"the core was built without CUDA ({_core.cuda_text()})")
    entries = set(fat_entries(Path(_core.__file__ or "").read_bytes()))
    said = _core.cuda_text().replace(",", " ").split()
    for arch in said:
        assert (MACHINE, int(arch.partition("-")[0])) in entries
    assert {arch for kind, arch in entries if kind == PTX} == {int(arch) for arch in said if arch.isdigit()}


def test_a_build_that_fails_leaves_what_else_is_in_its_folder(setup_module: ModuleType, tmp_path: Path) -> None:
    """EDGEPRUNE_BUILD_DIR may be a folder with other things in it."""
    (tmp_path / "CMakeFiles").mkdir()
    for name in ("CMakeCache.txt", "CMakeFiles/left.txt", "mine.txt"):
        (tmp_path / name).touch()
    with pytest.raises(subprocess.CalledProcessError):
        setup_module.CMakeBuild.configure(["sh", "-c", "exit 1"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
