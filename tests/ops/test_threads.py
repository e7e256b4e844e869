"""Where kernels run: on torch's own threads where there are such, and the same bits wherever it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from edgeprune import _core

SCRIPT = """
import hashlib, torch
from edgeprune import _core, ops
torch.set_num_threads(3)
x = torch.arange(900_000, dtype=torch.float32).reshape(900, 1000).sin()
index = [torch.arange(0, 900, 2), torch.arange(0, 1000, 3)]
print(_core.openmp_usable(), hashlib.sha256(ops.gather(x, index).numpy().tobytes()).hexdigest())
"""


def outcome(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_either_pool_gives_the_same_bits():
    x = torch.arange(900_000, dtype=torch.float32).reshape(900, 1000).sin()
    expected = hashlib.sha256(x[::2, ::3].contiguous().numpy().tobytes()).hexdigest()
    assert outcome(EDGEPRUNE_POOL="own") == ["False", expected]
    assert outcome(EDGEPRUNE_POOL="")[1] == expected


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.openmp.is_available(), reason="torch without OpenMP")
def test_torchs_threads_are_used_but_not_in_a_child_by_fork():
    assert outcome(EDGEPRUNE_POOL="")[0] == "True"
    child = os.fork()
    if child == 0:
        os._exit(1 if _core.openmp_usable() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
