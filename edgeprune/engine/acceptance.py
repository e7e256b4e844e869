"""The server's gate: an update is merged only if it is what was asked for and every value is a finite number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, isfinite

from edgeprune import wire
from edgeprune.algorithms.protocol import Assignment, Update
from edgeprune.engine.transport import Reply
from edgeprune.errors import EdgePruneError

HEADER_ROOM = 1 << 16


def accept(reply: Reply, asked: Assignment, sent_bytes: int, round_: int, samples: int) -> Update:
    """The update in ``reply``.

    Raises :class:`EdgePruneError`, a sentence for the round's record, if nothing came or it cannot be trusted: over
    twice what was sent plus a header (unpacked: twice what was asked for), unreadable, for another round, plan or
    client, other names, shapes or types, a value that is not finite, a negative variance, or another sample count than
    the ``samples`` it enrolled with.
    """
    message = checked(reply, "update", asked.plan.id, asked.state, sent_bytes, round_, samples)
    loss = message.header.get("loss")
    if not isinstance(loss, float):
        raise EdgePruneError(f"update reports a loss of {loss!r}, not a finite number")
    return Update(asked.client, asked.plan, message.tensors, samples, loss, reply.update_time_s)


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
    if reply.blob is None:
        raise EdgePruneError(f"no {kind} arrived before the deadline")
    dense = sum(t.numel() * t.element_size() for t in expected.values())
    message = wire.decode(reply.blob, kind=kind, limit=2 * sent_bytes + HEADER_ROOM, dense_limit=2 * dense)
    for what, got, asked in (
        ("client", message.client, reply.client),
        ("round", message.round, round_),
        ("plan", message.plan, plan),
        ("samples", message.samples, samples),
    ):
        if got != asked:
            raise EdgePruneError(f"{kind} names {what} {got!r}, asked was {asked!r}")
    if message.tensors.keys() != expected.keys():
        odd = sorted(message.tensors.keys() ^ expected.keys())[0]
        raise EdgePruneError(f"{kind} and what was asked for differ in tensor {odd!r}")
    for name in sorted(expected):
        _check(name, message.tensors[name], expected[name])
    return message


def _check(name: str, got: Tensor, sent: Tensor) -> None:
    if got.shape != sent.shape or got.dtype != sent.dtype:
        raise EdgePruneError(
            f"tensor {name!r} has shape {tuple(got.shape)} and type {got.dtype}, "
            f"asked was {tuple(sent.shape)} and {sent.dtype}"
        )
    if got.is_floating_point() and not bool(isfinite(got).all()):
        raise EdgePruneError(f"tensor {name!r} holds a value that is not finite")
    if name.endswith("running_var") and bool((got < 0).any()):
        raise EdgePruneError(f"tensor {name!r} holds a negative variance")
