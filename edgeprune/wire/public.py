"""``edgeprune.pack`` and ``edgeprune.unpack``: a state dict as bytes and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from edgeprune import ops
from edgeprune.errors import EdgePruneError, is_number, is_whole, nearest, shown
from edgeprune.ops.lending import check_apart
from edgeprune.wire import positions
from edgeprune.wire.message import DENSE_LIMIT, Message, decode, encode, mask_id
from edgeprune.wire.tensors import PackedTensor, all_finite, coding_of, pack_tensor, peak, written

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
    and what this one does not send (or rounds away) is left in it; start with an empty dict, one for each sender. An
    error leaves it as it was.

    ``dtype``: "fp32", "bf16", "fp16" or "int8" (one scale for 256 values) narrows wider floating tensors; None keeps
    every type, bit for bit (with a residual, which is float32, float64 goes as fp32). ``seed``: int8 rounds
    stochastically. Raises EdgePruneError, one sentence, on bad input.
    """
    _check(state, mask, dtype, residual, seed)
    if residual is not None and density is None:
        raise EdgePruneError("pack: residual needs a density; without one everything is sent")
    if density is not None:
        if mask is not None:
            raise EdgePruneError("pack: give either mask or density, not both")
        whole = {name: x for name, x in state.items() if not _is_selected(x)}
        if residual is not None:  # the names and what goes whole are refused before a residual is changed
            none = {name: x.new_empty((0,) * x.dim()) for name, x in state.items() if name not in whole}
            encode(Message("state", 0, "", "", whole | none))
        packed = pack_largest(state, density, dtype, residual, seed)
        return encode(Message("state", 0, "", "", whole, packed=packed))
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
    if mask is not None and not isinstance(mask, Mapping):
        raise EdgePruneError(f"unpack: mask is {shown(mask)}; give a bool tensor for each name")
    if not is_whole(dense_limit):
        raise EdgePruneError(f"unpack: dense_limit is {shown(dense_limit)}; give a number of bytes")
    bitmaps = {name: positions.to_bitmap(_bool("unpack", name, kept)) for name, kept in (mask or {}).items()}
    return dict(decode(blob, kind="state", dense_limit=dense_limit, masks=bitmaps).tensors)


def _check(state: object, mask: object, dtype: str | None, residual: object, seed: object) -> None:
    if not isinstance(state, Mapping):
        raise EdgePruneError(f"pack: the state is {shown(state)}; give tensors by name, such as model.state_dict()")
    for name, x in state.items():
        if not isinstance(name, str):
            raise EdgePruneError(f"pack: the name {shown(name)} is not text; name tensors by strings")
        if not isinstance(x, Tensor):
            raise EdgePruneError(f"pack: {name!r} is a {type(x).__name__}, not a tensor; leave it out")
        _check_plain("pack", repr(name), x)
    if mask is not None and not isinstance(mask, Mapping):
        raise EdgePruneError(f"pack: mask is {shown(mask)}; give a bool tensor for each name")
    if residual is not None and not isinstance(residual, MutableMapping):
        raise EdgePruneError(f"pack: residual is {shown(residual)}; start with an empty dict")
    if seed is not None and not is_whole(seed):
        raise EdgePruneError(f"pack: seed is {shown(seed)}; give a whole number")
    coding_of(torch.float32, dtype)


def _check_plain(op: str, what: str, x: Tensor) -> None:
    """Values in memory, one for each element."""
    if x.layout is not torch.strided or x.is_nested or x.is_meta or isinstance(x, FakeTensor):
        kind = "nested" if x.is_nested else "sparse" if x.layout is not torch.strided else "meta or fake"
        raise EdgePruneError(f"{op}: {what} is a {kind} tensor, whose values cannot be sent; give a dense one")


