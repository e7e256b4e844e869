"""``edgeprune.pack`` and ``edgeprune.unpack``: a state dict as bytes and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.wire import positions
from edgeprune.wire.message import DENSE_LIMIT, Message, decode, encode, mask_id
from edgeprune.wire.tensors import PackedTensor, all_finite, coding_of, pack_tensor

_WORK = {torch.float32: "f32", torch.float64: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def pack(
    state: Mapping[str, Tensor],
    mask: Mapping[str, Tensor] | None = None,
    dtype: str | None = None,
    *,
    density: float | None = None,
    residual: dict[str, Tensor] | None = None,
    send_mask: bool = True,
    seed: int | None = None,
) -> bytes:
    """The tensors of ``state`` as one blob (format: edgeprune/wire/format.md).

    ``mask``: per name a bool tensor of that tensor's shape, True where values are sent; what it does not name goes
    whole. ``send_mask=False``: the receiver holds the same masks and gives them to :func:`unpack`; no positions travel.

    ``density`` in place of a mask: the largest magnitudes of all floating tensors together, that share of their
    elements (at least one). ``residual``: with it, error feedback: what an earlier call did not send is added first,
    and what this one does not send (or rounds away) is left in it; start with an empty dict, one for each sender (and
    again after an error that says a value cannot be written).

    ``dtype``: "fp32", "bf16", "fp16" or "int8" (one scale for 256 values) narrows wider floating tensors; None keeps
    every type, bit for bit. ``seed``: int8 rounds stochastically. Raises EdgePruneError, one sentence, on bad input.
    """
    for name, x in state.items():
        if not isinstance(x, Tensor):
            raise EdgePruneError(f"pack: {name!r} is a {type(x).__name__}, not a tensor; leave it out")
    if residual is not None and density is None:
        raise EdgePruneError("pack: residual needs a density; without one everything is sent")
    if density is not None:
        if mask is not None:
            raise EdgePruneError("pack: give either mask or density, not both")
        packed = pack_largest(state, density, dtype, residual, seed)
        return encode(Message("state", 0, "", "", {n: x for n, x in state.items() if n not in packed}, packed=packed))
    bitmaps = _bitmaps(mask or {}, {name: tuple(x.shape) for name, x in state.items()})
    packed = {
        name: pack_tensor(x, bitmaps.get(name), dtype, name=name, known=not send_mask and name in bitmaps, seed=seed)
        for name, x in state.items()
    }
    known = "" if send_mask or not bitmaps else mask_id(bitmaps)
    return encode(Message("state", 0, "", "", {}, mask=known, packed=packed))


def unpack(
    blob: bytes, mask: Mapping[str, Tensor] | None = None, *, dense_limit: int = DENSE_LIMIT
) -> dict[str, Tensor]:
    """The tensors that :func:`pack` was given: their shapes and types, zero where nothing was sent.

    ``mask``: the bool tensors that ``send_mask=False`` did not send. ``dense_limit``: bytes that the tensors may take;
    a blob that asks for more is refused before anything is allocated. Raises EdgePruneError on whatever is not a blob.
    """
    bitmaps = {name: positions.to_bitmap(_bool(name, kept)) for name, kept in (mask or {}).items()}
    return dict(decode(blob, kind="state", dense_limit=dense_limit, masks=bitmaps).tensors)


def _bitmaps(mask: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    bitmaps = {}
    for name, kept in mask.items():
        if name not in shapes:
            raise EdgePruneError(f"pack: mask names {name!r}, which is not in the state{nearest(name, shapes)}")
        if tuple(_bool(name, kept).shape) != shapes[name]:
            raise EdgePruneError(
                f"pack: the mask of {name!r} has shape {tuple(kept.shape)}, the tensor {shapes[name]}; give one value "
                "an element"
            )
        bitmaps[name] = positions.to_bitmap(kept)
    return bitmaps


def _bool(name: str, kept: Tensor) -> Tensor:
    if not isinstance(kept, Tensor) or kept.dtype is not torch.bool:
        raise EdgePruneError(f"pack: the mask of {name!r} must be a bool tensor, True where values are kept")
    return kept


def pack_largest(
    state: Mapping[str, Tensor],
    density: float,
    dtype: str | None = None,
    residual: dict[str, Tensor] | None = None,
    seed: int | None = None,
) -> dict[str, PackedTensor]:
    """The floating tensors of ``state``, of each only what belongs to the largest of all. As :func:`pack`."""
    if not 0 < density <= 1:
        raise EdgePruneError(f"pack: density is {density}; it is a share of the elements, in (0, 1]")
    names = [name for name, x in state.items() if x.dtype in _WORK and x.numel()]
    xs = [state[name].detach().cpu().float().contiguous().reshape(-1) for name in names]
    for name, x in zip(names, xs, strict=True):
        if not all_finite(x):
            raise EdgePruneError(f"pack: {name!r} holds NaN or infinity; there is no largest share of it")
    codings = [_written(state[name].dtype, dtype) for name in names]
    if residual is None:
        masks = ops.select_largest(xs, _share(density, xs))
        done = [ops.pack(x, m, coding, seed) for x, m, coding in zip(xs, masks, codings, strict=True)]
    else:
        owed = [_residual(residual, name, state[name]) for name in names]
        masks, done = _with_feedback(xs, owed, density, codings, seed)
        for name, mask, values, coding, rest in zip(names, masks, done, codings, owed, strict=True):
            own = state[name].dtype
            if coding == "i8" and own.itemsize == 2:  # what is read is rounded once more, to 16 bits
                read = ops.unpack(values.values, values.scales, mask, rest.numel(), coding)
                rest += read - read.to(own).float()
    packed = {}
    for name, mask, values in zip(names, masks, done, strict=True):
        own = state[name].dtype
        coding = coding_of(own, dtype or ("fp32" if own is torch.float64 else None))
        kept = ops.mask_count(mask)
        packed[name] = PackedTensor(tuple(state[name].shape), own, coding, values.values, values.scales, mask, kept)
    return packed


def _share(density: float, xs: list[Tensor]) -> int:
    total = sum(x.numel() for x in xs)
    return min(total, max(1, round(density * total)))


def _written(own: torch.dtype, dtype: str | None) -> str:
    """The coding that ops.pack writes for a tensor of type ``own``."""
    coding = coding_of(own, dtype)
    return _WORK[own] if coding == "own" else coding


def _residual(residual: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    held = residual.setdefault(name, torch.zeros(x.shape))
    if held.dtype is not torch.float32 or held.shape != x.shape or not held.is_contiguous() or held.is_cuda:
        raise EdgePruneError(f"pack: the residual of {name!r} is not that tensor's; start with an empty dict")
    return held.view(-1)


def _with_feedback(
    xs: list[Tensor], residuals: list[Tensor], density: float, codings: list[str], seed: int | None
) -> tuple[list[Tensor], list[ops.Packed]]:
    """The largest of x + residual over all tensors; the residuals keep the rest."""
    k = _share(density, xs)
    masks: Sequence[Tensor | None]
    if len(set(codings)) == 1:
        masks, done = ops.pack_with_feedback_many_(xs, residuals, k, codings[0], seed)
    else:  # types differ: selected over all of them, packed one by one
        masks = ops.select_largest([x + r for x, r in zip(xs, residuals, strict=True)], k)
        every = zip(xs, residuals, masks, codings, strict=True)
        done = [ops.pack_with_feedback_(x, r, mask, coding, seed)[1] for x, r, mask, coding in every]
    return [mask for mask in masks if mask is not None], done
