"""What was built into the core, and whether it computes the right thing on this machine."""

from __future__ import annotations

from typing import Any

import torch

from edgeprune._version import __version__
from edgeprune.ops import channels, reference
from edgeprune.ops._core import core


def info() -> dict[str, Any]:
    """What ``edgeprune doctor`` shows about the kernels.

    Keys: version, compiled (instruction sets, best first), present (of these, what the processor runs), chosen,
    cuda_built, cuda (architectures, or why not), compiler, threads, self_test (see ``self_test``).
    """
    return {
        "version": __version__,
        "compiled": core.compiled_variants(),
        "present": core.present_variants(),
        "chosen": core.chosen_variant(),
        "cuda_built": core.cuda_built(),
        "cuda": core.cuda_text(),
        "compiler": core.compiler(),
        "threads": torch.get_num_threads(),
        "self_test": self_test(),
    }


def self_test() -> dict[str, str]:
    """Runs each operator on a small input: operator -> "ok", or one sentence on what is wrong. Takes milliseconds."""
    x = torch.linspace(-1, 1, 6 * 5 * 9).reshape(6, 5, 3, 3)
    index = [torch.tensor([0, 2, 5]), torch.tensor([1, 4]), None, None]
    same = torch.equal(channels.gather(x, index), reference.gather(x, index))
    return {"gather": "ok" if same else "wrong result"}
