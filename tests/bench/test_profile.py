"""Profiles: really smaller models are measured, errors are of sizes that were not fitted, files are checked."""

from __future__ import annotations

import copy
import datetime
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_task import small_task
from torch import nn
from torch.nn import functional

from edgeprune.algorithms.training import LocalData
from edgeprune.bench import shapes
from edgeprune.bench.meter import Meter
from edgeprune.bench.model import measure_model
from edgeprune.bench.profile import Effort, model_error, profile_task
from edgeprune.device.power import open_sampler
from edgeprune.device.profile import DeviceProfile, Fingerprint, from_json, read_profile, write_profile
from edgeprune.device.samples import Recording, Sample, now
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import ProfileTimes, read_times, size_of
from edgeprune.pruning import ChannelGraph, SubmodelPlan, choose, scores
from edgeprune.pruning.cost import macs
from edgeprune.tasks import Task


@pytest.fixture(scope="module")
def profile() -> DeviceProfile:
    return profile_task(
        small_task(), effort=Effort(seconds=0.006, passes=2), widths=(0.25, 0.5, 0.75, 1.0), checks=(0.6,)
    )


def test_a_profile_has_widths_depths_and_says_what_it_lacks(profile: DeviceProfile):
    kinds = {point.shape for point in profile.points}
    assert {"layer", "global", "depth"} <= kinds
    assert profile.source == "measured" and profile.fingerprint.threads == 1
    assert profile.error["checked"] == 2, "one left-out width, by layer and by ranking"
    assert "reason" in profile.power and "not asked for" in profile.power["reason"]
    assert all(point.step_j is None and point.inference_j is None for point in profile.points)
    if "density" not in kinds:
        assert any(note.startswith("densities: not measured") for note in profile.notes)


class Rail:
    """A sampler with samples every 10 ms until now: 5 W, and 9 W once the energy windows have begun."""

    def __init__(self) -> None:
        self.began, self.busy = now(), math.inf

    def start(self) -> Rail:
        return self

    def say(self, text: str) -> None:
        self.busy = min(self.busy, now() if text.startswith("energy") else math.inf)

    def recording(self) -> Recording:
        times = [self.began + 0.01 * i for i in range(math.floor((now() - self.began) / 0.01) + 1)]
        return Recording("played", tuple(Sample(t, 9.0 if t >= self.busy else 5.0) for t in times), "VIN", 0.01)

    def forget(self, before_s: float) -> None:
        pass

    def stop(self) -> Recording:
        return self.recording()


def test_energy_is_measured_at_as_many_widths_as_were_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeprune.bench.profile.IDLE_S", 0.2)
    rail, effort = Rail(), Effort(seconds=0.006, passes=1, energy_s=0.6, energy_shapes=3)
    widths = (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
    found = profile_task(small_task(), effort=effort, widths=widths, checks=(), sampler=rail, say=rail.say)
    layers = [point for point in found.points if point.shape == "layer"]
    measured = [point for point in layers if point.step_j is not None]
    assert len(layers) == 6 and len(measured) == 3
    assert measured[0] is layers[0] and measured[-1] is layers[-1], "the ends of what the fit has to cover"
    assert all(point.step_j and point.inference_j for point in measured)
    assert found.power["rail"] == "VIN" and found.power["idle_w"] == pytest.approx(5.0)


def test_a_file_survives_and_a_broken_one_is_refused(profile: DeviceProfile, tmp_path: Path):
    path = tmp_path / "p.json"
    write_profile(profile, path)
    again = read_profile(path)
    assert again == from_json(json.loads(json.dumps(profile.to_json())))
    assert [p.size for p in again.points] == [p.size for p in profile.points]
    assert isinstance(read_times(path), ProfileTimes)
    for broken in (
        {},
        [],
        None,
        {**profile.to_json(), "format": "edgeprune.profile/9"},
        {**profile.to_json(), "points": []},
        {**profile.to_json(), "points": [{}]},
        {**profile.to_json(), "expires": "tomorrow"},
        {**profile.to_json(), "source": "guessed"},
        {**profile.to_json(), "rebuild_ms": float("nan")},
    ):
        with pytest.raises(EdgePruneError, match="profile"):
            from_json(broken)
    path.write_text("{")
    with pytest.raises(EdgePruneError, match="not JSON"):
        read_profile(path)
    with pytest.raises(EdgePruneError, match="cannot be read"):
        read_profile(tmp_path / "none.json")


def test_nothing_that_names_a_person_or_place(profile: DeviceProfile):
    import getpass
    import socket

    shown = json.dumps(profile.to_json())
    assert socket.gethostname() not in shown and str(Path.cwd()) not in shown
    user = getpass.getuser()
    assert f'"{user}"' not in shown and f"/{user}/" not in shown


def test_expiry_and_fingerprint(profile: DeviceProfile):
    now = datetime.datetime.fromisoformat(profile.created)
    assert profile.stale(profile.fingerprint, now) == []
    assert "expired" in profile.stale(None, now + datetime.timedelta(days=31))[0]
    other = replace(profile.fingerprint, mode="15W", torch="9.9")
    assert profile.stale(other, now) == [
        f"the device changed (mode: {profile.fingerprint.mode} -> 15W)",
        f"the device changed (torch: {profile.fingerprint.torch} -> 9.9)",
    ]
    assert other.id != profile.fingerprint.id


def test_equal_fingerprints_have_equal_ids():
    made = [Fingerprint("b", "a", 6, "36.4", "25W", {"GPU clock": 1}, "2.5", 1) for _ in range(2)]
    assert made[0].id == made[1].id and len(made[0].id) == 12


def test_sizes_by_hand():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 20, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(20, 9, 1))
    graph = ChannelGraph.trace(net, torch.zeros(2, 3, 4, 4))
    size = size_of(graph, SubmodelPlan.full(graph).counts)
    assert size.macs == macs(net, torch.zeros(2, 3, 4, 4)) == 16 * (20 * 3 * 9 + 9 * 20)
    assert size.macs_8 == 16 * (24 * 3 * 9 + 16 * 24)  # three input channels are not padded
    assert size.macs_16 == 16 * (32 * 3 * 9 + 16 * 32)
    assert (size.elements, size.elements_8, size.elements_16) == (16 * 29, 16 * 40, 16 * 48)
    assert size.parameters == 20 * 27 + 20 + 9 * 20 + 9
    small = size_of(graph, choose(graph, scores(net, graph), 0.5).counts)
    assert small.widths == (0.5,) and small.macs == 16 * (10 * 27 + 9 * 10)


