"""The compiled extension, csrc/python. Tensors are DLPack capsules or objects that offer ``__dlpack__``."""

from collections.abc import Sequence

def compiled_variants() -> list[str]: ...
def present_variants() -> list[str]: ...
def chosen_variant() -> str: ...
def openmp_usable() -> bool: ...
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
def channel_norms(
    x: object, dim: int, p: int, out: object, threads: int = 1, variant: str = "", stream: int | None = None
) -> None: ...
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
def plan_gaps(mask: object | None, n: int, variant: str = "") -> tuple[int, int, int]: ...
def encode_gaps(mask: object | None, n: int, plan: tuple[int, int, int], out: object, variant: str = "") -> None: ...
def decode_gaps(data: object, count: int, n: int, parameter: int, mask: object, variant: str = "") -> None: ...
def multiply_add_peak(seconds: float = 0.1, variant: str = "") -> float: ...
