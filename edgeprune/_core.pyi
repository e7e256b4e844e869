"""The compiled extension, csrc/python. Tensors are DLPack capsules or objects that offer ``__dlpack__``."""

from collections.abc import Sequence

def compiled_variants() -> list[str]: ...
def present_variants() -> list[str]: ...
def chosen_variant() -> str: ...
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
