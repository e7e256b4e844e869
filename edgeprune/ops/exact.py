"""Exact weighted sums of packed values: integer words whose total does not depend on the order of additions."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError
from edgeprune.ops._checks import check_number, check_tensors, check_whole
from edgeprune.ops._core import core
from edgeprune.ops.lending import lend, lend_written


def accumulate_exact_(
    words: Tensor, mask: Tensor | None, values: Tensor, factor: float, weight: int, bits: int
) -> None:
    """``words[i] += (round(value * factor) << bits) + weight`` at every kept i, in place.

    ``words``: int64 [n]; ``mask``: uint8 bitmap of n bits (None: all kept); ``values``: float32, the kept ones in
    order; all on the CPU. round: to nearest even, of the double product. The lower ``bits`` (1 to 24) of a word sum
    the weights (each below 2^bits), the upper ones the values; keeping either sum within its lane is the caller's
    business. Raises EdgePruneError, with nothing added, for what does not fit, and where |value * factor| is not below
    2^(62 - bits). The same bits on every instruction set and for any number of threads.
    """
    op = "accumulate_exact"
    check_tensors(op, words=words, values=values, **({} if mask is None else {"mask": mask}))
    factor, weight, bits = (
        check_number(op, "factor", factor),
        check_whole(op, "weight", weight),
        check_whole(op, "bits", bits),
    )
    for name, x in (("words", words), ("mask", mask), ("values", values)):
        if x is not None and x.device.type != "cpu":
            raise EdgePruneError(f"accumulate_exact: {name} is on {x.device}; bring it to the CPU")
    to = lend_written("accumulate_exact", "words", words)
    core.accumulate_exact(to, lend(mask), lend(values), factor, weight, bits, torch.get_num_threads())
