"""The layers of docs/architecture.md: imports and includes point down, and neighbours do not know each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. Parts in one set are neighbours that do not know each other.
PYTHON_LAYERS: list[set[str]] = [
    {"_version", "errors", "destination", "digest", "onnx_session", "types"},
    {"_core"},
    {"ops"},
    {"nn"},
    {"pruning", "wire", "device", "data"},
    {"tasks", "fleet"},
    {"algorithms"},
    {"engine"},
    {"export", "bench", "report"},
    {"cli"},
    {"__main__"},
]
CPP_LAYERS: list[str] = ["base", "kernels", "ops", "python"]


def rank(part: str) -> int | None:
    return next((level for level, parts in enumerate(PYTHON_LAYERS) if part in parts), None)


def imported_parts(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, part of edgeprune) for every import anywhere in the file, also inside functions."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names = [node.args[0].value]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "edgeprune" and len(pieces) > 1:
                yield node.lineno, pieces[1]


def python_faults(source: str, relative: str) -> list[str]:
    """Sentences on the imports of one file, given by its path below the repository, that point up or sideways."""
    pieces = list(Path(relative).with_suffix("").parts)
    own = pieces[1]
    if own == "__init__":
        return []  # the package's face names everything, lazily
    level = rank(own)
    if level is None:
        return [f"{relative}: {own} stands in no layer of tests/test_layers.py"]
    faults = []
    for line, part in imported_parts(ast.parse(source), pieces[:-1]):
        other = rank(part)
        if part in ("__version__", "EdgePruneError"):
            other = 0
        if other is None:
            faults.append(f"{relative}:{line}: edgeprune.{part} stands in no layer; import it from where it is defined")
        elif part != own and (other >= level if level else other > 0):  # the lowest layer's files may share
            faults.append(f"{relative}:{line}: {own} imports {part}, which does not stand below it")
    return faults


def cpp_faults(source: str, relative: str) -> list[str]:
    """The same for #include lines of a file below csrc/."""
    pieces = Path(relative).parts
    own = pieces[0]
    faults = []
    for number, line in enumerate(source.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if not match:
            continue
        included = match[2].split("/")
        if match[1] == '"':
            if included[0] not in CPP_LAYERS:
                faults.append(f'{relative}:{number}: "{match[2]}" is not written from csrc/')
            elif CPP_LAYERS.index(included[0]) > CPP_LAYERS.index(own):
                faults.append(f"{relative}:{number}: {own} includes {match[2]}, which stands above it")
            elif own == included[0] == "kernels" and included[1] != pieces[1]:
                faults.append(f"{relative}:{number}: kernels/{pieces[1]} includes its neighbour {match[2]}")
        elif re.match(r"(torch|ATen|c10)/", match[2]):
            faults.append(f"{relative}:{number}: {match[2]}: the core knows nothing of torch")
        elif own != "python" and re.match(r"pybind11/|Python\.h", match[2]):
            faults.append(f"{relative}:{number}: {match[2]}: only csrc/python knows Python")
    return faults


def test_python_imports_point_down() -> None:
    files = sorted((ROOT / "edgeprune").rglob("*.py"))
    assert len(files) > 5
    faults = []
    for file in files:
        faults += python_faults(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))
    assert not faults, "\n".join(faults)


def test_cpp_includes_point_down() -> None:
    files = [file for file in sorted((ROOT / "csrc").rglob("*")) if file.suffix in (".h", ".cpp", ".cu")]
    assert len(files) > 5
    faults = []
    for file in files:
        faults += cpp_faults(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT / "csrc")))
    assert not faults, "\n".join(faults)


def test_kernel_files_keep_all_but_their_table_to_themselves() -> None:
    """An inline function compiled with AVX flags may be the copy that the linker keeps for everybody."""
    for file in (ROOT / "csrc/kernels").rglob("*_simd.h"):
        body = file.read_text(encoding="utf-8")
        assert re.search(r"^namespace \{$", body, flags=re.M), f"{file.name} has no anonymous namespace"
        assert "#include <vector>" not in body and "#include <algorithm>" not in body, file.name


def test_the_checks_see_what_they_are_for() -> None:
    assert python_faults("def f():\n    from edgeprune.cli import main\n", "edgeprune/engine/a.py")
    assert python_faults("from edgeprune import wire\n", "edgeprune/pruning/a.py")
    assert python_faults("from ..tasks import get\n", "edgeprune/fleet/a.py")
    assert python_faults("import edgeprune.ops.channels\n", "edgeprune/errors.py")
    assert python_faults("import importlib\nimportlib.import_module('edgeprune.report')\n", "edgeprune/data/a.py")
    assert not python_faults("from . import b\nfrom .b import c\nfrom edgeprune import ops\n", "edgeprune/pruning/a.py")
    assert cpp_faults('#include "ops/channels.h"', "kernels/channels/scalar.cpp")
    assert cpp_faults('#include "kernels/packing/packing.h"', "kernels/channels/scalar.cpp")
    assert cpp_faults("#include <torch/extension.h>", "python/module.cpp")
    assert cpp_faults("#include <pybind11/pybind11.h>", "ops/channels.cpp")
    assert not cpp_faults('#include "base/view.h"\n#include <vector>', "ops/channels.cpp")
