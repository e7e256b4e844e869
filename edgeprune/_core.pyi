"""The compiled extension, csrc/python. Tensors are DLPack capsules or objects that offer ``__dlpack__``."""

from collections.abc import Sequence
from typing import Any

def compiled_variants() -> list[str]: ...
def present_variants() -> list[str]: ...
def chosen_variant() -> str: ...
def openmp_usable() -> bool: ...
def ask_large_pages(address: int, bytes: int) -> None: ...
def compiler() -> str: ...
def cuda_built() -> bool: ...
def cuda_text() -> str: ...
def accumulate_exact(
    words: object,
    mask: object | None,
    values: object,
    factor: float,
    weight: int,
    bits: int,
    threads: int,
    variant: str = "",
) -> None: ...

max_pool_max_size: int

def max_pool(x: object, out: object, where: object, size: int, threads: int, variant: str = "") -> None: ...
def max_pool_backward(grad: object, where: object, dx: object, size: int, threads: int, variant: str = "") -> None: ...
def gather_many(
    xs: Sequence[object],
    indices: Sequence[Sequence[object]],
    outs: Sequence[object],
    threads: int = 1,
    variant: str = "",
    stream: int | None = None,
) -> None: ...
def scatter_accumulate_many(
    totals: Sequence[object],
    counts: Sequence[object],
    xs: Sequence[object],
    indices: Sequence[Sequence[object]],
    weight: float,
    threads: int = 1,
    variant: str = "",
    stream: int | None = None,
) -> None: ...
def channel_norms_many(
    xs: Sequence[object], dims: Sequence[int], p: int, outs: Sequence[object], threads: int = 1, variant: str = ""
) -> None: ...
def channel_norms_many_cuda(
    xs: Sequence[object], dims: Sequence[int], p: int, outs: Sequence[object], workspace: object | None, stream: int
) -> int: ...
def merge_finish_many(
    bases: Sequence[object],
    totals: Sequence[object],
    counts: Sequence[object],
    outs: Sequence[object],
    threads: int = 1,
    variant: str = "",
    stream: int | None = None,
) -> None: ...
def pattern_kept(mask: object, filter: Sequence[int]) -> int: ...
def pattern_sizes(filter: Sequence[int]) -> list[int]: ...
def pattern_compile(
    filter: Sequence[int],
    mask: object,
    columns: object,
    starts: object,
    t_columns: object,
    t_order: object,
    t_starts: object,
) -> None: ...
def masked_forward(
    filter: Sequence[int],
    padding: Sequence[int],
    columns: object,
    starts: object,
    order: None,
    x: object,
    weights: object,
    bias: object,
    y: object,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def masked_input_gradient(
    filter: Sequence[int],
    padding: Sequence[int],
    columns: object,
    starts: object,
    order: object,
    x: object,
    weights: object,
    bias: None,
    y: object,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def masked_weight_gradient(
    filter: Sequence[int],
    padding: Sequence[int],
    columns: object,
    starts: object,
    order: None,
    x: object,
    weights: object,
    bias: None,
    y: object,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def mask_count(mask: object, threads: int = 1, variant: str = "") -> int: ...
def mask_kept(op: str, mask: object | None, n: int, threads: int = 1, variant: str = "") -> int: ...
def mask_to_indices(mask: object | None, n: int, out: object, threads: int = 1, variant: str = "") -> None: ...
def mask_from_indices(indices: object, n: int, out: object) -> None: ...
def select_largest(
    xs: Sequence[object], k: int, masks: Sequence[object], threads: int = 1, variant: str = ""
) -> None: ...
def select_above(
    xs: Sequence[object], threshold: int, masks: Sequence[object], threads: int = 1, variant: str = ""
) -> None: ...
def pack_many(
    calls: Sequence[tuple[object, ...]],
    dtype: str,
    stochastic: bool,
    seed: int,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def unpack(
    values: object,
    scales: object | None,
    mask: object | None,
    dtype: str,
    out: object,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def accumulate(
    total: object,
    weight_sum: object,
    values: object,
    scales: object | None,
    mask: object | None,
    dtype: str,
    weight: float,
    threads: int = 1,
    variant: str = "",
) -> None: ...
def add_many(xs: Sequence[object], sums: Sequence[object], threads: int = 1, variant: str = "") -> None: ...
def packing_cuda_workspace(what: str, sizes: Sequence[int], kept: Sequence[int]) -> int: ...
def packing_cuda_check(op: str, status: Sequence[int], dtype: str) -> None: ...
def select_largest_cuda(
    xs: Sequence[object], k: int, masks: Sequence[object], how: tuple[object, object, int]
) -> None: ...
def select_above_cuda(
    xs: Sequence[object], threshold: int, masks: Sequence[object], how: tuple[object, object, int]
) -> None: ...
def pack_many_cuda(
    calls: Sequence[tuple[object, ...]], dtype: str, stochastic: bool, seed: int, how: tuple[object, object, int]
) -> None: ...
def unpack_cuda(
    values: object,
    scales: object | None,
    mask: object | None,
    dtype: str,
    out: object,
    how: tuple[object, object, int],
) -> None: ...
def accumulate_cuda(
    total: object,
    weight_sum: object,
    values: object,
    scales: object | None,
    mask: object | None,
    dtype: str,
    weight: float,
    how: tuple[object, object, int],
) -> None: ...
def mask_counts_cuda(
    masks: Sequence[object | None], sizes: Sequence[int], counts: object, how: tuple[object, object, int]
) -> None: ...
def mask_to_indices_cuda(mask: object | None, n: int, out: object, how: tuple[object, object, int]) -> None: ...
def mask_from_indices_cuda(indices: object, n: int, out: object, how: tuple[object, object, int]) -> None: ...
def plan_gaps(mask: object | None, n: int, variant: str = "") -> tuple[int, int, int]: ...
def encode_gaps(mask: object | None, n: int, plan: tuple[int, int, int], out: object, variant: str = "") -> None: ...
def decode_gaps(data: object, count: int, n: int, parameter: int, mask: object, variant: str = "") -> None: ...
def multiply_add_peak(seconds: float = 0.1, variant: str = "") -> float: ...

class MaskedArrangement:
    rows_per_thread: int
    positions_per_lane: int
    splits: int
    channels_per_block: int
    empty: bool
    def shared_bytes(self, work: int, longest: int) -> int: ...

CUDA_WARPS: int
CUDA_FEW_SAMPLES: int

def masked_cuda_limits(device: int) -> list[int]: ...
def masked_cuda_arrange(
    filter: Sequence[int],
    padding: Sequence[int],
    x_shape: Sequence[int],
    work: int,
    phase: int,
    kept: int,
    limits: Sequence[int],
    channels_per_block: int = 0,
) -> MaskedArrangement: ...
def masked_cuda_plan(
    filter: Sequence[int],
    columns: object,
    order: object | None,
    starts: object,
    work: int,
    phase: int,
    rows_per_tile: int,
    channels_per_block: int,
) -> tuple[Any, ...]: ...
def masked_cuda_run(
    arrangement: MaskedArrangement,
    parts: Sequence[object],
    longest: int,
    x: object,
    weights: object,
    bias: object | None,
    y: object,
    workspace: object | None,
    work: int,
    stream: int,
) -> None: ...
def masked_cuda_run_few(
    filter: Sequence[int],
    columns: object,
    order: object | None,
    starts: object,
    x: object,
    weights: object,
    bias: object | None,
    y: object,
    work: int,
    stream: int,
) -> None: ...
def masked_blocks_run(
    filter: Sequence[int],
    padding: Sequence[int],
    x_shape: Sequence[int],
    block: int,
    plan: Sequence[object],
    x: object,
    weights: object,
    bias: object | None,
    y: object,
    backward: bool,
    stream: int,
) -> None: ...
def masked_blocks_dots_run(
    filter: Sequence[int],
    padding: Sequence[int],
    x_shape: Sequence[int],
    block: int,
    plan: Sequence[object],
    x: object,
    weights: object,
    y: object,
    partial: object,
    splits: int,
    stream: int,
) -> None: ...
