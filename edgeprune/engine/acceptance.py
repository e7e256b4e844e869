"""The server's gate: an update is merged only if it is what was asked for and every value is a finite number."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, equal, zeros_like

from edgeprune import ops, wire
from edgeprune.algorithms.protocol import Assignment, Update
from edgeprune.engine.answers import changes
from edgeprune.engine.transport import Reply
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.masks import inverse

HEADER_ROOM = 1 << 16
MOST = 1e20  # of a weight's magnitude: sums of such values, each times its samples, stay within float32
GRADIENT = "gradient/"


def accept(reply: Reply, asked: Assignment, sent_bytes: int, round_: int, samples: int) -> Update:
    """The update in ``reply``.

    Raises :class:`EdgePruneError`, a sentence for the round's record, if nothing came or it cannot be trusted: over
    twice what was sent plus a header (unpacked: twice what was asked for), unreadable, for another round, plan or
    client, other names, shapes or types, another mask than was asked for or of another size, a value that is not
    finite or beyond MOST, a negative variance, other whole numbers than were sent (positions, which a model looks up:
    a single one is a count, which training moves), or another sample count than the ``samples`` it enrolled with.
    """
    gradients = {GRADIENT + name: asked.state[name] for name in asked.masks if asked.job.gradient}
    answered = {} if asked.job.learn else asked.state  # who learns a mask says only what stays
    expected = {**answered, **gradients}
    # A dense gradient is as large as the model, however little of it was sent down.
    room = sent_bytes + sum(t.numel() * t.element_size() for t in gradients.values())
    message = _answered(reply, "update", asked.plan.id, expected, room, round_, samples, asked.masks)
    loss = message.header.get("loss")
    if not isinstance(loss, float):
        raise EdgePruneError("update reports a loss that is not finite; a smaller lr is the usual cure")
    masks = {name: _mask(name, message, asked) for name in asked.masks}
    tensors = {**message.tensors, **{name: packed.tensor() for name, packed in message.packed.items()}}
    _check_all("update", tensors, expected, changes=asked.job.change)
    state = {name: tensors[name] for name in answered}
    if asked.job.change:
        state = {n: asked.state[n] + t if changes(n, t) else t for n, t in state.items()}
        _check_all("update", state, asked.state)
    job = asked.job
    plan = _proposal(message, asked.plan) if job.propose or job.learn or job.gates else asked.plan
    return Update(
        asked.client,
        plan,
        state,
        samples,
        loss,
        reply.update_time_s,
        masks,
        {name.removeprefix(GRADIENT): tensors[name] for name in gradients},
        asked.state,
    )


def checked(
    reply: Reply,
    kind: str,
    plan: str,
    expected: Mapping[str, Tensor],
    sent_bytes: int,
    round_: int,
    samples: int,
) -> wire.Message:
    """The message in ``reply``, if it answers the question and holds finite tensors like ``expected``."""
    message = _answered(reply, kind, plan, expected, sent_bytes, round_, samples)
    _check_all(kind, message.tensors, expected)
    return message


def _answered(
    reply: Reply,
    kind: str,
    plan: str,
    expected: Mapping[str, Tensor],
    sent_bytes: int,
    round_: int,
    samples: int,
    masks: Mapping[str, Tensor] | None = None,
) -> wire.Message:
    """The message in ``reply``, from whom and for what it was asked; its tensors are not looked at yet. With ``masks``
    (those the client holds) packed tensors stay packed."""
    if reply.blob is None:
        raise EdgePruneError(reply.fault or f"no {kind} arrived before the deadline")
    dense = sum(t.numel() * t.element_size() for t in expected.values())
    limit = 2 * sent_bytes + HEADER_ROOM
    message = wire.decode(
        reply.blob, kind=kind, limit=limit, dense_limit=2 * dense, masks=masks, keep_packed=bool(masks)
    )
    for what, got, asked in (
        ("client", message.client, reply.client),
        ("round", message.round, round_),
        ("plan", message.plan, plan),
        ("samples", message.samples, samples),
    ):
        if got != asked:
            raise EdgePruneError(f"{kind} names {what} {got!r}, asked was {asked!r}")
    return message


def _mask(name: str, message: wire.Message, asked: Assignment) -> Tensor:
    """The mask under which tensor ``name`` came: the one that was sent, or after a readjustment one of its size."""
    held, n = asked.masks[name], asked.state[name].numel()
    if name in message.packed and message.packed[name].mask is not None:
        mask = message.packed[name].mask
        assert mask is not None
    elif name in message.packed or name in message.tensors:  # whole: every element is kept
        mask = inverse(zeros_like(held), n)
    else:
        raise EdgePruneError(f"update and what was asked for differ in tensor {name!r}")
    if len(mask) != len(held):
        raise EdgePruneError(f"the mask of {name!r} is not one of {n} weights")
    kept, due = ops.mask_count(mask), ops.mask_count(held)
    if not asked.job.readjust and not bool((mask == held).all()):
        raise EdgePruneError(f"the mask of {name!r} is not the one that was sent")
    if kept > due or (kept < due and not asked.job.grow_any):
        raise EdgePruneError(f"the mask of {name!r} keeps {kept} weights, asked was {due}")
    return mask


def _proposal(message: wire.Message, asked: SubmodelPlan) -> SubmodelPlan:
    plan = SubmodelPlan.from_kept_bytes(asked.map, message.kept)
    if plan.dropped != asked.dropped:
        raise EdgePruneError("the proposal leaves out other blocks than were asked for")
    for name, channels in plan.kept.items():
        if not set(channels) <= set(asked.kept[name]):
            raise EdgePruneError(f"the proposal keeps channels of {name!r} that are gone already")
    return plan


def _check_all(
    kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, changes: bool = False
) -> None:
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise EdgePruneError(f"{kind} and what was asked for differ in tensor {odd!r}")
    for name in sorted(expected):
        _check(name, tensors[name], expected[name], changes)


def _check(name: str, got: Tensor, sent: Tensor, change: bool) -> None:
    if got.shape != sent.shape or got.dtype != sent.dtype:
        raise EdgePruneError(
            f"tensor {name!r} has shape {tuple(got.shape)} and type {got.dtype}, "
            f"asked was {tuple(sent.shape)} and {sent.dtype}"
        )
    if not got.is_floating_point() and got.numel() > 1 and not equal(got, sent):
        raise EdgePruneError(f"tensor {name!r} holds other whole numbers than were sent")
    if not got.is_floating_point() or not got.numel():
        return
    low, high = (float(end) for end in got.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EdgePruneError(f"tensor {name!r} holds a value that is not finite")
    if max(-low, high) > MOST:
        raise EdgePruneError(f"tensor {name!r} holds a value beyond {MOST:g}, which is no weight")
    if name.endswith("running_var") and not change and low < 0:
        raise EdgePruneError(f"tensor {name!r} holds a negative variance")
