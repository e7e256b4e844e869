"""How well one global model serves each device: on the test samples of the classes it holds, weighted as it holds them.

That is the mean accuracy on a test set split as the training data are, without noise from splitting: with a(k) the
accuracy on class k and p_c(k) the share of class k among client c's samples, client c's accuracy is sum_k p_c(k) a(k).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeprune.algorithms.training import LocalData


def class_shares(local: Mapping[str, LocalData], classes: int) -> Tensor | None:
    """p [clients, classes], double; None where a sample has more than one target (text) or no class."""
    if not classes or any(part.y.dim() != 1 for part in local.values()):
        return None
    counts = [torch.bincount(part.y, minlength=classes).double() for part in local.values()]
    return torch.stack([count / count.sum() for count in counts])


def client_accuracy(shares: Tensor | None, by_class: Sequence[float] | None) -> dict[str, float] | None:
    """Mean, tenth percentile and smallest of the clients' accuracies; None where there are no classes."""
    if shares is None or by_class is None or shares.shape[1] != len(by_class):
        return None
    accuracy = torch.tensor(by_class, dtype=torch.float64)
    held = shares.sum(0) > 0
    if bool(accuracy[held].isnan().any()):
        return None  # a class that somebody trains on has no test samples
    each = shares[:, held] @ accuracy[held]
    return {"mean": float(each.mean()), "p10": float(each.quantile(0.1)), "min": float(each.min())}
