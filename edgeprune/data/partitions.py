"""Who holds which samples: pure functions of labels and a seed, every index in exactly one client's part (``classes``:
in at most one).

=========  =====================================================================================================
iid        shuffled and dealt
sorted     ``share`` of the samples sorted by label and dealt in contiguous blocks to the clients in random order, the
           rest shuffled and dealt ("80 % sorted by label" is share = 0.8)
shards     sorted by label, cut into clients * ``per_client`` equal shards, ``per_client`` random shards each
           (McMahan et al., 2017: two shards, about two classes a client)
classes    ``per_client`` random classes each, ``per_class`` samples of each of them; the rest belongs to nobody (the
           "pathological" split of LotteryFL and FedDST: two classes, 20 samples of each)
dirichlet  each class spread over the clients by a Dirichlet(``alpha``) draw (Hsu et al., 2019)
subject    each client gets whole subjects (people), dealt in random order
=========  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, is_number, is_whole, nearest, shown

KINDS = ("iid", "sorted", "shards", "classes", "dirichlet", "subject")
_SIZED = ("iid", "sorted", "dirichlet")
_BY_LABEL = ("sorted", "shards", "classes", "dirichlet")
_ATTEMPTS = 100


def partition(
    kind: str,
    y: Tensor,
    subjects: Tensor | None,
    clients: int,
    seed: int,
    *,
    share: float = 0.8,
    per_client: int = 2,
    per_class: int = 20,
    alpha: float = 0.5,
    sizes: Sequence[float] | None = None,
) -> list[Tensor]:
    """The sample indices of each of ``clients`` clients: int64, sorted, together every index once (``classes``:
    at most once), none empty.

    ``y`` [N] are class labels, ``subjects`` [N] people's numbers (for ``subject``). ``sizes`` are relative parts of
    the data, one a client, for ``iid``, ``sorted`` and ``dirichlet``. Raises :class:`EdgePruneError` if it cannot be.
    """
    if kind not in KINDS:
        raise EdgePruneError(f"data.partition: unknown kind {kind!r}{nearest(kind, KINDS)}")
    _check(kind, y, subjects, clients, seed, sizes)
    # Where only their number matters, labels may be of any type and shape.
    labels = y.detach().cpu().numpy() if kind in _BY_LABEL else np.zeros(len(y), int)
    if clients < 1 or clients > len(labels):
        raise EdgePruneError(f"data.partition: {len(labels)} samples cannot be split over {clients} clients")
    rng = np.random.default_rng(seed)
    weights = _weights(sizes, clients)
    if kind == "iid":
        parts = _cut(rng.permutation(len(labels)), _counts(len(labels), weights))
    elif kind == "sorted":
        parts = _sorted(labels, weights, share, rng)
    elif kind == "shards":
        parts = _shards(labels, clients, per_client, rng)
    elif kind == "classes":
        parts = _classes(labels, clients, per_client, per_class, rng)
    elif kind == "dirichlet":
        parts = _dirichlet(labels, weights, alpha, rng)
    else:
        parts = _subjects(subjects, labels, clients, rng)
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


def _check(kind: str, y: object, subjects: object, clients: object, seed: Any, sizes: object) -> None:
    if not is_whole(clients):
        raise EdgePruneError(f"data.partition: clients is {shown(clients)}; give a whole number, 1 or more")
    if not is_whole(seed) or seed < 0:
        raise EdgePruneError(f"data.partition: seed is {shown(seed)}; give a whole number, 0 or more")
    if not isinstance(y, Tensor) or not y.dim():
        raise EdgePruneError(f"data.partition: y is {shown(y)}; give a tensor with one label a sample")
    if subjects is not None and (not isinstance(subjects, Tensor) or subjects.dim() != 1):
        raise EdgePruneError(f"data.partition: subjects is {shown(subjects)}; give a tensor with one number a sample")
    if kind in _BY_LABEL and y.dim() != 1:
        raise EdgePruneError(f"data.partition: {kind!r} needs one label a sample, which text has not; use iid")
    if kind in _BY_LABEL and (y.is_floating_point() or y.is_complex()):
        raise EdgePruneError(f"data.partition: {kind!r} needs class labels, and y is {y.dtype}; give whole numbers")
    if sizes is not None and kind not in _SIZED:
        raise EdgePruneError(f"data.partition: {kind!r} cannot deal unequal shares; use one of {', '.join(_SIZED)}")


def _weights(sizes: Sequence[float] | None, clients: int) -> np.ndarray:
    if sizes is None:
        return np.full(clients, 1.0 / clients)
    fitting = isinstance(sizes, Sequence | np.ndarray) and len(sizes) == clients
    if not fitting or not all(is_number(size) and math.isfinite(size) and size > 0 for size in sizes):
        raise EdgePruneError(f"data.partition: give {clients} positive shares, one a client")
    return np.asarray(sizes, dtype=float) / math.fsum(sizes)


def _counts(total: int, weights: np.ndarray) -> np.ndarray:
    """How many of ``total`` samples each client gets: one, and its part of the rest. Sums to ``total`` exactly."""
    ends = np.rint(np.cumsum(weights) * (total - len(weights))).astype(int)
    ends[-1] = total - len(weights)
    return np.diff(ends, prepend=0) + 1


def _cut(indices: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Contiguous pieces of ``indices`` of the given lengths."""
    return np.split(indices, np.cumsum(counts)[:-1])


