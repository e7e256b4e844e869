"""What a loaded ONNX file says of itself: for those who export, judge and time one."""

from __future__ import annotations

from typing import Any


def fixed_batch(session: Any) -> int | None:
    """The one batch size that a file loaded by ONNX Runtime takes; None where it takes any."""
    sizes = {entry.shape[0] if entry.shape else None for entry in session.get_inputs()}
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) else None
