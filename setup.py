"""Builds the extension ``edgeprune._core`` with CMake; everything else stands in pyproject.toml.

Environment:
    EDGEPRUNE_CUDA=0|1       leave CUDA out | insist on it (default: CUDA when nvcc is found)
    EDGEPRUNE_CUDA_ARCHS     CMake list such as "87;90-real" (default: this machine's GPU, else 8.7, 9.0, 11.0 and PTX)
    EDGEPRUNE_BUILD_DIR      CMake's folder (default: build/cmake-<Python and platform>)
    CMAKE_ARGS               further options for CMake, as a shell would split them
    EDGEPRUNE_BUILD_JOBS     compilers at once (default: no more than the cores, one for each 2 GiB of free memory)
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PORTABLE_ARCHS = ("87", "90", "110")  # Orin, data centre, Thor; PTX of the first covers what comes later


def build_jobs() -> int:
    """Compilers at once: a board with 4 GB dies of more than one for each 2 GiB of free memory."""
    if "EDGEPRUNE_BUILD_JOBS" in os.environ:
        return max(1, int(os.environ["EDGEPRUNE_BUILD_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free_kib = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    except (OSError, TypeError):
        return 1
    return min(cores, max(1, free_kib // (2 * 1024 * 1024)))


def find_nvcc() -> Path | None:
    """JetPack does not put nvcc on the PATH, so look where it lives first."""
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return Path(home) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None


def wanted_nvcc() -> tuple[Path | None, str]:
    """The compiler to use, or None and the reason why there is none."""
    wish = os.environ.get("EDGEPRUNE_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"EDGEPRUNE_CUDA is {wish!r}: set it to 0 (no CUDA) or 1 (insist on CUDA), or leave it unset")
    if wish == "0":
        return None, "EDGEPRUNE_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None and wish == "1":
        raise SystemExit(
            "EDGEPRUNE_CUDA=1 but no nvcc in CUDA_HOME, /usr/local/cuda or PATH: "
            "install the CUDA toolkit or point CUDA_HOME at it"
        )
    return nvcc, "" if nvcc else "no nvcc in CUDA_HOME, /usr/local/cuda or PATH"


def own_gpu_arch() -> str | None:
    """Compute capability of this machine's GPU as CMake writes it ("87"), or None."""
    try:
        board = Path("/proc/device-tree/compatible").read_text(errors="ignore")
    except OSError:
        board = ""
    for chip, arch in (("tegra234", "87"), ("tegra264", "110")):
        if chip in board:
            return arch
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    capabilities = sorted({a + b for a, b in re.findall(r"^(\d+)\.(\d)$", answer, flags=re.M)}, key=int)
    return ";".join(capabilities) or None


def cuda_archs(nvcc: Path) -> str:
    """The list for CMAKE_CUDA_ARCHITECTURES ("87" is machine code and PTX, "87-real" machine code alone)."""
    if os.environ.get("EDGEPRUNE_CUDA_ARCHS"):
        return os.environ["EDGEPRUNE_CUDA_ARCHS"]
    own = own_gpu_arch()
    if own:
        return own
    listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", listing))
    archs = [arch for arch in PORTABLE_ARCHS if arch in known]  # CUDA 12 does not know 11.0
    if not archs:
        raise SystemExit(f"{nvcc} knows none of {', '.join(PORTABLE_ARCHS)}: set EDGEPRUNE_CUDA_ARCHS")
    return ";".join([archs[0], *(f"{arch}-real" for arch in archs[1:])])


class CMakeBuild(build_ext):
    """Configures and builds in a folder that is kept: a second build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        own = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build = Path(os.environ.get("EDGEPRUNE_BUILD_DIR") or own).resolve()
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("cmake is missing: install it (apt install cmake, or pip install cmake) and build again")
        nvcc, why_not = wanted_nvcc()
        options = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DEDGEPRUNE_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DEDGEPRUNE_OUTPUT_DIR={target.parent}",
            f"-DEDGEPRUNE_OUTPUT_NAME={target.name}",
            f"-DEDGEPRUNE_WHY_NO_CUDA={why_not}",
            f"-DEDGEPRUNE_CUDA={'ON' if nvcc else 'OFF'}",
        ]
        if nvcc:
            options += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={cuda_archs(nvcc)}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        self.configure([cmake, "-S", str(ROOT), "-B", str(build), *options], build)
        subprocess.run([cmake, "--build", str(build), "--target", "_core", "-j", str(build_jobs())], check=True)
        if not nvcc:
            print(f"\n*** edgeprune: CPU-ONLY BUILD, no CUDA kernels ({why_not}) ***\n", file=sys.stderr, flush=True)

    @staticmethod
    def configure(command: list[str], build: Path) -> None:
        """Reuses the folder's configuration; one left by another tree, generator or compiler is thrown away, once."""
        ninja = shutil.which("ninja")  # named each time: pip's isolated builds have theirs in another place each time
        if ninja:
            command = [*command, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if subprocess.run(command).returncode != 0:
            shutil.rmtree(build / "CMakeFiles", ignore_errors=True)  # and nothing else: the folder may be the user's
            (build / "CMakeCache.txt").unlink(missing_ok=True)
            subprocess.run(command, check=True)


setup(ext_modules=[Extension("edgeprune._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