def _sorted(labels: np.ndarray, weights: np.ndarray, share: float, rng: np.random.Generator) -> list[np.ndarray]:
    if not is_number(share) or not 0 <= share <= 1:
        raise EdgePruneError(f"data.share is {shown(share)}; it is a part of the samples, from 0 to 1")
    total = len(labels)
    order = rng.permutation(total)
    cut = round(share * total)
    ordered, mixed = order[:cut], order[cut:]
    ordered = ordered[np.argsort(labels[ordered], kind="stable")]
    # In random order: else device 0, often the fastest, would hold the first label in every run.
    clients = rng.permutation(len(weights))
    counts = _counts(total, weights)[clients]
    # Everybody's samples are sorted to the same share, up to one: floors first, then the largest remainders.
    from_ordered = counts * cut // total
    largest_first = np.argsort(-(counts * cut % total), kind="stable")
    from_ordered[largest_first[: cut - from_ordered.sum()]] += 1
    pairs = zip(_cut(ordered, from_ordered), _cut(mixed, counts - from_ordered), strict=True)
    parts = [np.concatenate(pair) for pair in pairs]
    return [parts[at] for at in np.argsort(clients)]


def _shards(labels: np.ndarray, clients: int, per_client: int, rng: np.random.Generator) -> list[np.ndarray]:
    if not is_whole(per_client):
        raise EdgePruneError(f"data.per_client is {shown(per_client)}; give a whole number of shards")
    count = clients * per_client
    if per_client < 1 or count > len(labels):
        raise EdgePruneError(f"data.per_client is {per_client}; {len(labels)} samples give no {count} shards")
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
    dealt = rng.permutation(count).reshape(clients, per_client)
    return [np.concatenate([shards[i] for i in mine]) for mine in dealt]


def _classes(
    labels: np.ndarray, clients: int, per_client: int, per_class: int, rng: np.random.Generator
) -> list[np.ndarray]:
    present = np.unique(labels)
    whole = is_whole(per_client) and is_whole(per_class)
    if not whole or not 1 <= per_client <= len(present) or per_class < 1:
        raise EdgePruneError(
            f"data.per_client is {shown(per_client)} and per_class {shown(per_class)}; give 1 to "
            f"{len(present)} classes, 1 sample or more of each"
        )
    left = {label: rng.permutation(np.flatnonzero(labels == label)) for label in present}
    parts = []
    for _ in range(clients):
        mine = []
        # In proportion to what is left of each class, so that none runs out before the others.
        fills = np.array([len(left[label]) // per_class for label in present], dtype=float)
        if np.count_nonzero(fills) < per_client:
            raise EdgePruneError(
                f"data.per_class is {per_class}: the classes have too few samples for {clients} clients; lower it"
            )
        for label in rng.choice(present, per_client, replace=False, p=fills / fills.sum()):
            taken, left[label] = left[label][:per_class], left[label][per_class:]
            mine.append(taken)
        parts.append(np.concatenate(mine))
    return parts


def _dirichlet(labels: np.ndarray, weights: np.ndarray, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    if not (is_number(alpha) and math.isfinite(alpha) and alpha > 0):
        raise EdgePruneError(f"data.alpha is {shown(alpha)}; the Dirichlet parameter is a positive number")
    clients = len(weights)
    for _ in range(_ATTEMPTS):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            proportions = rng.dirichlet(alpha * clients * weights)
            ends = np.rint(np.cumsum(proportions) * len(members)).astype(int)[:-1]
            for part, piece in zip(parts, np.split(members, ends), strict=True):
                part.append(piece)
        dealt = [np.concatenate(part) for part in parts]
        if all(len(part) for part in dealt):
            return dealt
    raise EdgePruneError(
        f"data.alpha is {alpha}: some of {clients} clients stay without samples; raise it or use fewer clients"
    )


def _subjects(subjects: Tensor | None, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    if subjects is None:
        raise EdgePruneError("data.partition 'subject': this data set does not say which person a sample is from")
    if len(subjects) != len(labels):
        raise EdgePruneError(f"data.partition 'subject': {len(subjects)} subjects for {len(labels)} samples")
    people = np.unique(subjects.numpy())
    if len(people) < clients:
        raise EdgePruneError(f"data.partition 'subject': {len(people)} people cannot be split over {clients} clients")
    groups = np.array_split(rng.permutation(people), clients)
    return [np.flatnonzero(np.isin(subjects.numpy(), group)) for group in groups]
