"""Messages for many tests: strategies of hypothesis, and equality to the last bit."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from edgeprune import wire
from edgeprune.wire.layout import DTYPE_CODES, KINDS

DTYPES = sorted(DTYPE_CODES, key=str)
CODINGS = [None, "fp32", "bf16", "fp16", "int8"]
PLAN = "0123456789abcdef"

names = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.integers(1, 700).map(lambda n: (n,))
clusters = st.sampled_from([1, 8, 32])


def bits(x: torch.Tensor) -> bytes:
    """The memory of ``x``: equal bits, not-a-number included."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Every bit pattern may come up (bool: 0 and 1)."""
    random = torch.Generator().manual_seed(seed)
    n = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=random).bool()
    raw = torch.randint(0, 256, (n * dtype.itemsize,), generator=random, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if n else torch.empty(shape, dtype=dtype)


def random_mask(n: int, density: float, cluster: int, seed: int) -> torch.Tensor:
    """A bool tensor [n] whose elements are kept in blocks of ``cluster``."""
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(-(-n // cluster), generator=random) < density).repeat_interleave(cluster)[:n]


@st.composite
def packed_tensors(draw: st.DrawFn) -> wire.PackedTensor:
    dtype, shape, seed = draw(st.sampled_from(DTYPES)), draw(shapes), draw(st.integers(0, 1 << 20))
    coding = draw(st.sampled_from(CODINGS))
    x = random_tensor(dtype, shape, seed)
    if coding and dtype.is_floating_point:
        x = x.nan_to_num(0.0, 1.0, -1.0).clamp(-1000, 1000)
    mask = None
    if draw(st.booleans()):
        kept = random_mask(x.numel(), draw(st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.9, 1.0])), draw(clusters), seed)
        mask = wire.to_bitmap(kept)
    return wire.pack_tensor(x, mask, coding)


@st.composite
def messages(draw: st.DrawFn) -> wire.Message:
    packed = draw(st.dictionaries(names, packed_tensors(), max_size=4))
    plain = draw(st.dictionaries(names.filter(lambda n: n not in packed), st.sampled_from(DTYPES), max_size=3))
    return wire.Message(
        draw(st.sampled_from(sorted(KINDS))),
        draw(st.integers(0, (1 << 32) - 1)),
        draw(names),
        draw(st.sampled_from(["", PLAN, "0" * 16])),
        {name: random_tensor(dtype, draw(shapes), 3) for name, dtype in plain.items()},
        draw(st.dictionaries(names, st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names)),
        draw(st.integers(0, (1 << 64) - 1)),
        draw(st.sampled_from(["", "fedcba9876543210"])),
        draw(st.binary(max_size=40)),
        packed,
    )
