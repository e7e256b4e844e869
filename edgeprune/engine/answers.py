"""How a device's weights become the tensors of its answer: whole, narrowed, only the change, only its largest share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune import wire
from edgeprune.algorithms.protocol import Job
from edgeprune.pruning.robust import STATISTICS
from edgeprune.wire import PackedTensor


@dataclass(frozen=True)
class Answered:
    """The tensors of an update: ``whole`` and ``packed`` ones, the id of the masks they take for known, and what error
    feedback now owes."""

    whole: Mapping[str, Tensor]
    packed: Mapping[str, PackedTensor]
    mask: str
    residual: dict[str, Tensor]


def answer_with(
    state: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    job: Job,
    residual: Mapping[str, Tensor],
) -> Answered:
    """``state`` after training from ``received``, packed as ``job`` asks. ``masks`` are the device's own now, ``held``
    those that the server sent: where they are equal, no positions travel.

    Where changes or narrow values are asked for, batch-norm statistics go whole and as they are all the same: they are
    measured, not trained; a variance that part of a change is added to may come out negative, and of inputs that are
    not normalised it may be beyond float16.
    """
    values = dict(state)
    owed: dict[str, Tensor] = {}
    changed = [name for name, x in state.items() if changes(name, x)]
    if job.change:
        for name in changed:
            change = state[name] - received[name]
            values[name] = change + residual[name] if job.feedback and name in residual else change
    if not _finite(values):
        # Nothing can be selected or scaled by such values: they go as they are, and the server refuses them.
        whole = {name: values[name] for name in state}
        return Answered({**whole, **gradients}, {}, "", dict(residual))
    same = bool(held) and all(torch.equal(masks[name], held[name]) for name in held)
    if job.density < 1:
        packed = dict(wire.pack_largest({name: values[name] for name in changed}, job.density, job.dtype))
    elif masks or job.dtype != "fp32":
        packed = {
            name: wire.pack_tensor(x, masks.get(name), job.dtype, name=name, known=same and name in masks)
            for name, x in values.items()
            if name in masks or (job.dtype != "fp32" and name in changed)
        }
    else:
        packed = {}
    if job.feedback:
        owed = {name: _left(name, values[name], packed[name], masks) for name in packed}
    whole = {name: x for name, x in values.items() if name not in packed}
    return Answered({**whole, **gradients}, packed, wire.mask_id(held) if same else "", owed)


def changes(name: str, tensor: Tensor) -> bool:
    """Whether an answer that holds changes holds that of this tensor; otherwise it holds the tensor itself."""
    return tensor.is_floating_point() and not name.endswith(STATISTICS)


def _left(name: str, x: Tensor, sent: PackedTensor, masks: Mapping[str, Tensor]) -> Tensor:
    """What of ``x`` was not sent. Outside the device's mask nothing is owed: the weight is not there any more."""
    left = x - sent.tensor()
    if name in masks:
        left = wire.pack_tensor(left, masks[name], name=name).tensor()
    return left


def _finite(values: Mapping[str, Tensor]) -> bool:
    return all(wire.all_finite(x) for x in values.values() if x.is_floating_point())
