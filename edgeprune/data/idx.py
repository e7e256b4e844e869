"""The IDX files of MNIST and Fashion-MNIST, plain or gzipped.

An IDX file: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
uint32, then the values. Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.data.files import Checked, bad
from edgeprune.data.normalise import Standardise
from edgeprune.data.registry import IDX_FILES
from edgeprune.data.types import DataSet, Split
from edgeprune.errors import EdgePruneError

UNSIGNED_BYTES = 8
SIDE = 28


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 values of an IDX file with so many dimensions. Any other content raises :class:`EdgePruneError`."""
    with Checked.open(path) as file:
        zero, kind, found = struct.unpack(">HBB", file.read(4, "magic number"))
        if zero or kind != UNSIGNED_BYTES or found != dimensions:
            raise bad(path, f"is not an IDX file of unsigned bytes in {dimensions} dimensions")
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions, "sizes"))
        if 0 in shape:
            raise bad(path, f"holds no values (its shape is {shape})")
        values = file.read(math.prod(shape), "values")
        file.end()
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)


def read_pair(images: Path, labels: Path, classes: int) -> Split:
    """Images as [N, 1, H, W] with their labels; the two files must agree."""
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise bad(labels, f"has {len(y)} labels for the {len(x)} images of {images.name}")
    if int(y.max()) >= classes:
        raise bad(labels, f"has a label {int(y.max())} where there are {classes} classes")
    return Split(x.unsqueeze(1), y.to(torch.int64))


# Both data sets use the same file names, so a wrong folder would train on the wrong one without a word:
# sha256 of the 10,000 test labels tells them apart.
TEST_LABELS = {
    "mnist": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    "fashion-mnist": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip
# Of the training pixels / 255 (population standard deviation).
STATISTICS = {
    "mnist": Standardise((0.1306604762738429,), (0.3081078038564622,)),
    "fashion-mnist": Standardise((0.2860405969887955,), (0.35302424451492237,)),
}


def load_idx(name: str, files: Mapping[str, Path]) -> DataSet:
    """``mnist`` or ``fashion-mnist`` from its four files, by their published names."""
    classes = CLASSES[name]
    train_x, train_y, test_x, test_y = (files[file] for file in IDX_FILES)
    train, test = read_pair(train_x, train_y, len(classes)), read_pair(test_x, test_y, len(classes))
    for path, split in ((train_x, train), (test_x, test)):
        if split.x.shape[2:] != (SIDE, SIDE):
            height, width = split.x.shape[2:]
            raise bad(path, f"has images of {height}x{width} where {name} has {SIDE}x{SIDE}")
    digest = hashlib.sha256(test.y.to(torch.uint8).numpy().tobytes()).hexdigest()
    for other, known in TEST_LABELS.items():
        if other != name and digest == known:
            raise EdgePruneError(f"{test_y.parent}: holds {other}, not {name}; name the folder of {name} with --data")
    return DataSet(name, train, test, classes, STATISTICS[name])
