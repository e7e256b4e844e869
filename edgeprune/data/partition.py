"""Who holds which samples: pure functions of labels and a seed, every index in exactly one client's part.

=========  =====================================================================================================
iid        shuffled and dealt
sorted     ``share`` of the samples sorted by label and dealt in contiguous blocks, the rest shuffled and dealt
           ("80 % sorted by label" is share = 0.8)
shards     sorted by label, cut into clients * ``per_client`` equal shards, ``per_client`` random shards each
           (McMahan et al., 2017: two shards, about two classes a client)
dirichlet  each class spread over the clients by a Dirichlet(``alpha``) draw (Hsu et al., 2019)
subject    each client gets whole subjects (people), dealt in random order
=========  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, nearest

KINDS = ("iid", "sorted", "shards", "dirichlet", "subject")
_SIZED = ("iid", "sorted", "dirichlet")
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
    alpha: float = 0.5,
    sizes: Sequence[float] | None = None,
) -> list[Tensor]:
    """The sample indices of each of ``clients`` clients: int64, sorted, together every index once, none empty.

    ``y`` [N] are class labels, ``subjects`` [N] people's numbers (for ``subject``). ``sizes`` are relative parts of
    the data, one a client, for ``iid``, ``sorted`` and ``dirichlet``. Raises :class:`EdgePruneError` if it cannot be.
    """
    if kind not in KINDS:
        raise EdgePruneError(f"data.partition: unknown kind {kind!r}{nearest(kind, KINDS)}")
    labels = y.numpy()
    if clients < 1 or clients > len(labels):
        raise EdgePruneError(f"data.partition: {len(labels)} samples cannot be split over {clients} clients")
    if sizes is not None and kind not in _SIZED:
        raise EdgePruneError(f"data.partition: {kind!r} cannot deal unequal shares; use one of {', '.join(_SIZED)}")
    rng = np.random.default_rng(seed)
    weights = _weights(sizes, clients)
    if kind == "iid":
        parts = _deal(rng.permutation(len(labels)), weights)
    elif kind == "sorted":
        parts = _sorted(labels, weights, share, rng)
    elif kind == "shards":
        parts = _shards(labels, clients, per_client, rng)
    elif kind == "dirichlet":
        parts = _dirichlet(labels, weights, alpha, rng)
    else:
        parts = _subjects(subjects, clients, rng)
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


def _weights(sizes: Sequence[float] | None, clients: int) -> np.ndarray:
    if sizes is None:
        return np.full(clients, 1.0 / clients)
    if len(sizes) != clients or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise EdgePruneError(f"data.partition: give {clients} positive shares, one a client")
    return np.asarray(sizes, dtype=float) / math.fsum(sizes)


def _deal(indices: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Contiguous pieces of ``indices`` of about the given weights, at least one sample each."""
    spare = len(indices) - len(weights)
    if spare < 0:
        raise EdgePruneError(f"data.partition: {len(indices)} samples cannot be split over {len(weights)} clients")
    # One sample for everybody, the rest by weight: cumulative rounding keeps the sum exact.
    ends = np.rint(np.cumsum(weights) * spare).astype(int) + np.arange(1, len(weights) + 1)
    return np.split(indices, ends[:-1])


def _sorted(labels: np.ndarray, weights: np.ndarray, share: float, rng: np.random.Generator) -> list[np.ndarray]:
    if not 0 <= share <= 1:
        raise EdgePruneError(f"data.share is {share}; it is a part of the samples, from 0 to 1")
    order = rng.permutation(len(labels))
    cut = round(share * len(labels))
    ordered, mixed = order[:cut], order[cut:]
    ordered = ordered[np.argsort(labels[ordered], kind="stable")]
    # The longer of the two gives everybody a sample; the other may be too short for that.
    blocks, rest = (_deal(ordered, weights), _loose(mixed, weights))
    if len(ordered) < len(mixed):
        blocks, rest = (_loose(ordered, weights), _deal(mixed, weights))
    return [np.concatenate(pair) for pair in zip(blocks, rest, strict=True)]


def _loose(indices: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    return np.split(indices, np.rint(np.cumsum(weights) * len(indices)).astype(int)[:-1])


def _shards(labels: np.ndarray, clients: int, per_client: int, rng: np.random.Generator) -> list[np.ndarray]:
    count = clients * per_client
    if per_client < 1 or count > len(labels):
        raise EdgePruneError(f"data.per_client is {per_client}; {len(labels)} samples give no {count} shards")
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
    dealt = rng.permutation(count).reshape(clients, per_client)
    return [np.concatenate([shards[i] for i in mine]) for mine in dealt]


def _dirichlet(labels: np.ndarray, weights: np.ndarray, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    if not (math.isfinite(alpha) and alpha > 0):
        raise EdgePruneError(f"data.alpha is {alpha}; the Dirichlet parameter is a positive number")
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


def _subjects(subjects: Tensor | None, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    if subjects is None:
        raise EdgePruneError("data.partition 'subject': this data set does not say which person a sample is from")
    people = np.unique(subjects.numpy())
    if len(people) < clients:
        raise EdgePruneError(f"data.partition 'subject': {len(people)} people cannot be split over {clients} clients")
    groups = np.array_split(rng.permutation(people), clients)
    return [np.flatnonzero(np.isin(subjects.numpy(), group)) for group in groups]
