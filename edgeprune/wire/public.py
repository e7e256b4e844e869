"""``edgeprune.pack`` and ``edgeprune.unpack``: a state dict as bytes and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, nearest
from edgeprune.wire import positions
from edgeprune.wire.message import DENSE_LIMIT, Message, decode, encode, mask_id
from edgeprune.wire.tensors import PackedTensor, coding_of, pack_tensor

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
    and what this one does not send (or rounds away) is left in it; start with an empty dict, one for each sender.

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
        packed = _largest(state, density, dtype, {} if residual is None else residual, seed, residual is not None)
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


def _largest(
    state: Mapping[str, Tensor],
    density: float,
    dtype: str | None,
    residual: dict[str, Tensor],
    seed: int | None,
    feedback: bool,
) -> dict[str, PackedTensor]:
    """The floating tensors of ``state``, of each only what belongs to the largest of all."""
    names = [name for name, x in state.items() if x.dtype in _WORK and x.numel()]
    total = sum(state[name].numel() for name in names)
    if not 0 < density <= 1:
        raise EdgePruneError(f"pack: density is {density}; it is a share of the elements, in (0, 1]")
    if not names:
        return {}
    xs = [state[name].detach().cpu().float().contiguous().reshape(-1) for name in names]
    if feedback:
        for name, x in zip(names, xs, strict=True):
            held = residual.setdefault(name, torch.zeros(state[name].shape))
            if held.dtype is not torch.float32 or held.shape != state[name].shape or not held.is_contiguous():
                raise EdgePruneError(f"pack: the residual of {name!r} is not that tensor's; start with an empty dict")
            xs[names.index(name)] = x + held.reshape(-1)
    masks = ops.select_largest(xs, max(1, round(density * total)))
    packed = {}
    for name, x, mask in zip(names, xs, masks, strict=True):
        own = state[name].dtype
        coding = coding_of(own, dtype or ("fp32" if own is torch.float64 else None))
        written = _WORK[own] if coding == "own" else coding
        done = ops.pack(x, mask, written, seed)
        kept = ops.mask_count(mask)
        packed[name] = PackedTensor(tuple(state[name].shape), own, coding, done.values, done.scales, mask, kept)
        if feedback:
            residual[name].reshape(-1).copy_(x - ops.unpack(done.values, done.scales, mask, x.numel(), written))
    return packed
