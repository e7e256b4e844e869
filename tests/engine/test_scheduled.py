"""The scheduler inside a run: first round, change of a device, limits, exact resume; on digits, with a made profile."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune import engine, tasks
from edgeprune._version import __version__
from edgeprune.algorithms.scheduled import Scheduled
from edgeprune.device.profile import DeviceProfile, Fingerprint, Point, moments, read_profile, write_profile
from edgeprune.engine import checkpoint, federation
from edgeprune.engine.carrier import Delivery
from edgeprune.engine.emulation import shipped_profile
from edgeprune.engine.frames import Frame
from edgeprune.engine.planning import plan_fleet
from edgeprune.engine.resident import experiment_id
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import ProfileTimes, size_of
from edgeprune.pruning import ChannelGraph, ranking, scores

BASE = 200 << 20


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of ``digits`` whose times follow a plain law; what is tested is what is done with it."""
    task = tasks.get("digits")
    torch.manual_seed(0)
    model = task.make_model()
    graph = ChannelGraph.trace(model, task.example_inputs())
    order = ranking(graph, scores(model, graph, "l2"), 2)
    sizes = [size_of(graph, order.plan(w).counts) for w in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    points = tuple(
        Point(w, 1.0, 1.0, "global", s, 1 + 1e-5 * s.macs, 0.3 + 3e-6 * s.macs, 0.0, round(BASE + 10 * s.macs))
        for s in sizes
        for w in [s.widths[0]]
    )
    created, expires = moments()
    print_ = Fingerprint("made for a test", "x86_64", 1, None, None, {}, "0", 1)
    made = DeviceProfile(
        "digits", 32, print_, points, 1.0, created, expires, source="emulated", base_memory=BASE
    )  # fmt: skip
    path = tmp_path_factory.mktemp("profile") / "digits.json"
    write_profile(made, path)
    return path


def sets(profile: Path, **more: Any) -> list[str]:
    values = {
        "algorithm.name": "scheduled",
        "algorithm.interval": 4,
        "fleet.latency": str(profile),
        "fleet.devices": 5,
        "fleet.heterogeneity": 4.0,
        "fleet.noise": 0.0,
        "fleet.profile_noise": 0.0,
        "data.samples": 500,
        "run.rounds": 4,
        "run.evaluate_every": 100,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def run(out: Path, overrides: list[str]) -> list[dict[str, Any]]:
    engine.start(engine.prepare(engine.load_experiment(None, overrides)), out)
    return engine.RunDir(out).metrics()


def spread(record: dict[str, Any]) -> float:
    times = record["update_time_s"].values()
    return max(times) / min(times)


def test_the_first_round_is_balanced_already(profile: Path, tmp_path: Path) -> None:
    records = run(tmp_path / "a", sets(profile, run__rounds=1))
    plain = run(tmp_path / "b", sets(profile, run__rounds=1, algorithm__name="adaptcl"))
    assert spread(plain[0]) == pytest.approx(4.0, rel=0.05)
    assert spread(records[0]) < 1.25
    kept = list(records[0]["retention"].values())
    assert kept[0] == 1.0 and kept == sorted(kept, reverse=True) and kept[-1] < 0.6


def test_pruned_devices_are_planned_ahead_once_they_were_observed(profile: Path, tmp_path: Path) -> None:
    options = sets(profile, run__rounds=5, fleet__noise=0.1)
    plain = [record["retention"] for record in run(tmp_path / "a", options)]
    ahead = [record["retention"] for record in run(tmp_path / "b", [*options, "algorithm.first_margin=1.0"])]
    pruned = [name for name, kept in plain[0].items() if kept < 1]
    assert len(pruned) == 4 and all(ahead[0][name] < 0.97 * plain[0][name] for name in pruned)
    assert all(ahead[4][name] == pytest.approx(plain[4][name], rel=0.05) for name in pruned)
    until = {"algorithm__objective": "deadline", "algorithm__deadline_s": 2.0}
    deadline = sets(profile, run__rounds=1, fleet__noise=0.1, **until)
    given = [run(tmp_path / name, [*deadline, f"algorithm.first_margin={margin}"])[0]["retention"]
             for name, margin in (("c", 0.0), ("d", 1.0))]  # fmt: skip
    assert given[0] == given[1], "a deadline has its margin from the first round on"


def test_a_device_that_slows_down_is_given_less_before_the_next_stage(profile: Path, tmp_path: Path) -> None:
    options = sets(profile, run__rounds=5, algorithm__interval=50)
    options.append('fleet.event=[{device="device-2", round=2, slowdown=2.0}]')
    records = run(tmp_path / "a", options)
    kept = [record["retention"]["device-2"] for record in records]
    assert kept[0] == kept[1] == kept[2] > kept[3] == kept[4], "two odd rounds, then it is believed"
    assert spread(records[2]) > 1.7 and spread(records[4]) < 1.3


def test_a_resumed_run_is_the_same_run(profile: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", sets(profile, run__rounds=6, fleet__noise=0.05))
    run(tmp_path / "part", sets(profile, run__rounds=3, fleet__noise=0.05))
    engine.resume(tmp_path / "part", None, rounds=6)
    part = engine.RunDir(tmp_path / "part").metrics()
    for one, other in zip(part, whole, strict=True):
        for judged in (
            "accuracy",
            "loss",
            "client_accuracy",
            "calibration",
        ):  # the part was judged after its third round as well
            one.pop(judged), other.pop(judged)
    assert part == whole
    saved = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "part")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(tensor, saved[1][name]) for name, tensor in saved[0].items())


def test_the_record_says_whom_to_profile_again(profile: Path, tmp_path: Path) -> None:
    options = sets(profile, run__rounds=5, algorithm__interval=50)
    options.append('fleet.event=[{device="device-2", round=2, slowdown=2.0}]')
    prepared = engine.prepare(engine.load_experiment(None, options))
    algorithm, setting = prepared.experiment.algorithm, prepared.setting
    assert isinstance(algorithm, Scheduled)
    engine.start(prepared, tmp_path / "a")
    at = checkpoint.load(tmp_path / "a" / checkpoint.FILE, prepared.graph)
    (reasons,) = algorithm.facts(setting, at.state)["profile_again"].items()
    assert reasons[0] == "device-2" and "2.0" in reasons[1][0] and "what the profile promises" in reasons[1][0]


@pytest.mark.parametrize("algorithm", ["scheduled", "adaptcl"])
def test_a_device_takes_the_time_of_its_own_profile(profile: Path, tmp_path: Path, algorithm: str) -> None:
    """The same device eight times as slow, by a profile of its own: it is charged by that, and as it was promised."""
    measured, mine = read_profile(profile), tmp_path / "slow.json"
    points = tuple(replace(p, step_ms=8 * p.step_ms, inference_ms=8 * p.inference_ms) for p in measured.points)
    write_profile(replace(measured, points=points), mine)
    values = {"algorithm__name": algorithm, "run__rounds": 3, "algorithm__interval": 50}
    options = [item for item in sets(profile, **values) if "fleet.devices" not in item and "heterogen" not in item]
    options.append(f'fleet.device=[{{name="fast"}}, {{name="slow", profile="{mine}"}}]')
    records = run(tmp_path / "run", options)
    computed = {name: parts["compute"] for name, parts in records[0]["parts_s"].items()}
    if algorithm == "adaptcl":  # everybody trains everything
        assert computed["slow"] == pytest.approx(8 * computed["fast"], rel=1e-6)
    else:
        assert records[0]["retention"]["slow"] < 1.0 and spread(records[0]) < 1.3
        assert records[0]["retention"] == records[2]["retention"]
        assert not any(record["facts"].get("profile_again") for record in records)
    mine.unlink()
    write_profile(measured, mine)  # the file changes, the device does not
    engine.resume(tmp_path / "run", None, rounds=4)
    again = engine.RunDir(tmp_path / "run").metrics()[-1]["parts_s"]["slow"]["compute"]
    assert again > 4 * measured.points[0].step_ms * 1e-3 * 8
    if algorithm == "adaptcl":
        assert again == pytest.approx(computed["slow"], rel=1e-6)


def test_a_device_whose_profile_is_too_small_is_named(profile: Path, tmp_path: Path) -> None:
    measured, small = read_profile(profile), tmp_path / "small.json"
    write_profile(replace(measured, points=measured.points[:2]), small)
    options = [item for item in sets(profile) if "fleet.devices" not in item and "heterogen" not in item]
    options.append(f'fleet.device=[{{name="a"}}, {{name="b", profile="{small}"}}]')
    with pytest.raises(EdgePruneError, match="fleet.device 'b': .* holds 2 dense sizes"):
        engine.prepare(engine.load_experiment(None, options))


def test_a_slowdown_beside_a_profile_slows_the_link_alone(profile: Path, tmp_path: Path) -> None:
    """A profile's times are the device's own: it is charged what it promised, not that many times the slowdown."""
    options = [item for item in sets(profile) if "fleet.devices" not in item and "heterogen" not in item]
    options.append(f'fleet.device=[{{name="a"}}, {{name="b", slowdown=8.0, profile="{profile}"}}]')
    (tmp_path / "fleet.toml").write_text("")
    promised = {row["client"]: row for row in plan_fleet(tmp_path / "fleet.toml", options).rows}
    last = run(tmp_path / "run", options)[-1]["parts_s"]
    for name, row in promised.items():
        assert last[name]["compute"] == pytest.approx(row["compute_s"], rel=1e-6)
    assert last["b"]["upload"] > last["a"]["upload"]


def test_devices_with_data_of_their_own_are_planned_by_their_own_samples(profile: Path) -> None:
    """The server's parts say 100 samples each; the devices say 100 and 6,400: 4 and 200 steps of 32."""

    class Greeting:
        def __init__(self) -> None:
            self.sent: list[Delivery] = []

        def devices(self) -> list[str]:
            return ["device-0", "device-1"]

        def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
            about = {"edgeprune": __version__, "experiment": experiment_id(prepared.experiment)}
            about["samples"] = {"device-0": 100, "device-1": 6400}[device]
            self.sent.append(Delivery(device, Frame("hello", device, token, about).to_bytes(), token))

        def receive(self, seconds: float) -> list[Delivery]:
            found, self.sent = self.sent, []
            return found

    prepared = engine.prepare(engine.load_experiment(None, sets(profile, fleet__devices=2, data__samples=200)))
    assert [report.steps for report in prepared.setting.reports] == [4, 4]
    found, _ = federation._enrolled(prepared, Greeting(), 5, lambda _: None, True, monotonic)
    assert [report.steps for report in found.setting.reports] == [4, 200]
    assert found.setting.samples == {"device-0": 100, "device-1": 6400}


def test_a_new_profile_takes_the_place_of_what_was_learnt(profile: Path, tmp_path: Path) -> None:
    """device-2 became twice as slow and is believed to be; then it is profiled again, which says so itself."""
    mine = tmp_path / "device-2.json"
    measured = read_profile(profile)
    write_profile(measured, mine)
    options = [item for item in sets(profile, run__rounds=5, algorithm__interval=50) if "fleet.devices" not in item]
    options.append(f'fleet.device=[{{name="device-0"}}, {{name="device-2", profile="{mine}"}}]')
    options.append('fleet.event=[{device="device-2", round=2, slowdown=2.0}]')
    before = run(tmp_path / "a", options)[-1]["retention"]["device-2"]
    points = tuple(replace(p, step_ms=2 * p.step_ms, inference_ms=2 * p.inference_ms) for p in measured.points)
    write_profile(replace(measured, points=points, created=measured.expires), mine)
    engine.resume(tmp_path / "a", None, rounds=9)
    records = engine.RunDir(tmp_path / "a").metrics()
    assert records[5]["retention"]["device-2"] == before < 1.0
    # Nearly all of the factor is in the profile now (its link became slower as well), so the retention all but stays;
    # with the old factor of two on top of it, half of the channels would go.
    assert records[-1]["retention"]["device-2"] == pytest.approx(before, abs=0.1)
    prepared = engine.prepare(engine.load_experiment(tmp_path / "a" / "config.toml"))
    at = checkpoint.load(tmp_path / "a" / checkpoint.FILE, prepared.graph)
    assert at.state.memory["beliefs"]["device-2"][0] == pytest.approx(1.0, abs=0.15)


def test_a_temperature_limit(profile: Path, tmp_path: Path) -> None:
    hot = tmp_path / "hot.json"
    write_profile(replace(read_profile(profile), temperatures_c={"cpu": 71.0, "gpu": 83.0}), hot)
    fleet = tmp_path / "fleet.toml"

    def steps(limits: str) -> tuple[int, int]:
        fleet.write_text(f'[fleet]\n[[fleet.device]]\nname = "a"\nprofile = "hot.json"\n{limits}\n')
        (row,) = plan_fleet(fleet, [item for item in sets(profile) if not item.startswith("fleet.d")]).rows
        return row["steps"], row["steps_full"]

    whole = steps("")[1]
    assert steps("hottest_c = 95") == (whole, whole)
    assert steps("hottest_c = 85")[0] == math.floor(whole * 2 / 5), "two of the last five degrees are left"
    assert steps("hottest_c = 85\ntemperature_c = 60") == (whole, whole), "it has cooled down since"
    with pytest.raises(EdgePruneError, match="nobody can take part.*is at its limit of 80 C"):
        steps("hottest_c = 80")
    hot.write_bytes(profile.read_bytes())
    with pytest.raises(EdgePruneError, match="nothing has measured its temperature"):
        steps("hottest_c = 85")


def test_adaptcls_learner_can_take_over(profile: Path, tmp_path: Path) -> None:
    records = run(tmp_path / "a", sets(profile, algorithm__correct="learner", run__rounds=5))
    assert spread(records[0]) < 1.25 and spread(records[-1]) < 1.25


def test_a_run_in_which_nobody_could_train_is_refused(profile: Path, tmp_path: Path) -> None:
    late = sets(profile, algorithm__objective="deadline", algorithm__deadline_s=1e-6)
    with pytest.raises(EdgePruneError, match=r"nobody can take part; 'device-0' sits out: with 5% .* longer deadline"):
        run(tmp_path / "a", late)
    assert not (tmp_path / "a").exists()


def test_the_learner_refuses_whom_it_would_have_to_leave_out(profile: Path, tmp_path: Path) -> None:
    options = [item for item in sets(profile, algorithm__correct="learner") if "fleet.devices" not in item]
    options.append('fleet.device=[{name="a"}, {name="b", memory_mib=1}]')
    with pytest.raises(EdgePruneError, match=r"'b' sits out: even 5% .* leaves nobody out; use .*'profile'"):
        run(tmp_path / "a", options)
    assert not (tmp_path / "a").exists()


def test_the_learner_asks_for_no_more_than_fits(profile: Path, tmp_path: Path) -> None:
    options = [item for item in sets(profile, algorithm__interval=2, run__rounds=5) if "fleet.devices" not in item]
    options.append('fleet.device=[{name="a", slowdown=2.0}, {name="b", memory_mib=210}]')  # b is idle half of the time
    kept = {}
    for name, memory in (("limited", "210"), ("free", "100000")):
        free = [item.replace("210", memory) for item in options]
        records = run(tmp_path / name, [*free, 'algorithm.correct="learner"'])
        kept[name] = [record["retention"]["b"] for record in records]
    assert kept["free"][0] == 1.0 and max(kept["limited"]) == kept["limited"][0] < 0.9
    assert len(set(kept["limited"])) == 1, "what fits is known before the first round"


def test_limits_and_absence(profile: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        "[fleet]\nnoise = 0.0\nprofile_noise = 0.0\n"
        '[[fleet.device]]\nname = "a"\n'
        f'[[fleet.device]]\nname = "b"\nmemory_mib = {200 + 10}\n'
        '[[fleet.device]]\nname = "c"\nslowdown = 2.0\n'
        '[[fleet.device]]\nname = "d"\nmemory_mib = 100\n'
    )
    options = [item for item in sets(profile) if not item.startswith("fleet.") or "latency" in item]
    found = plan_fleet(fleet, options)
    rows = {row["client"]: row for row in found.rows}
    assert rows["a"]["retention"] == 1.0 and "fastest" in rows["a"]["why"]
    assert rows["b"]["memory_mib"] <= 210 and "fits in 210 MiB" in rows["b"]["why"]
    assert rows["c"]["retention"] < 1.0 and "the whole model takes" in rows["c"]["why"]
    assert not rows["d"]["takes_part"] and "more than its memory" in rows["d"]["why"]
    assert found.facts["participants"] == 3 and found.facts["whole_spread"] == pytest.approx(2.0, rel=0.05)
    experiment = engine.load_experiment(fleet, options)
    engine.start(engine.prepare(experiment), tmp_path / "run")
    records = engine.RunDir(tmp_path / "run").metrics()
    assert all(record["participants"] == ["a", "b", "c"] for record in records)


def test_a_deadline_is_kept_with_fewer_steps(profile: Path, tmp_path: Path) -> None:
    free = run(tmp_path / "free", sets(profile, run__rounds=1))
    deadline = 0.5 * free[0]["time_s"]
    records = run(
        tmp_path / "a",
        sets(
            profile,
            run__rounds=2,
            algorithm__objective="deadline",
            algorithm__deadline_s=deadline,
            algorithm__gamma_min=0.5,
        ),
    )
    for record in records:
        assert record["participants"]
        # Bytes and rebuilding are estimated: a few per cent over the deadline is what that costs.
        assert max(record["update_time_s"].values()) < 1.05 * deadline


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf])
def test_a_first_margin_that_is_none(margin: float) -> None:
    with pytest.raises(EdgePruneError, match=r"algorithm\.first_margin is"):
        Scheduled(objective="deadline", deadline_s=3.0, first_margin=margin)


def test_without_a_profile_it_says_what_to_do(profile: Path) -> None:
    options = [item for item in sets(profile) if "latency" not in item]
    prepared = engine.prepare(engine.load_experiment(None, options))
    assert prepared.setting.reports == ()
    with pytest.raises(EdgePruneError, match="needs a profile of every client"):
        prepared.experiment.algorithm.init(prepared.setting, prepared.model.state_dict())


def test_a_profile_of_another_task_is_refused(profile: Path) -> None:
    options = [*sets(profile), 'fleet.device=[{name="a", profile="' + str(profile) + '"}]', "algorithm.batch_size=16"]
    with pytest.raises(EdgePruneError, match="batches of 32"):
        engine.prepare(engine.load_experiment(None, options))


def test_the_shipped_profile_is_asked_for_by_name() -> None:
    options = ["fleet.latency=profile", "algorithm.name=adaptcl", "data.samples=500"]
    prepared = engine.prepare(engine.load_experiment(None, options))
    assert isinstance(prepared.table, ProfileTimes) and prepared.table.task == "digits"
    with pytest.raises(EdgePruneError, match="none ships for 'mine'"):
        shipped_profile("mine")
