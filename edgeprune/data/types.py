"""What a loaded data set is: two splits, the names of its classes, and how a batch becomes a network's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, shown


@dataclass(frozen=True)
class Split:
    """Samples in the order of the published files.

    ``x``: [N, ...], uint8 (pixels, character ids) or float32 (sensors), as stored: normalise each batch, not the whole.
    ``y``: int64 [N] class indices; for text [N, L], the character that follows each of ``x``.
    ``subject``: int64 [N], who a sample comes from, or None where nobody knows.
    """

    x: Tensor
    y: Tensor
    subject: Tensor | None = None

    def __post_init__(self) -> None:
        for key in ("x", "y"):
            if not isinstance(getattr(self, key), Tensor):
                raise EdgePruneError(f"Split: {key} is {type(getattr(self, key)).__name__}; give a torch.Tensor")
        if self.x.dtype not in (torch.uint8, torch.float32) or self.y.dtype != torch.int64:
            raise EdgePruneError(f"Split: x is {self.x.dtype} and y {self.y.dtype}; give uint8 or float32, and int64")
        if len(self.x) != len(self.y):
            raise EdgePruneError(f"Split: {len(self.x)} samples but {len(self.y)} labels; give one label a sample")
        if self.subject is not None and self.subject.shape != self.y.shape[:1]:
            raise EdgePruneError(f"Split: {len(self.y)} samples but {len(self.subject)} subjects; give one a sample")

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class DataSet:
    """One data set in memory.

    ``normalise`` turns a batch of ``x`` into what a network takes: float32 for images and sensors, int64 for text.
    ``note`` says what a reader of results should know about this very copy; empty where it is the published one.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    normalise: Callable[[Tensor], Tensor]
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.classes, tuple | list):
            raise EdgePruneError(
                f"DataSet {self.name!r}: classes is {shown(self.classes)}; give the name of each class, or () for none"
            )
