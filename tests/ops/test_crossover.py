"""The choice between sparse and dense: forced, by table, from the package's file and from the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeprune import EdgePruneError, SparsityPattern, ops
from edgeprune.bench import kernels
from edgeprune.ops import crossover

CURVES = dict.fromkeys(crossover.KINDS, ((1.0, 0.5), (10.0, 0.2)))
TABLES: crossover.Tables = {1: {"forward": CURVES, "step": dict.fromkeys(CURVES, ((5.0, 0.1),))}}


@pytest.fixture
def table() -> Iterator[None]:
    before = dict(crossover._state)
    crossover._state.update(path="auto", tables=TABLES)
    yield
    crossover._state.update(before)


@pytest.mark.usefixtures("table")
def test_the_table_decides_by_positions_density_and_gradients() -> None:
    for positions, density, training, wins in (
        (1, 0.5, False, True),
        (9, 0.51, False, False),
        (10, 0.2, False, True),
        (10**6, 0.21, False, False),
        (4, 0.01, True, False),  # below the first entry nothing is known to win
        (5, 0.1, True, True),
    ):
        assert crossover.sparse_wins("conv", positions, density, training) is wins
    assert crossover.sparse_wins("conv", 10, 0.9, False, "sparse") and not crossover.sparse_wins(
        "conv", 1, 0, False, "dense"
    )


@pytest.mark.parametrize(
    ("outputs", "taps", "groups", "kind"),
    [(6, 25, 1, "conv_odd"), (12, 9, 1, "conv_odd"), (13, 9, 1, "conv"), (16, 9, 1, "conv"), (24, 9, 1, "conv_odd"),
     (25, 9, 1, "conv"), (36, 9, 1, "conv_odd"), (37, 9, 1, "conv"), (6, 1, 1, "conv1x1"), (6, 9, 2, "grouped")],
)  # fmt: skip
def test_outputs_that_leave_a_quarter_of_their_blocks_empty(outputs: int, taps: int, groups: int, kind: str) -> None:
    assert crossover.conv_kind(outputs, taps, groups) == kind


def test_the_measured_shapes_are_of_the_kind_that_they_stand_for() -> None:
    for shape in kernels.SHAPES:
        if not shape.linear:
            assert crossover.conv_kind(shape.outputs, shape.taps**2, shape.groups) == shape.kind
    assert {shape.kind for shape in kernels.SHAPES} == set(crossover.KINDS)
    pattern = SparsityPattern.from_mask(torch.ones(6, 3, 5, 5, dtype=torch.bool))
    assert pattern.compiled(1, (1, 1)).kind == "conv_odd"


def product(**how: str) -> bool:
    """Whether a call went to the sparse kernels: those give other bits than torch in this sum."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 500, generator=generator), torch.randn(40, 500, generator=generator)
    pattern = SparsityPattern.from_mask(torch.rand(40, 500, generator=generator) < 0.6)
    sparse, dense = (ops.masked_linear(x, weight, pattern, path=path) for path in ("sparse", "dense"))
    assert not torch.equal(sparse, dense)
    y = ops.masked_linear(x, weight, pattern, **how)
    assert torch.equal(y, sparse) or torch.equal(y, dense)
    return torch.equal(y, sparse)


@pytest.mark.usefixtures("table")
def test_calls_follow_the_table_and_what_is_forced() -> None:
    assert not product()
    crossover.force("sparse")
    assert product() and not product(path="dense")
    crossover.force("dense")
    assert not product() and product(path="sparse")
    with pytest.raises(EdgePruneError, match="path is 'quick'"):
        crossover.force("quick")


@pytest.mark.usefixtures("table")
def test_the_users_file_is_used_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    crossover.load()
    packaged = crossover._state["tables"]
    assert "the package's" in crossover.source() and set(packaged) >= {1}
    path = crossover.save(TABLES)
    assert path == tmp_path / "edgeprune" / "crossover.json" and [p.name for p in path.parent.iterdir()] == [path.name]
    crossover._state["tables"] = packaged
    crossover.load()
    assert crossover._state["tables"] == TABLES and crossover.source() == "measured on this machine"
    body = json.loads(path.read_text())
    assert crossover.from_json(path.read_text()) == (TABLES, crossover.fingerprint())
    body["machine"]["processor"] = "another"
    path.write_text(json.dumps(body))
    crossover.load()
    assert crossover._state["tables"] == packaged and "another machine" in crossover.source()
    for damaged in ("", "{", "[]", '{"format": 2}', '{"format": 1, "machine": {}, "threads": {}}', "null", "[" * 9999):
        path.write_text(damaged)
        crossover.load()
        assert crossover._state["tables"] == packaged and "damaged" in crossover.source()
        with pytest.raises(EdgePruneError, match="not a table"):
            crossover.from_json(damaged)


@pytest.mark.usefixtures("table")
def test_a_users_file_that_is_no_text_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = crossover.save(TABLES)
    path.write_bytes(b"\xfd" + path.read_bytes()[1:])
    crossover.load()
    assert crossover._state["tables"] != TABLES and "damaged" in crossover.source()


@pytest.mark.usefixtures("table")
def test_a_user_without_a_home_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # what expanduser gives a user who is in no list
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="no home folder"):
        crossover.save(TABLES)
    crossover.load()
    assert "the package's" in crossover.source() and list(tmp_path.iterdir()) == []


def ask(value: str) -> subprocess.CompletedProcess[str]:
    code = "from edgeprune.ops import crossover; print(crossover.sparse_wins('conv', 1, 1.0, True))"
    env = {**os.environ, "EDGEPRUNE_MASKED": value}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_the_environment_forces_a_path() -> None:
    assert ask("sparse").stdout.strip() == "True" and ask("dense").stdout.strip() == "False"
    wrong = ask("fast")
    assert wrong.returncode != 0 and "EDGEPRUNE_MASKED: path is 'fast'; give one of auto, sparse, dense" in wrong.stderr


def test_nothing_of_the_compiler_is_imported_before_something_is_compiled():
    script = (
        "import sys, torch, edgeprune\n"
        "from edgeprune.ops import masked_linear\n"
        "edgeprune.pack({'a': torch.ones(3)})\n"
        "masked_linear(torch.ones(1, 3), torch.ones(2, 3), edgeprune.SparsityPattern.from_mask(torch.ones(2, 3)))\n"
        "assert 'edgeprune.ops._compile_time' not in sys.modules\n"
        "from edgeprune.ops._compile_time import constant_threads\n"
        "assert constant_threads() == edgeprune.ops.crossover.measured_threads()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_on_a_gpu_tf32_counts_whichever_way_it_was_allowed() -> None:
    script = """
import torch
from edgeprune.ops.crossover import sparse_wins_on_gpu
def wins(): return [sparse_wins_on_gpu(kind, 0.1) for kind in ("linear", "conv")]
seen = [wins()]
torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False
seen.append(wins())
torch.backends.cuda.matmul.allow_tf32 = False
if hasattr(torch.backends, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    seen.append(wins())
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "ieee"
    seen.append(wins())
compiled = torch.compile(lambda x: x + 1 if wins()[0] else x - 1, backend="eager", fullgraph=True)
print(seen, float(compiled(torch.ones(()))))
"""
    environment = {**os.environ, "EDGEPRUNE_MASKED": "auto"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    newer = ", [False, False], [True, True]" if hasattr(torch.backends, "fp32_precision") else ""
    assert done.stdout.strip() == f"[[True, False], [False, True]{newer}] 2.0", done.stderr
