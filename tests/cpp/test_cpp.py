"""Builds the C++ test program and runs it: natively, under sanitizers, and as AArch64 code under QEMU.

Build folders are kept under build/, so only the first run compiles everything.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSROOT = Path("/usr/aarch64-linux-gnu")


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")


def build(name: str, *options: str) -> Path:
    """The test program built in build/<name>."""
    folder = ROOT / "build" / name
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DEDGEPRUNE_TESTS=ON", *options]
    if shutil.which("ninja") and not (folder / "CMakeCache.txt").exists():
        command += ["-G", "Ninja"]
    for step in (command, ["cmake", "--build", str(folder), "-j", "2"]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "edgeprune_cpp_tests"


def run(*command: str | Path) -> str:
    """Runs the program; returns its output, in which checks were made and none failed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = re.search(r"^(\d+) checks, 0 failures$", done.stdout, flags=re.M)
    assert summary and int(summary[1]) > 5000
    return done.stdout


def test_native_and_the_cuda_kernels_on_the_host() -> None:
    need("cmake", "c++")
    program = build("cpp-native", "-DEDGEPRUNE_CUDA_EMULATION=ON")
    assert "scalar" in run(program).splitlines()[0]
    output = run(program.with_name("edgeprune_cuda_emulation"))
    ran = ("cuda_gather", "cuda_norms", "cuda_pack", "cuda_selection", "masked_cuda", "masked_blocks")
    assert all(f"\n{part}" in output for part in ran)


def test_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    need("cmake", "c++")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    flags = ["-fsanitize=address,undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(["c++", *flags], capture_output=True).returncode != 0:
        pytest.skip("this compiler has no sanitizer libraries")
    run(build("cpp-sanitize", "-DEDGEPRUNE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"))


# cortex-a57: the plain armv8-a that the base is compiled for; neoverse-n1: the features of Orin's Cortex-A78AE.
@pytest.mark.parametrize("processor", ["cortex-a57", "neoverse-n1"])
def test_aarch64_under_qemu(processor: str) -> None:
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    program = build(
        f"cpp-aarch64-{processor}",  # one folder each: two test processes may build at once
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )
    # QEMU's user mode itself dies of a fork() in a process with threads, whatever the program then does.
    output = run("qemu-aarch64", "-cpu", processor, "-L", SYSROOT, program, "the_pool_survives_a_fork")
    assert "neon" in output.splitlines()[0]
