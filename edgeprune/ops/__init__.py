"""Operators over the compiled core, registered with ``torch.library`` under ``torch.ops.edgeprune``.

``reference`` holds the same functions in plain PyTorch; ``info`` and ``self_test`` say what was built and whether it
computes the right thing on this machine.
"""

from __future__ import annotations

from edgeprune.ops import reference
from edgeprune.ops.channels import (
    channel_norms,
    gather,
    gather_many,
    merge_finish,
    merge_finish_many,
    merge_finish_many_,
    scatter_accumulate_,
    scatter_accumulate_many_,
)
from edgeprune.ops.status import info, self_test

__all__ = [
    "channel_norms",
    "gather",
    "gather_many",
    "info",
    "merge_finish",
    "merge_finish_many",
    "merge_finish_many_",
    "reference",
    "scatter_accumulate_",
    "scatter_accumulate_many_",
    "self_test",
]
