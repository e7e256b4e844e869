"""ONNX Runtime as it is imported here, and what a loaded file says of itself: for who exports, judges and times one."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

_HALF = b"edgeprune.precision\x12\x04fp16"  # an entry of the metadata: protobuf's key, then field and length, and value


def import_quiet(name: str = "onnxruntime") -> Any:
    """The module ``name`` of ONNX Runtime, which then reports nothing to its maker: it looks at this variable as it is
    imported for the first time, and else keeps an identifier of the machine and sends events. Raises ImportError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(name)


def left_out(source: str | os.PathLike[str] | bytes) -> list[str]:
    """The optimisers without which a file, or its bytes, is loaded for the CPU.

    Of half precision those that fuse a transpose into the product behind it: ONNX Runtime 1.31 dies of it by a signal.
    """
    try:
        held = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError:  # the runtime says it better
        return []
    return ["MatmulTransposeFusion"] if _HALF in held else []


def fixed_batch(session: Any) -> int | None:
    """The one batch size that a file loaded by ONNX Runtime takes; None where it takes any."""
    sizes = {entry.shape[0] if entry.shape else None for entry in session.get_inputs()}
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) else None
