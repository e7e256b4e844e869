"""What was built into the core, and whether it computes the right thing on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from edgeprune._version import __version__
from edgeprune.errors import EdgePruneError
from edgeprune.ops import channels, masked_self_test, packing_self_test, pooling, reference
from edgeprune.ops._core import core


def info() -> dict[str, Any]:
    """What ``edgeprune doctor`` shows about the kernels.

    Keys: version, compiled (instruction sets, best first), present (of these, what the processor runs), chosen,
    cuda_built, cuda (architectures, or why there are no CUDA kernels), compiler, threads, self_test (see there).
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


def _close(got: Tensor, expected: Tensor) -> bool:
    # At most a few hundred terms of magnitude one are added in double and rounded once: a few units in the last place.
    return got.shape == expected.shape and torch.allclose(got.cpu(), expected.cpu(), rtol=1e-6, atol=0.0)


def _cases(device: torch.device) -> dict[str, Callable[[], bool]]:
    x = torch.linspace(-1, 1, 40 * 5 * 9, device=device).reshape(40, 5, 3, 3)
    index = [torch.arange(0, 40, 2), torch.tensor([1, 2, 4]), None, None]
    part = reference.gather(x, index)

    def gather() -> bool:
        turned, inner = x.permute(1, 2, 3, 0), [None, None, None, index[0]]
        return torch.equal(channels.gather(x, index), part) and torch.equal(
            channels.gather(turned, inner), reference.gather(turned, inner)
        )

    def norms() -> bool:
        return all(
            _close(channels.channel_norms(x, d, p), reference.channel_norms(x, d, p)) for d in range(4) for p in (1, 2)
        )

    def merge() -> bool:
        results = []
        for ops in (channels, reference):
            total, count = torch.zeros_like(x), torch.zeros_like(x)
            ops.scatter_accumulate_(total, count, part, index, 3.0)
            results.append((total, count, ops.merge_finish(x, total, count)))
        return all(_close(got, expected) for got, expected in zip(*results, strict=True))

    return {"gather": gather, "channel_norms": norms, "scatter_accumulate": merge}


def _max_pool() -> bool:
    x = torch.linspace(-40, 40, 3 * 6 * 19).sin().reshape(3, 6, 19).requires_grad_()
    expected = max_pool2d(x, 3, 1)
    grad = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    (theirs,) = torch.autograd.grad(expected, x, grad)
    out, where = pooling.max_pool(x, 3)
    ours = pooling.max_pool_backward(grad, where, tuple(x.shape), 3)
    return torch.equal(out, expected) and torch.equal(ours, theirs)


def self_test() -> dict[str, str]:
    """Runs the operators on a small input, on the CPU and on a GPU that the core was built for.

    Returns operator (on a GPU "operator (cuda)") -> "ok", or one sentence on what is wrong. Takes milliseconds.
    """
    with _torch_as_it_starts():
        cases = _cases(torch.device("cpu")) | masked_self_test.cases() | packing_self_test.cases(torch.device("cpu"))
        cases["max_pool"] = _max_pool
        if core.cuda_built() and torch.cuda.is_available():
            gpu = torch.device("cuda")
            there = _cases(gpu) | masked_self_test.cases(gpu) | packing_self_test.cases(gpu)
            cases |= {f"{name} (cuda)": case for name, case in there.items()}
        return {name: _result(case) for name, case in cases.items()}


def _result(case: Callable[[], bool]) -> str:
    try:
        return "ok" if case() else "differs from the plain reference: rebuild on this machine"
    except (EdgePruneError, RuntimeError) as error:
        return str(error).splitlines()[0]


@contextmanager
def _torch_as_it_starts() -> Iterator[None]:
    """The types, devices and gradients that the cases count on, whatever the caller has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)