def test_blocks_are_left_out_and_the_model_stays(task: Task):
    net = task.make_model()
    before = copy.deepcopy(net.state_dict())
    inputs = task.example_inputs()
    assert shapes.droppable_blocks(net, inputs) == ["3", "5"], "the one that halves the image must stay"
    assert net.training and all(torch.equal(a, before[n]) for n, a in net.state_dict().items())
    net.eval()
    small = shapes.without_blocks(net, ["5"])
    assert macs(small, inputs) < macs(net, inputs) and small(inputs[0]).shape == net(inputs[0]).shape
    found = shapes.depths_of(net, inputs, (0.5, 0.0))
    assert [shape.depth for shape in found] == [0.5, 0.0] and found[0].size.macs > found[1].size.macs
    assert all(torch.equal(a, before[n]) for n, a in net.state_dict().items())


def test_densities_are_measured_once_there_is_sparsify(task: Task, monkeypatch: pytest.MonkeyPatch):
    net = task.make_model()
    graph = ChannelGraph.trace(net, task.example_inputs())
    monkeypatch.setattr(shapes, "sparsifier", lambda: None)
    assert shapes.densities_of(net, graph) == ([], "densities: not measured, this version has no edgeprune.sparsify")
    monkeypatch.setattr(shapes, "sparsifier", lambda: lambda model, density: model)
    found, why = shapes.densities_of(net, graph, (0.5, 0.1))
    assert [shape.density for shape in found] == [0.5, 0.1] and why is None


def test_the_error_is_of_points_that_were_not_fitted(profile: DeviceProfile):
    points = [point for point in profile.points if point.density == 1.0]
    wrong = replace(points[-1], step_ms=points[-1].step_ms * 2)
    assert model_error(points, [wrong])["largest"] > 0.2
    assert model_error(points[:2], []) == {}


class Maps(nn.Module):
    """A class for every pixel, under a name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"map": self.conv(x)}


def test_answers_that_cannot_be_made_up_are_a_sentence():
    """No class for each row: measured on the task's own data, or not at all."""
    named = replace(small_task(), make_model=Maps, loss=lambda output, y: functional.cross_entropy(output["map"], y))
    pixels = replace(small_task(), make_model=lambda: Maps().conv)
    for task in (named, pixels):
        with pytest.raises(EdgePruneError, match="profile of 'small': the answers of 'small' cannot be made up"):
            profile_task(task, effort=Effort(seconds=0.006, passes=1))
        with pytest.raises(EdgePruneError, match="bench model: the answers of 'small' cannot be made up"):
            measure_model(task, Meter(open_sampler("none", 0.5)), seconds=0.05, repeats=1, idle_s=0)
    x, y = torch.randn(8, 3, 8, 8), torch.zeros(8, 8, 8, dtype=torch.int64)
    few = {"effort": Effort(seconds=0.006, passes=1), "widths": (0.5, 1.0), "checks": ()}
    assert profile_task(named, data=LocalData(x, y, lambda v: v), **few).points
    with pytest.raises(EdgePruneError, match="task 'small': model or loss do not fit its training samples"):
        profile_task(named, data=LocalData(x, y[:, 0, 0], lambda v: v), **few)
