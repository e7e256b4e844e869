"""Which channels to keep: per layer, over all layers, or as one frozen order that gives nested sub-models."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeprune.errors import EdgePruneError, is_number, is_whole, shown
from edgeprune.pruning.axes import AxisMap
from edgeprune.pruning.graph import ChannelGraph
from edgeprune.pruning.importance import relative
from edgeprune.pruning.submodel import SubmodelPlan


def choose(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    keep: float = 0.5,
    scope: Literal["layer", "global"] = "layer",
    min_channels: int = 1,
    round_to: int = 1,
    min_keep: float = 0.0,
    order: Ranking | None = None,
) -> SubmodelPlan:
    """The plan that keeps the channels with the highest scores (of equal ones the first).

    ``keep``: share of the channels, in (0, 1]. ``scope``: "layer" keeps that share of every group; "global" of all
    channels together, scores being taken relative to the mean of their group (``order``: that ranking, if it is there
    already). No group falls below ``min_channels`` (or its size) nor below the share ``min_keep``; counts are rounded
    to the nearest multiple of ``round_to``, at least one (whole heads that are as wide count as such multiples); what
    is kept in full stays full.
    """
    check_keep(keep)
    if scope not in ("layer", "global"):
        raise EdgePruneError(f"scope must be 'layer' or 'global', not {scope!r}")
    found = checked_scores(graph, scores)
    least = floors(graph, min_channels, round_to, min_keep)
    shares = {name: keep * size for name, size in graph.map.groups.items()}
    if scope == "global":
        order = order or ranking(graph, scores, min_channels)
        shares = {n: float(len(c)) for n, c in order.plan(keep).kept.items()}
    kept, each = {}, steps(graph, round_to)
    for name, size in graph.map.groups.items():
        count = each[name] * max(1, math.floor(shares[name] / each[name] + 0.5))
        count = min(size, max(count, least[name]))
        kept[name] = best(found[name], size if shares[name] >= size else count)
    return SubmodelPlan(graph.map, kept)


def floors(graph: ChannelGraph, min_channels: int, round_to: int = 1, min_keep: float = 0.0) -> dict[str, int]:
    """The fewest channels that each group may keep: a multiple of its step, or all it has."""
    _check_least("min_channels", min_channels)
    if not is_number(min_keep) or not 0 <= min_keep <= 1:
        raise EdgePruneError(f"min_keep must be a share from 0 to 1, not {shown(min_keep)}")
    wanted = {n: max(min_channels, math.ceil(min_keep * s - 1e-9)) for n, s in graph.map.groups.items()}
    each = steps(graph, round_to)
    return {n: min(s, each[n] * math.ceil(wanted[n] / each[n])) for n, s in graph.map.groups.items()}


def steps(graph: ChannelGraph, round_to: int) -> dict[str, int]:
    """How many channels of each group make a multiple of ``round_to`` positions in every tensor: a head of 64 does."""
    _check_least("round_to", round_to)
    blocks = dict.fromkeys(graph.map.groups, 0)
    for axes in graph.axes.values():
        for segment in (s for axis in axes for s in axis if s.group is not None):
            blocks[segment.group] = math.gcd(blocks[segment.group], segment.block)  # type: ignore[index]
    return {name: round_to // math.gcd(round_to, block or 1) for name, block in blocks.items()}


def best(scores: npt.NDArray[np.float64], count: int) -> tuple[int, ...]:
    """The ``count`` channels with the highest scores, increasing; of equal ones the first."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


def ranking(
    graph: ChannelGraph, scores: Mapping[str, Tensor], min_channels: int = 1, normalise: bool = True
) -> Ranking:
    """Freeze one order over all channels: first the ``min_channels`` best of every group, then all others by score.

    ``normalise``: scores count relative to the mean of their group (default); False compares them as they are, which
    suits batch norm scales.
    """
    _check_least("min_channels", min_channels)
    own = checked_scores(graph, scores)
    compared = checked_scores(graph, relative(scores)) if normalise else own
    first: list[tuple[int, int]] = []
    rest: list[tuple[float, int, int]] = []
    for g, name in enumerate(graph.map.groups):
        ordered = np.argsort(-own[name], kind="stable").tolist()
        first += [(g, channel) for channel in ordered[:min_channels]]
        rest += [(-float(compared[name][channel]), g, channel) for channel in ordered[min_channels:]]
    starts = _starts(graph.map)
    order = [int(starts[g]) + channel for g, channel in first] + [int(starts[g]) + c for _, g, c in sorted(rest)]
    return Ranking(graph.map, np.array(order, np.int64), len(first))


