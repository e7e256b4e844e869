"""A trained model as a file for inference: ONNX per JetPack, re-opened, checked and compared with torch.

Names are loaded on first use: the targets and precisions, which a command line's help shows, need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.export.onnx import Exported, export_onnx
    from edgeprune.export.parity import Parity, check_parity
    from edgeprune.export.targets import DEFAULT_TARGET, TARGETS, Target

_HOMES = {
    "DEFAULT_TARGET": "targets",
    "Exported": "onnx",
    "Parity": "parity",
    "TARGETS": "targets",
    "Target": "targets",
    "check_parity": "parity",
    "export_onnx": "onnx",
}

__all__ = ["DEFAULT_TARGET", "TARGETS", "Exported", "Parity", "Target", "check_parity", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
