"""Operators over the compiled core, registered with ``torch.library`` under ``torch.ops.edgeprune``.

``reference`` holds the same functions in plain PyTorch; ``info`` and ``self_test`` say what was built and whether it
computes the right thing on this machine.
"""

from __future__ import annotations

from edgeprune.ops import crossover, reference
from edgeprune.ops import packing_library as packing_library  # registers torch.ops.edgeprune.*
from edgeprune.ops.channels import (
    channel_norms,
    channel_norms_many,
    gather,
    gather_many,
    merge_finish,
    merge_finish_many,
    merge_finish_many_,
    scatter_accumulate_,
    scatter_accumulate_many_,
)
from edgeprune.ops.exact import accumulate_exact_
from edgeprune.ops.masked import masked_conv2d, masked_linear
from edgeprune.ops.packing import (
    Packed,
    accumulate_,
    cuda_check,
    decode_gaps,
    encode_gaps,
    mask_count,
    mask_from_indices,
    mask_to_indices,
    pack,
    pack_with_feedback_,
    pack_with_feedback_many_,
    select_above,
    select_largest,
    unpack,
)
from edgeprune.ops.pooling import max_pool, max_pool_backward
from edgeprune.ops.sparsity import SparsityPattern
from edgeprune.ops.status import info, self_test

__all__ = [
    "Packed",
    "SparsityPattern",
    "accumulate_",
    "accumulate_exact_",
    "channel_norms",
    "channel_norms_many",
    "crossover",
    "cuda_check",
    "decode_gaps",
    "encode_gaps",
    "gather",
    "gather_many",
    "info",
    "mask_count",
    "mask_from_indices",
    "mask_to_indices",
    "masked_conv2d",
    "masked_linear",
    "max_pool",
    "max_pool_backward",
    "merge_finish",
    "merge_finish_many",
    "merge_finish_many_",
    "pack",
    "pack_with_feedback_",
    "pack_with_feedback_many_",
    "reference",
    "scatter_accumulate_",
    "scatter_accumulate_many_",
    "select_above",
    "select_largest",
    "self_test",
    "unpack",
]
