"""Experiments: complete round trips, overrides, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.algorithms.adaptcl import AdaptCL
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import build_fleet


def test_the_built_in_experiment_is_the_defaults():
    assert load_experiment(None) == Experiment()


def test_written_file_reads_back_equal(tmp_path):
    experiment = load_experiment(
        None,
        [
            "algorithm.name=fedavg",
            "run.rounds=20",
            "fleet.noise=0",
            "data.partition=dirichlet",
            'fleet.event=[{device="device-1", round=4, slowdown=2.0}]',
        ],
    )
    assert experiment.algorithm == FedAvg() and experiment.run.rounds == 20 and experiment.fleet.noise == 0.0
    path = tmp_path / "config.toml"
    path.write_text(experiment.to_toml())
    assert load_experiment(path) == experiment
    assert "patience" in path.read_text()  # complete: defaults are written too


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["data.alpha=0.1"], "data.alpha has no effect with partition 'iid'.*set data.partition to 'dirichlet'"),
        (["data.per_client=3"], "data.per_client has no effect.*to 'shards' or 'classes'"),
    ],
)
def test_a_key_of_a_partition_that_was_not_asked_for_is_refused(sets, sentence):
    with pytest.raises(EdgePruneError, match=sentence):
        load_experiment(None, sets)
    assert load_experiment(None, [*sets, "data.partition=subject"]).data.partition == "subject"  # as put over a file


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text("[run]\nrounds = 7\n", encoding="utf-8-sig")
    assert load_experiment(path).run.rounds == 7


def test_set_wins_over_the_file(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text('[algorithm]\nname = "adaptcl"\ninterval = 5\n[run]\nrounds = 7\n')
    experiment = load_experiment(path, ["run.rounds=9", "algorithm.gamma_min=0.2"])
    assert experiment.algorithm == AdaptCL(interval=5, gamma_min=0.2) and experiment.run.rounds == 9


def test_fleet_file_is_read_beside_the_experiment_and_written_out(tmp_path):
    (tmp_path / "fleet.toml").write_text('[fleet]\nnoise = 0.2\n[[fleet.device]]\nname = "nano"\nslowdown = 4.0\n')
    (tmp_path / "e.toml").write_text('[fleet]\nfile = "fleet.toml"\nnoise = 0.1\n')
    fleet = load_experiment(tmp_path / "e.toml").fleet
    assert fleet.file == "" and fleet.noise == 0.1 and fleet.device == ({"name": "nano", "slowdown": 4.0},)


def test_files_are_found_from_the_file_that_names_them(tmp_path):
    (tmp_path / "fleets").mkdir()
    (tmp_path / "fleets" / "fleet.toml").write_text(
        '[fleet]\nlatency = "times.json"\n[[fleet.device]]\nname = "nano"\nprofile = "nano.json"\n'
    )
    path = tmp_path / "e.toml"
    path.write_text('[fleet]\nfile = "fleets/fleet.toml"\n')
    inside = load_experiment(path).fleet
    assert inside.latency == str((tmp_path / "fleets" / "times.json").resolve())
    assert inside.device[0]["profile"] == str((tmp_path / "fleets" / "nano.json").resolve())
    path.write_text('[fleet]\nfile = "fleets/fleet.toml"\nlatency = "own.json"\n')
    assert load_experiment(path).fleet.latency == str((tmp_path / "own.json").resolve())


@pytest.mark.parametrize("text", ["fleet = 3\n", "[[fleet]]\nnoise = 0.2\n", "[fleet]\nfile = 'another.toml'\n"])
def test_a_fleet_file_that_holds_no_fleet_is_one_sentence(tmp_path, text):
    (tmp_path / "fleet.toml").write_text(text)
    (tmp_path / "e.toml").write_text('[fleet]\nfile = "fleet.toml"\n')
    with pytest.raises(EdgePruneError, match="fleet.toml: .fleet. must be a table that names no further file"):
        load_experiment(tmp_path / "e.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tsak]\n", "unknown section [tsak]; did you mean 'task'"),
        ("[run]\nround = 3\n", "run: unknown key 'round'; did you mean 'rounds'"),
        ("[run]\nrounds = 'three'\n", "run.rounds must be a whole number, got 'three'"),
        ("[run]\nrounds = 3.5\n", "run.rounds must be a whole number"),
        ("[run]\nrounds = true\n", "run.rounds must be a whole number"),
        ("[run]\nrounds = 0\n", "run.rounds is 0"),
        ("[run]\nengine = 'flour'\n", "unknown engine 'flour'"),
        ("[algorithm]\nname = 'adaptlc'\n", "unknown algorithm 'adaptlc'; did you mean 'adaptcl'"),
        ("[algorithm]\nname = 3\n", "algorithm.name must be a string"),
        ("[algorithm]\ngama_min = 0.1\n", "algorithm: unknown key 'gama_min'; did you mean 'gamma_min'"),
        ("[algorithm]\ngamma_min = 0.0\n", "algorithm.gamma_min is 0.0"),
        ("[algorithm]\ninterval = 0\n", "algorithm.interval is 0"),
        ("[algorithm]\nmerge_by = 'units'\n", "did you mean 'unit'"),
        ("[algorithm]\nmerge_rule = 'medain'\n", "did you mean 'median'"),
        ("[algorithm]\nclip_norm = -1\n", "algorithm.clip_norm is -1"),
        ("[algorithm]\nname = 'fedavg'\ntrim = 0.5\n", "algorithm.trim is 0.5"),
        ("[algorithm]\nalpha = nan\n", "not a number"),
        ("[algorithm]\nbn_l1 = 1e300\n", "algorithm.bn_l1 is 1e+300; give 1e+30 or less"),
        ("[algorithm]\nname = 'fedavg'\nprox = 1e300\n", "algorithm.prox is 1e+300"),
        ("[algorithm]\nname = 'cos2p'\npull = 1e300\n", "algorithm.pull is 1e+300; give 1e+30 or less"),
        ('[fleet]\nlatency = "a\\u0000b"\n', "fleet.latency is 'a\\x00b', which holds a NUL character"),
        ('[fleet]\nfile = "a\\u0000b"\n', "fleet.file is 'a\\x00b', which holds a NUL character"),
        ('[[fleet.device]]\nname = "a"\nprofile = "a\\u0000b"\n', "fleet.device.profile is 'a\\x00b'"),
        ("task = 3\n", "[task] must be a table"),
        ("[run\n", "not a TOML file"),
        (f"[run]\nseed = {'9' * 5000}\n", "not a TOML file"),
        ("[fleet]\nfile = 'nowhere.toml'\n", "nowhere.toml: cannot be read"),
        ("[fleet]\ndevice = 3\n", "fleet.device must be a list"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "e.toml"
    path.write_text(text)
    with pytest.raises(EdgePruneError) as caught:
        load_experiment(path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("item", ["run.rounds", "rounds=3", "run.rounds.x=3", "=3", "run.=3"])
def test_a_malformed_set_is_one_sentence(item):
    with pytest.raises(EdgePruneError, match="section.key=value"):
        load_experiment(None, [item])


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(EdgePruneError, match="cannot be read"):
        load_experiment(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_describes_a_fleet_that_can_be_built(path):
    experiment = load_experiment(path)
    assert build_fleet(experiment.fleet).names
