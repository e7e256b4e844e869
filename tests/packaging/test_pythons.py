"""The wheel of every Python that edgeprune supports, built from the sdist, and what of it works without torch.

An interpreter that is not on this machine is skipped, with its version in the reason. Nothing is downloaded: the build
tools (pure Python) are those of the environment the tests run in. One CMake folder serves all, so the kernels are
compiled once, unoptimised, and each interpreter adds its bindings.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
TOOLS = ("setuptools", "pkg_resources", "_distutils_hack", "pybind11", "click")

# Run by each interpreter, without numpy and torch: the extension, the errors, the command line's help; and every file
# of the package is compiled, so that syntax of a later Python is seen.
CHECK = """
import compileall, importlib.util, runpy, sys
import edgeprune, edgeprune.errors
from edgeprune import EdgePruneError, _core
assert edgeprune.__version__ == sys.argv[1], edgeprune.__version__
assert _core.compiled_variants()
assert not [name for name in ("torch", "numpy") if name in sys.modules]
assert edgeprune.errors.nearest("digts", ["digits"]) == "; did you mean 'digits'?"
assert compileall.compile_dir(edgeprune.__path__[0], quiet=1)
sys.argv = ["edgeprune", "--help"]
runpy.run_module("edgeprune", run_name="__main__")
"""


def interpreter(version: str) -> str:
    """A Python of ``version`` with its headers, or skip. The running one, pyenv's, or what is on the path."""
    candidates = [sys.executable, *map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    candidates.append(shutil.which(f"python{version}") or "")
    query = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2], sysconfig.get_path('include'))"
    for candidate in filter(None, candidates):
        answer = subprocess.run([candidate, "-c", query], capture_output=True, text=True)
        found, _, headers = answer.stdout.strip().partition(" ")
        if found == version and (Path(headers) / "Python.h").is_file():
            return candidate
    pytest.skip(f"no Python {version} with headers on this machine")


def run(command: list[str], where: Path, **environment: str) -> str:
    """What ``command`` prints; environment variables that would change a build or an import are left out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGEPRUNE_", "CMAKE_", "COV"))}
    done = subprocess.run(command, cwd=where, env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all test processes, one at a time: tools/ (build tools), source/ (the sdist, unpacked), cmake/."""
    missing = [name for name in ("setuptools", "pybind11", "click") if importlib.util.find_spec(name) is None]
    if missing or shutil.which("cmake") is None:
        pytest.skip(f"not installed here: {', '.join(missing) or 'cmake'}")
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools older than 77, which the build needs")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pythons"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "source").exists():
            make_source(folder)
        yield folder


def make_source(folder: Path) -> None:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in TOOLS:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations and not (tools / name).exists():
            package = Path(next(iter(spec.submodule_search_locations)))
            (tools / name).symlink_to(package)
            for metadata in package.parent.glob(f"{name}-*.dist-info"):  # setuptools finds its own commands there
                (tools / metadata.name).symlink_to(metadata)
    tree = folder / "tree"  # making an sdist writes beside the sources
    wanted = ("csrc", "edgeprune", "docs", "scripts", "tests", "benchmarks")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "results", "*.egg-info")
    tree.mkdir(exist_ok=True)
    for path in ROOT.iterdir():
        if path.name in wanted:
            shutil.copytree(path, tree / path.name, ignore=ignore, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy(path, tree)
    hook = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = run([sys.executable, "-c", hook, str(folder)], tree, PYTHONPATH=str(tools)).split()[-1]
    shutil.unpack_archive(folder / name, folder / "unpacked")
    (folder / "unpacked" / name.removesuffix(".tar.gz")).rename(folder / "source")


@pytest.mark.parametrize("version", VERSIONS)
def test_wheel_from_the_sdist_imports_without_torch(version: str, shop: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    hook = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    printed = run(
        [python, "-c", hook, str(tmp_path)],
        shop / "source",
        PYTHONPATH=str(shop / "tools"),
        EDGEPRUNE_CUDA="0",
        EDGEPRUNE_BUILD_DIR=str(shop / "cmake"),
        CMAKE_ARGS="-DCMAKE_CXX_FLAGS_RELEASE=-O0",
    )
    wheel = tmp_path / printed.split()[-1]
    assert f"-cp{version.replace('.', '')}-" in wheel.name
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (installed / "click").symlink_to(shop / "tools" / "click")
    # -S: nothing of the interpreter's own site-packages, above all no torch.
    own = importlib.metadata.version("edgeprune")
    shown = run([python, "-S", "-c", CHECK, own], tmp_path, PYTHONPATH=str(installed))
    assert "doctor" in shown and "export" in shown
