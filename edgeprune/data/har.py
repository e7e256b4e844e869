"""UCI-HAR: a phone's motion sensors, 9 channels x 128 samples (2.56 s at 50 Hz), six activities, thirty people.

Channels: body acceleration x, y, z; gyroscope x, y, z; total acceleration x, y, z (in g, rad/s, g).
Read from the published archive, or from ``uci_har.npz`` with {x,y,subject}_{train,test} in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edgeprune.data.files import CheckedZip, bad
from edgeprune.data.normalise import Standardise
from edgeprune.data.npz import read_npz
from edgeprune.data.registry import HAR_NPZ, HAR_ZIP
from edgeprune.data.types import DataSet, Split

CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
SAMPLES = 128
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def load_har(files: Mapping[str, Path]) -> DataSet:
    """The data set from either of its forms, official split (21 people train, 9 others test)."""
    if HAR_NPZ in files:
        path = files[HAR_NPZ]
        names = tuple(f"{what}_{part}" for part in ("train", "test") for what in ("x", "y", "subject"))
        arrays = read_npz(path, names)
        both = [(arrays[f"x_{p}"], arrays[f"y_{p}"], arrays[f"subject_{p}"]) for p in ("train", "test")]
    else:
        path = files[HAR_ZIP]
        with CheckedZip(path) as archive:
            both = [_part(archive, part) for part in ("train", "test")]
    train, test = (_split(path, part, *arrays) for part, arrays in zip(("train", "test"), both, strict=True))
    return DataSet("uci-har", train, test, CLASSES, Standardise.of(train.x, unit=1.0))


def _split(path: Path, part: str, x: np.ndarray, y: np.ndarray, subject: np.ndarray) -> Split:
    if x.ndim != 3 or x.shape[1:] != (len(SIGNALS), SAMPLES) or x.dtype != np.float32 or not len(x):
        raise bad(path, f"has {part} windows {x.shape} of {x.dtype}, not [N, {len(SIGNALS)}, {SAMPLES}] of float32")
    if y.shape != x.shape[:1] or subject.shape != x.shape[:1]:
        raise bad(path, f"has {y.shape} labels and {subject.shape} people for {len(x)} {part} windows")
    if y.min() < 0 or y.max() >= len(CLASSES):
        raise bad(path, f"has labels {y.min()} to {y.max()} where there are {len(CLASSES)} classes")
    if not np.isfinite(x).all():
        raise bad(path, f"has values that are no numbers among the {part} windows")
    return Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), torch.from_numpy(subject.astype(np.int64)))


def _part(archive: CheckedZip, part: str) -> Arrays:
    """Windows [N, 9, 128], labels from 0, people, from the archive's text files."""
    folder = f"UCI HAR Dataset/{part}"
    y = _numbers(archive, f"{folder}/y_{part}.txt").astype(np.int64) - 1
    subject = _numbers(archive, f"{folder}/subject_{part}.txt").astype(np.int64)
    x = np.empty((len(y), len(SIGNALS), SAMPLES), dtype=np.float32)
    for channel, signal in enumerate(SIGNALS):
        name = f"{folder}/Inertial Signals/{signal}_{part}.txt"
        values = _numbers(archive, name)
        if values.size != len(y) * SAMPLES:
            raise bad(archive.path, f"has {values.size} values in {name}, not {SAMPLES} for each of {len(y)} windows")
        x[:, channel] = values.reshape(len(y), SAMPLES)
    return x, y, subject


def _numbers(archive: CheckedZip, name: str) -> np.ndarray:
    """All numbers of a text member, float64."""
    file, size = archive.member(name)
    with file:
        text = file.read(size, "text")
        file.end()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of what it could not read
            return np.fromstring(text.decode("ascii"), dtype=np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise bad(file.where, "holds something that is not a number") from None
