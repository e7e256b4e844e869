"""Hostile messages: each committed file is refused with its sentence, before memory is taken for what it claims."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from attacks.make_attacks import ATTACKS, HERE

from edgeprune import wire
from edgeprune.errors import EdgePruneError

DENSE_LIMIT = 1 << 20


def test_the_files_are_what_the_script_makes():
    assert sorted(path.stem for path in HERE.glob("*.bin")) == sorted(ATTACKS)
    for name, attack in ATTACKS.items():
        assert (HERE / f"{name}.bin").read_bytes() == attack.blob, f"{name}: run {HERE.name}/make_attacks.py"
        assert attack.tries


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_refused_with_one_sentence(name):
    blob = (HERE / f"{name}.bin").read_bytes()
    with pytest.raises(EdgePruneError, match=ATTACKS[name].refused) as caught:
        wire.decode(blob, kind="update", dense_limit=DENSE_LIMIT)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_nothing_is_allocated_on_its_word(name):
    blob = (HERE / f"{name}.bin").read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(EdgePruneError):
            wire.decode(blob, kind="update", dense_limit=DENSE_LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 4 * len(blob) + (1 << 20)


LIMITED = """
import resource, sys
from pathlib import Path
from edgeprune import wire
from edgeprune.errors import EdgePruneError

files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.bin"))]
wire.decode(wire.encode(wire.Message("update", 0, "", "", {})), kind="update")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
for blob in files:
    try:
        wire.decode(blob, kind="update", dense_limit=1 << 20)
    except EdgePruneError:
        continue
    raise SystemExit("passed")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_32_mib_are_enough_to_refuse_them_all():
    done = subprocess.run([sys.executable, "-c", LIMITED, str(HERE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