@dataclass(frozen=True, eq=False)
class Ranking:
    """``order``: channels numbered through all groups of the map, best first; the first ``floor`` are always kept."""

    map: AxisMap
    order: npt.NDArray[np.int64]
    floor: int

    def plan(self, keep: float) -> SubmodelPlan:
        """Keep the first ``keep`` share of the order; plans of one ranking are nested."""
        check_keep(keep)
        count = max(self.floor, math.floor(keep * self.map.total + 0.5))
        flags = np.zeros(self.map.total, bool)
        flags[self.order[:count]] = True
        kept, start = {}, 0
        for name, size in self.map.groups.items():
            kept[name] = tuple(np.flatnonzero(flags[start : start + size]).tolist())
            start += size
        return SubmodelPlan(self.map, kept)

    def counts(self, count: int) -> dict[str, int]:
        """Channels per group among the first ``count`` of the order: those of ``plan(count / total)``, only cheaper."""
        groups = np.searchsorted(_starts(self.map), self.order[: max(self.floor, count)], side="right") - 1
        return dict(zip(self.map.groups, np.bincount(groups, minlength=len(self.map.groups)).tolist(), strict=True))

    def to_json(self) -> str:
        """The order as text, without the map (4 bytes a channel)."""
        order = base64.b64encode(self.order.astype("<u4").tobytes()).decode()
        return json.dumps(
            {"format": "edgeprune.ranking/1", "map": self.map.digest.hex()[:16], "floor": self.floor, "order": order}
        )

    @staticmethod
    def from_json(text: str, graph: ChannelGraph | AxisMap) -> Ranking:
        """The way back, for the graph it was made with; EdgePruneError on anything else."""
        axes = graph if isinstance(graph, AxisMap) else graph.map
        try:
            data = json.loads(text)
            if data["format"] != "edgeprune.ranking/1":
                raise ValueError
            map_id, floor = data["map"], data["floor"]
            order = np.frombuffer(base64.b64decode(data["order"], validate=True), "<u4").astype(np.int64)
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            raise EdgePruneError("this is not a ranking of channels; write it with Ranking.to_json") from None
        if map_id != axes.digest.hex()[:16]:
            raise EdgePruneError("the ranking was made for another model; rank the channels of this one")
        if not np.array_equal(np.sort(order), np.arange(axes.total)):
            raise EdgePruneError(f"the ranking must name each of the {axes.total} channels once")
        counts = np.bincount(
            np.searchsorted(_starts(axes), order[: floor if type(floor) is int else 0], side="right") - 1
        )
        if (
            type(floor) is not int
            or not 0 <= floor <= axes.total
            or (axes.groups and (len(counts) < len(axes.groups) or not counts.all()))
        ):
            raise EdgePruneError("the first channels of the ranking must cover every group")
        return Ranking(axes, order, floor)


def _starts(axes: AxisMap) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *axes.groups.values()])[:-1].astype(np.int64)


def check_keep(keep: object) -> None:
    """EdgePruneError unless ``keep`` is a share above 0 and at most 1."""
    if not is_number(keep) or not 0 < keep <= 1:  # type: ignore[operator]
        raise EdgePruneError(f"keep must be a share above 0 and at most 1, not {shown(keep)}")


def _check_least(what: str, value: object) -> None:
    if not is_whole(value) or value < 1:  # type: ignore[operator]
        raise EdgePruneError(f"{what} must be a whole number, at least 1, not {shown(value)}")


def checked_scores(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    """Per group its scores in double; EdgePruneError where they are missing, not finite or of another number."""
    result = {}
    for name, size in graph.map.groups.items():
        if name not in scores:
            raise EdgePruneError(f"there are no scores for the group {name!r}")
        values = torch.as_tensor(scores[name]).detach().cpu().double().numpy()
        if values.shape != (size,) or not np.isfinite(values).all():
            raise EdgePruneError(f"the scores of {name!r} must be {size} finite numbers")
        result[name] = values
    return result
