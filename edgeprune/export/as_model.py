"""An exported file in the place of the model it was made of, so that a task can judge it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeprune.export.parity import as_float32, rows_around, session
from edgeprune.onnx_session import fixed_batch


class FileModel(nn.Module):
    """Takes the rows that the model takes, however many, and gives outputs of the same structure as ``like``, which
    the model gave."""

    def __init__(self, path: str | os.PathLike[str], like: Any) -> None:
        super().__init__()
        self._runtime = session(path)
        self._name = self._runtime.get_inputs()[0].name
        self._fixed = fixed_batch(self._runtime)
        self._structure = pytree.tree_structure(like)

    def forward(self, rows: Tensor) -> Any:
        size = self._fixed or len(rows)
        parts = [self._run(rows[start : start + size], size) for start in range(0, len(rows), size)]
        outputs = [torch.cat(each) for each in zip(*parts, strict=True)]
        return pytree.tree_unflatten(outputs, self._structure)

    def _run(self, rows: Tensor, size: int) -> list[Tensor]:
        filled = as_float32((rows[rows_around(0, size, len(rows))],))[0]  # what it says of the filling is left out
        return [torch.from_numpy(out)[: len(rows)] for out in self._runtime.run(None, {self._name: filled.numpy()})]
