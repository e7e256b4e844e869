"""Text for character-level language models: windows of characters, and after each the one that follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edgeprune.data.files import Checked, bad
from edgeprune.data.normalise import Indices
from edgeprune.data.types import DataSet, Split

WINDOW = 80  # characters; as in the federated Shakespeare of McMahan et al., 2017
TEST_SHARE = 0.1
LARGEST = 1 << 26


def load_text(name: str, files: Mapping[str, Path], window: int = WINDOW) -> DataSet:
    """One text file: x uint8 [N, window] character numbers, y int64 [N, window] the following ones.

    Windows do not overlap; the last tenth of the text is the test. The classes are the text's characters, sorted.
    """
    (path,) = files.values()
    with Checked.open(path) as file:
        raw = file.rest(LARGEST, "text")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise bad(path, "is not text in UTF-8") from None
    # As code points: numpy sorts and numbers them at once.
    classes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
    if len(classes) > 256:
        raise bad(path, f"has {len(classes)} different characters; a byte numbers 256 at most")
    cut = len(ids) - round(len(ids) * TEST_SHARE)
    parts = (ids[:cut], ids[cut:])
    if min(len(part) for part in parts) <= window:
        raise bad(path, f"has {len(ids)} characters, too few for windows of {window} in train and test")
    train, test = (_windows(part.astype(np.uint8), window) for part in parts)
    return DataSet(name, train, test, tuple(chr(code) for code in classes), Indices())


def _windows(ids: np.ndarray, window: int) -> Split:
    count = (len(ids) - 1) // window
    x = torch.from_numpy(ids[: count * window].reshape(count, window).copy())
    y = torch.from_numpy(ids[1 : count * window + 1].reshape(count, window).astype(np.int64))
    return Split(x, y)
