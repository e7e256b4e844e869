"""A latency table of layers: what each one takes inside the whole network, at several widths, on this machine.

Layers are timed where they stand, in physically smaller networks of random widths, because a layer alone pays for
changes of memory layout that it does not pay for in a chain. One entry for every geometry (kernel, output positions)
holds (outputs, inputs, ms); between them

    ms(o, i) = a + b [o][i] + c [o] + d [i]        a, b, c, d >= 0, [n]: n rounded up to 16

is fitted to relative errors: vector code pays for whole blocks of channels. All other operations together are fitted
in the same way to the number of elements that the layers put out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgeprune.device.profile import FORMAT as PROFILE_FORMAT
from edgeprune.errors import EdgePruneError
from edgeprune.fleet.size import FEW, size_of
from edgeprune.fleet.times import read_times
from edgeprune.pruning import ChannelGraph
from edgeprune.pruning.axes import axis_length

FORMAT = "edgeprune.layers/1"
BLOCK = 16
MAX_BYTES = 1 << 24
Counts = Mapping[str, int]


@dataclass(frozen=True)
class LayerTimes:
    """``layers``: per geometry the samples (outputs, inputs, ms); ``rest``: (elements, elements in blocks, ms) of whole
    networks without their layers. ``runtime`` names what computed; times are for a whole batch of ``batch``."""

    runtime: str
    threads: int
    batch: int
    layers: Mapping[str, tuple[tuple[float, float, float], ...]]
    rest: tuple[tuple[float, float, float], ...]
    machine: Mapping[str, Any]

    def latency(self, graph: ChannelGraph) -> Callable[[Counts], float]:
        """Milliseconds of the sub-model with so many channels per group, for ``edgeprune.prune(latency=...)``.

        Raises EdgePruneError when the network has a layer of a geometry that was not measured.
        """
        fits = {key: _fit([_layer_row(o, i) for o, i, _ in s], [t for *_, t in s]) for key, s in self.layers.items()}
        other = _fit([_rest_row(e, b) for e, b, _ in self.rest], [t for *_, t in self.rest])
        plan = [(axes, key, positions) for axes, key, positions in _geometries(graph) if key is not None]
        if unknown := {key for _, key, _ in plan} - fits.keys():
            raise EdgePruneError(f"latency table: it holds no layer {min(unknown)}; measure it on this model")

        def ms(counts: Counts) -> float:
            total = elements = blocks = 0.0
            for axes, key, positions in plan:
                o, i = axis_length(axes[0], counts), axis_length(axes[1], counts)
                total += float(_layer_row(o, i) @ fits[key])
                elements += o * positions
                blocks += _up(o) * positions
            return total + float(_rest_row(elements, blocks) @ other)

        return ms

    def to_json(self) -> str:
        """The text that ``from_json`` reads back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False)

    @staticmethod
    def from_json(value: Any, where: str = "latency table") -> LayerTimes:
        """The table in a JSON object. Raises EdgePruneError on anything else."""
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']!r}")
            layers = {str(k): tuple(map(_sample, v)) for k, v in value["layers"].items()}
            rest = tuple(map(_sample, value["rest"]))
            if not layers or not rest or not all(layers.values()):
                raise ValueError("an entry without a sample")
            whole = {key: int(value[key]) for key in ("threads", "batch")}
            return LayerTimes(str(value["runtime"]), **whole, layers=layers, rest=rest, machine=dict(value["machine"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EdgePruneError(
                f"{where}: is no latency table of layers ({type(error).__name__}: {error}); measure it again"
            ) from None


def read_latency(path: Path, graph: ChannelGraph) -> Callable[[Counts], float]:
    """Milliseconds by the table in a file: of layers, a device's profile, or a table by multiply-adds (inference)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EdgePruneError(f"latency table {path}: {path.stat().st_size} bytes are too many")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgePruneError(f"latency table {path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        raise EdgePruneError(f"latency table {path}: not JSON; measure it again") from None
    if isinstance(value, dict) and value.get("format") not in (PROFILE_FORMAT, None):
        return LayerTimes.from_json(value, f"latency table {path}").latency(graph)
    times = read_times(path)
    return lambda counts: times.forward_s(size_of(graph, counts)) * 1e3


def geometry(kernel: Iterable[int], positions: float) -> str:
    """The key of a layer: its kernel and output positions of one sample, such as "3x3@784"; "@1" for a linear one."""
    return f"{'x'.join(map(str, kernel))}@{positions:g}"


def _geometries(graph: ChannelGraph) -> list[tuple[Any, str | None, float]]:
    """Per cost of the graph its axes, key and positions; key None for products of two computed matrices."""
    found: list[tuple[Any, str | None, float]] = []
    for axes, times in graph.costs:
        kernel = [sum(s.length for s in axis) for axis in axes[2:]]
        positions = times / graph.batch
        found.append((axes, geometry(kernel, positions) if len(axes) >= 2 else None, positions))
    return found


def elements_of(graph: ChannelGraph, counts: Counts) -> tuple[float, float]:
    """(elements put out by all layers, the same in whole blocks), for one sample."""
    found = [(axis_length(axes[0], counts), p) for axes, key, p in _geometries(graph) if key is not None]
    return sum(o * p for o, p in found), sum(_up(o) * p for o, p in found)


def _sample(entry: Any) -> tuple[float, float, float]:
    a, b, ms = map(float, entry)
    if not (math.isfinite(ms) and ms >= 0 and 0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"sample {entry!r}")
    return a, b, ms


def _up(n: float) -> float:
    return n if n <= FEW else BLOCK * math.ceil(n / BLOCK)


def _layer_row(o: float, i: float) -> npt.NDArray[np.float64]:
    return np.array([1.0, _up(o) * _up(i), _up(o), _up(i)])


def _rest_row(elements: float, blocks: float) -> npt.NDArray[np.float64]:
    return np.array([1.0, elements, blocks])


def _fit(rows: list[npt.NDArray[np.float64]], ms: list[float]) -> npt.NDArray[np.float64]:
    """Coefficients >= 0 with the least squares of relative errors; a microsecond is nothing to fit to."""
    x, t = np.array(rows), np.maximum(np.array(ms), 1e-3)
    x = x / t[:, None]
    scale = x.max(0) + 1e-300
    solution, _ = nnls(x / scale, np.ones(len(t)))
    return solution / scale
