"""Moves assignments and updates: the loop, the transports, the run's folder.

Names are loaded on first use: what forwards bytes on a device (engine/flower/client.py) must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.engine.config import Experiment, load_experiment
    from edgeprune.engine.run import Prepared, prepare, resume, start
    from edgeprune.engine.rundir import RunDir

_LAZY = {
    "Experiment": "config",
    "Prepared": "run",
    "RunDir": "rundir",
    "load_experiment": "config",
    "prepare": "run",
    "resume": "run",
    "start": "run",
}

__all__ = ["Experiment", "Prepared", "RunDir", "load_experiment", "prepare", "resume", "start"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeprune.engine' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgeprune.engine.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
