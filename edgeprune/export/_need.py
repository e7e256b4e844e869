"""The optional packages of an export, imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from edgeprune.errors import EdgePruneError
from edgeprune.onnx_session import import_quiet


def need(name: str) -> Any:
    """The module ``name`` of the ``onnx`` extra; EdgePruneError that says how to install it."""
    try:
        return import_quiet(name) if name.startswith("onnxruntime") else importlib.import_module(name)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == name.split(".")[0]:
            raise EdgePruneError(f"{name} is not installed, and ONNX needs it; pip install 'edgeprune[onnx]'") from None
        raise EdgePruneError(f"{name} does not import ({error}); pip install 'edgeprune[onnx]'") from None
