"""Time of a training step from the size of the model: fitted to measured points, with the error it makes on others.

    t(size) = (b0 + b . x) * exp(r(widths)),     b >= 0

x are multiply-adds and layer outputs, each plain and padded to 8 and 16 channels, and parameters: a vector library
pays for whole blocks of channels, so 19 cost as much as 32. Coefficients are fitted to relative errors and cannot be
negative, so more work never takes less time in that part. r is what the sum leaves over near measured widths: the
logarithms of the residuals, weighted by nearness (a Gaussian process of small length), which vanishes away from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgeprune.device.profile import ModelSize
from edgeprune.errors import EdgePruneError

FEATURES = ("macs", "macs_8", "macs_16", "elements", "elements_8", "elements_16", "parameters")
LENGTH, NUGGET = 0.1, 1.0
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """``coefficients``: of 1 and of each feature, in the unit of the times it was fitted to."""

    coefficients: Array
    widths: tuple[tuple[float, ...], ...]
    weights: Array

    def __call__(self, size: ModelSize) -> float:
        """The time for a model of ``size``."""
        linear = float(_features(size) @ self.coefficients)
        near = [_nearness(size.widths, other) for other in self.widths]
        return linear * math.exp(float(np.dot(near, self.weights))) if near else linear


def fit(sizes: Sequence[ModelSize], times: Sequence[float]) -> LatencyModel:
    """The model of these points. Raises :class:`EdgePruneError` for fewer than three."""
    if len(sizes) < 3:
        raise EdgePruneError(f"latency model: {len(sizes)} points; measure three widths or more")
    x, t = np.array([_features(size) for size in sizes]), np.asarray(times, float)
    rows = x / t[:, None]
    scale = rows.max(0) + 1e-300
    solution, _ = nnls(rows / scale, np.ones(len(t)))
    coefficients = solution / scale
    left = np.log(t / np.maximum(x @ coefficients, 1e-12 * t))
    if not all(size.widths for size in sizes):
        return LatencyModel(coefficients, (), np.zeros(0))
    widths = tuple(size.widths for size in sizes)
    kernel = np.array([[_nearness(a, b) for b in widths] for a in widths])
    return LatencyModel(coefficients, widths, np.linalg.solve(kernel + NUGGET * np.eye(len(t)), left))


def errors(sizes: Sequence[ModelSize], times: Sequence[float]) -> list[float]:
    """The relative error at each point when it alone is left out of the fit."""
    found = []
    for i, (size, time) in enumerate(zip(sizes, times, strict=True)):
        rest = [j for j in range(len(sizes)) if j != i]
        model = fit([sizes[j] for j in rest], [times[j] for j in rest])
        found.append(model(size) / time - 1)
    return found


def _features(size: ModelSize) -> Array:
    return np.array([1.0, *(float(getattr(size, name)) for name in FEATURES)])


def _nearness(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """1 for equal widths, 0 far away or for another network (one of another depth)."""
    if len(a) != len(b) or not a:
        return 0.0
    distance = math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    return math.exp(-distance / (2 * LENGTH**2))
