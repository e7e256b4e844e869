"""CIFAR-10 in its binary version: records of one label byte and 3,072 pixel bytes, plane after plane.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the data set's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from edgeprune.data.files import MAX_BYTES, Checked, bad
from edgeprune.data.normalise import Standardise
from edgeprune.data.registry import CIFAR_FILES
from edgeprune.data.types import DataSet, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
# Of the training pixels / 255 (population standard deviation), red, green, blue.
STATISTICS = Standardise((0.49140, 0.48216, 0.44653), (0.24703, 0.24348, 0.26159))


def read_batch(path: Path) -> Split:
    """The records of one file: x uint8 [N, 3, 32, 32], y int64 [N]. Anything else raises :class:`EdgePruneError`."""
    with Checked.open(path) as file:
        size = min(file.most_left, MAX_BYTES)
        if not size or size % RECORD:
            raise bad(path, f"has {size} bytes, not a whole number of records of {RECORD}")
        values = file.read(size, "records")
        file.end()
    records = torch.frombuffer(values, dtype=torch.uint8).view(-1, RECORD)
    y = records[:, 0].to(torch.int64)
    if int(y.max()) >= len(CLASSES):
        raise bad(path, f"has a label {int(y.max())} where there are {len(CLASSES)} classes")
    return Split(records[:, 1:].reshape(-1, *SHAPE), y)


def load_cifar(files: Mapping[str, Path]) -> DataSet:
    """The data set from its six files, by their published names."""
    train = _joined([read_batch(files[name]) for name in CIFAR_FILES[:-1]])
    return DataSet("cifar-10", train, read_batch(files[CIFAR_FILES[-1]]), CLASSES, STATISTICS)


def _joined(parts: Sequence[Split]) -> Split:
    return Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
