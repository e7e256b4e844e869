"""Scikit-learn's bundled handwritten digits: real data that need no file and no network."""

from __future__ import annotations

import numpy as np
import torch

from edgeprune.data.normalise import Standardise
from edgeprune.data.types import DataSet, Split

TEST_SAMPLES = 360
SPLIT_SEED = 0


def load_digits() -> DataSet:
    """1,797 images, uint8 0..16 of shape [N, 1, 8, 8], split into 1,437 for training and 360 for the test.

    The split is the same on every machine and keeps each class's share.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits as bundled

    images, labels = bundled(return_X_y=True)
    x = torch.from_numpy(images.astype(np.uint8).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(labels.astype(np.int64))
    test = _stratified(labels, TEST_SAMPLES)
    train = torch.from_numpy(np.setdiff1d(np.arange(len(labels)), test))
    held_out = torch.from_numpy(test)
    normalise = Standardise.of(x[train], unit=16.0)
    return DataSet("digits", Split(x[train], y[train]), Split(x[held_out], y[held_out]), tuple("0123456789"), normalise)


def _stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of ``count`` samples, each class as often as its share rounds to (largest remainders first)."""
    # RandomState, not default_rng: its stream is frozen for good, so the split is the same under every numpy.
    rng = np.random.RandomState(SPLIT_SEED)
    per_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    exact = np.array([len(members) * count / len(labels) for members in per_class])
    take = np.floor(exact).astype(int)
    first = np.argsort(take - exact, kind="stable")[: count - take.sum()]
    take[first] += 1
    chosen = [rng.permutation(members)[:n] for members, n in zip(per_class, take, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
