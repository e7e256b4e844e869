"""The latency table of layers: its arithmetic by hand, every layer of a network found, and damaged tables refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError
from edgeprune.export.layer_clock import measure_layers
from edgeprune.export.layer_times import LayerTimes, read_latency
from edgeprune.fleet.latency import LatencyTable
from edgeprune.pruning import ChannelGraph, SubmodelPlan, extract


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.c, self.d = nn.Conv2d(32, 48, 1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


@pytest.fixture(scope="module")
def traced() -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    return model, ChannelGraph.trace(model, x), x


def law(o: int, i: int, work: float) -> float:
    """What a table of exact times would hold: whole blocks of 16 channels, inputs of a picture as they are."""
    up = lambda n: n if n <= 4 else -(-n // 16) * 16  # noqa: E731
    return 0.01 + work * up(o) * up(i)


def exact_table() -> LayerTimes:
    def samples(work: float, pairs: list[tuple[int, int]]) -> tuple[tuple[float, float, float], ...]:
        return tuple((o, i, law(o, i, work)) for o, i in pairs)

    layers = {
        "3x3@64": samples(1e-3, [(16, 3), (32, 3), (16, 1), (32, 1), (48, 1)]),
        "1x1@64": samples(2e-4, [(16, 16), (48, 32), (32, 16), (48, 16)]),
        "@1": samples(1e-5, [(5, 16), (5, 48)]),
    }
    return LayerTimes("by hand", 1, 1, layers, ((1000.0, 1000.0, 0.2), (9000.0, 9000.0, 0.2)), {})


def test_times_add_up_as_by_hand(traced: tuple[nn.Module, ChannelGraph, Tensor]) -> None:
    _, graph, _ = traced
    first, second = graph.prunable  # the depthwise convolution lies in the first group
    ms = exact_table().latency(graph)
    for a, c in ((32, 48), (16, 48), (17, 33), (3, 16)):
        want = law(a, 3, 1e-3) + law(a, 1, 1e-3) + law(c, a, 2e-4) + law(5, c, 1e-5) + 0.2
        assert ms({first: a, second: c}) == pytest.approx(want, rel=0.02)


def test_back_from_json_it_says_the_same(traced: tuple[nn.Module, ChannelGraph, Tensor], tmp_path: Path) -> None:
    _, graph, _ = traced
    path = tmp_path / "t.json"
    path.write_text(exact_table().to_json())
    counts = dict(graph.map.groups)
    assert read_latency(path, graph)(counts) == exact_table().latency(graph)(counts)
    old = LatencyTable("x", 4, (10, 10**9), (1.0, 2.0), (3.0, 5.0), 1.0)
    path.write_text(json.dumps(old.to_json()))
    assert 3.0 <= read_latency(path, graph)(counts) <= 5.0


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_measured_where_they_stand(traced: tuple[nn.Module, ChannelGraph, Tensor], runtime: str) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, graph, x = traced
    table = measure_layers(model, graph, (x,), runtime=runtime, networks=3, repeats=2, batch=2)
    assert set(table.layers) == {"3x3@64", "1x1@64", "@1"} and len(table.rest) == 4
    assert {key: len(v) for key, v in table.layers.items()} == {"3x3@64": 8, "1x1@64": 4, "@1": 4}
    whole = [s[:2] for s in table.layers["3x3@64"][:2]]
    assert sorted(whole) == [(32, 1), (32, 3)]
    ms = table.latency(graph)
    assert 0 < ms(graph.map.groups) < 1e4
    assert LayerTimes.from_json(json.loads(table.to_json())) == LayerTimes(
        table.runtime, 1, 2, table.layers, table.rest, table.machine
    )


def test_linear_layers_over_a_sequence_are_told_from_what_adds_a_bias() -> None:
    pytest.importorskip("onnxruntime")
    model, x = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 24)).eval(), torch.randn(2, 10, 24)
    graph = ChannelGraph.trace(model, x)
    table = measure_layers(model, graph, (x,), networks=2, repeats=2)
    found = [sample[:2] for sample in table.layers["@10"]]
    assert len(found) == 6 and sorted(found)[-1] == (64, 24) and (24, 64) in found
    assert set(found) <= {(24, n) for n in (16, 32, 48, 64)} | {(n, 24) for n in (16, 32, 48, 64)}


def test_a_table_of_another_network_says_so(traced: tuple[nn.Module, ChannelGraph, Tensor]) -> None:
    model, _, _ = traced
    other = ChannelGraph.trace(model, torch.randn(2, 3, 24, 24))
    with pytest.raises(EdgePruneError, match="holds no layer 1x1@144"):
        exact_table().latency(other)
    with pytest.raises(EdgePruneError, match="unknown runtime 'tensorrt'"):
        measure_layers(model, other, (torch.randn(2, 3, 24, 24),), runtime="tensorrt")
    assert extract(model, SubmodelPlan.full(other)) is not model


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edgeprune.layers/2"},
        {"layers": {}},
        {"layers": {"a": []}},
        {"layers": {"a": [[1, 2]]}},
        {"layers": {"a": [[1, 2, float("nan")]]}},
        {"layers": {"a": [[0, 2, 1.0]]}},
        {"layers": {"a": [[1, 2, -1.0]]}},
        {"layers": 3},
        {"rest": []},
        {"rest": None},
        {"batch": "x"},
        {"machine": 3},
    ],
    ids=range(12),
)
def test_damaged_tables(traced: tuple[nn.Module, ChannelGraph, Tensor], tmp_path: Path, change: dict) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**json.loads(exact_table().to_json()), **change}))
    with pytest.raises(EdgePruneError, match="no latency table of layers"):
        read_latency(path, traced[1])