def _bitmaps(mask: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    bitmaps = {}
    for name, kept in mask.items():
        if name not in shapes:
            raise EdgePruneError(f"pack: mask names {name!r}, which is not in the state{nearest(name, shapes)}")
        if tuple(_bool("pack", name, kept).shape) != shapes[name]:
            raise EdgePruneError(
                f"pack: the mask of {name!r} has shape {tuple(kept.shape)}, the tensor {shapes[name]}; give one value "
                "an element"
            )
        bitmaps[name] = positions.to_bitmap(kept)
    return bitmaps


def _bool(op: str, name: str, kept: Tensor) -> Tensor:
    if not isinstance(kept, Tensor) or kept.dtype is not torch.bool:
        raise EdgePruneError(f"{op}: the mask of {name!r} must be a bool tensor, True where values are kept")
    _check_plain(op, f"the mask of {name!r}", kept)
    return kept


def pack_largest(
    state: Mapping[str, Tensor],
    density: float,
    dtype: str | None = None,
    residual: dict[str, Tensor] | None = None,
    seed: int | None = None,
) -> dict[str, PackedTensor]:
    """The floating tensors of ``state``, of each only what belongs to the largest of all. As :func:`pack`."""
    if not is_number(density) or not 0 < density <= 1:
        raise EdgePruneError(f"pack: density is {shown(density)}; it is a share of the elements, in (0, 1]")
    names = [name for name, x in state.items() if _is_selected(x)]
    owns = [state[name].detach().cpu().resolve_neg().contiguous().reshape(-1) for name in names]
    xs = [own.float() for own in owns]
    peaks = [peak(x) for x in xs]
    for name, own, most in zip(names, owns, peaks, strict=True):
        if not math.isfinite(most):  # or a float64 that float32, in which they are compared, cannot hold
            if not all_finite(own):
                raise EdgePruneError(f"pack: {name!r} holds NaN or infinity; there is no largest share of it")
            if residual is not None:
                raise EdgePruneError(f"pack: {name!r} holds a value beyond float32, in which its residual is kept")
    codings = [_written(own.dtype, dtype, residual is None) for own in owns]
    if residual is None:
        masks = ops.select_largest(xs, _share(density, xs))
        every = zip(owns, xs, masks, codings, names, strict=True)
        done = [
            written(own, x, m, coding, seed, name) if coding else _as_it_is(own, m) for own, x, m, coding, name in every
        ]
    else:
        held = {name: _residual(residual, name, state[name]) for name in names}
        owed = [rest.detach().view(-1) for rest in held.values()]
        check_apart(
            "pack",
            {f"the residual of {name!r}": rest for name, rest in held.items()},
            {repr(name): x for name, x in zip(names, xs, strict=True)},
        )
        every_peak = zip(peaks, owed, codings, owns, strict=True)
        fits = all(most + peak(rest) < _limit(coding, own.dtype) for most, rest, coding, own in every_peak)
        with _kept_on_error([] if fits else owed):
            masks, done = _with_feedback(names, xs, owed, density, codings, seed)
            for name, own, mask, values, coding, rest in zip(names, owns, masks, done, codings, owed, strict=True):
                if coding == "i8" and own.dtype.itemsize == 2:  # what is read is rounded once more, to 16 bits
                    read = ops.unpack(values.values, values.scales, mask, rest.numel(), coding)
                    rest += read - read.to(own.dtype).float()
                    if not fits and not all_finite(rest):
                        raise EdgePruneError(f"pack: {name!r} with its residual holds a value beyond its own type")
        residual.update(held)
    packed = {}
    for name, mask, values in zip(names, masks, done, strict=True):
        x = state[name]
        as_sent = "fp32" if dtype is None and x.dtype is torch.float64 and residual is not None else dtype
        coding, kept = coding_of(x.dtype, as_sent), ops.mask_count(mask)
        packed[name] = PackedTensor(tuple(x.shape), x.dtype, coding, values.values, values.scales, mask, kept)
    return packed


def _is_selected(x: Tensor) -> bool:
    return x.dtype in _WORK and x.numel() > 0


def _limit(coding: str, own: torch.dtype) -> float:
    """Below it no rounding to ``coding``, nor to ``own`` after that, makes an infinity of a value."""
    return torch.finfo(torch.float16 if "f16" in (coding, _WORK[own]) else torch.float32).max / 2


def _as_it_is(x: Tensor, mask: Tensor) -> ops.Packed:
    return ops.Packed(x[ops.mask_to_indices(mask, x.numel())].view(torch.uint8), None)


def _share(density: float, xs: list[Tensor]) -> int:
    total = sum(x.numel() for x in xs)
    return min(total, max(1, round(density * total)))


def _written(own: torch.dtype, dtype: str | None, exact: bool) -> str:
    """The coding that ops.pack writes for a tensor of type ``own``; "" for float64 that stays what it is."""
    coding = coding_of(own, dtype)
    if coding != "own":
        return coding
    return "" if exact and own is torch.float64 else _WORK[own]


def _residual(residual: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    held = residual.get(name)
    if held is None:
        with torch.inference_mode(False):  # what is made there could be added to only there
            return torch.zeros(x.shape, dtype=torch.float32, device="cpu")
    if not isinstance(held, Tensor):
        raise EdgePruneError(f"pack: the residual of {name!r} is {shown(held)}; start with an empty dict")
    if held.dtype is not torch.float32 or held.shape != x.shape or not held.is_contiguous() or not held.is_cpu:
        raise EdgePruneError(f"pack: the residual of {name!r} is not that tensor's; start with an empty dict")
    return held


def _with_feedback(
    names: list[str], xs: list[Tensor], residuals: list[Tensor], density: float, codings: list[str], seed: int | None
) -> tuple[list[Tensor], list[ops.Packed]]:
    """The largest of x + residual over all tensors; the residuals keep the rest."""
    k = _share(density, xs)
    masks: Sequence[Tensor | None]
    if len(set(codings)) == 1:
        with _named(names):
            masks, done = ops.pack_with_feedback_many_(xs, residuals, k, codings[0], seed)
    else:  # types differ: selected over all of them, packed one by one
        with _named(names):
            masks = ops.select_largest([x + r for x, r in zip(xs, residuals, strict=True)], k)
        done = []
        for name, x, r, mask, coding in zip(names, xs, residuals, masks, codings, strict=True):
            with _named([name]):
                done.append(ops.pack_with_feedback_(x, r, mask, coding, seed)[1])
    return [mask for mask in masks if mask is not None], done


@contextmanager
def _kept_on_error(residuals: list[Tensor]) -> Iterator[None]:
    """Whatever is raised, ``residuals`` then hold what they held before: the operators add to them in place."""
    copies = [rest.clone() for rest in residuals]
    try:
        yield
    except BaseException:
        for rest, copy in zip(residuals, copies, strict=True):
            rest.copy_(copy)
        raise


@contextmanager
def _named(names: list[str]) -> Iterator[None]:
    """Errors of the operators, which know tensors by number, with the tensors' names."""
    try:
        yield
    except EdgePruneError as error:
        raise EdgePruneError(re.sub(r"tensor (\d+)", lambda found: repr(names[int(found[1])]), str(error))) from None
