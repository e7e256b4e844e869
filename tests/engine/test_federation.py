"""The real engines on loopback, by our own command line: where they are installed (scripts/engines)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import engines
import pytest
import safetensors.torch
import torch

from edgeprune import engine as local_engine
from edgeprune.cli import COMMANDS, main
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import load_experiment
from edgeprune.engine.children import wait_for
from edgeprune.engine.kits import Federation, Kit, read_kit, split_address, write_kits
from edgeprune.engine.ports import free_port
from edgeprune.errors import EdgePruneError

SETS = [
    "run.rounds=4",
    "data.samples=200",
    "fleet.devices=2",
    "run.evaluate_every=4",
    "run.deadline_s=120",
    "algorithm.name=fedavg",
    "algorithm.upload=int8",
    "algorithm.feedback=true",
]


def weights(path):
    every = safetensors.torch.load_file(path / checkpoints.FILE)
    return {name: tensor for name, tensor in every.items() if ":" not in name}


def rounds(out):
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize("engine", ["flower", "flare"])
def test_an_engine_gives_the_same_model_through_a_kill_of_its_server(engine, tmp_path):
    if engines.python_with(engine) is None:
        pytest.skip(engines.why_not(engine))
    out, log = tmp_path / "run", tmp_path / "log"
    address = f"127.0.0.1:{free_port()}"
    common = ["--engine", engine, "--address", address, "--out", str(out), "--wait", "120"]
    sets = [part for item in SETS for part in ("--set", item)]
    started = [engines.start(engine, log, "serve", *common, *sets)]
    try:
        kits = [Federation(tmp_path / "run.federation").kit(name) for name in ("device-0", "device-1")]
        assert wait_for(lambda: all((kit / "kit.toml").is_file() for kit in kits), 90), log.read_text()
        carried = [Path(shutil.move(kit, tmp_path / f"carried-{kit.name}")) for kit in kits]  # and not left behind
        started += [engines.start(engine, log, "join", str(kit), "--idle", "200") for kit in carried]
        assert wait_for(lambda: rounds(out) >= 1, 150), log.read_text()
        started[0].kill()
        started[0].wait()
        port = split_address(address)[1]
        assert wait_for(lambda: not taken(port), 30), "what it started ends with it"
        assert not (out / "summary.json").exists()
        started[0] = engines.start(engine, log, "serve", "--resume", *common)
        assert started[0].wait(240) == 0, log.read_text()
        assert not any(kit.exists() for kit in kits), "a kit that was carried away is not made again"
        assert [process.wait(90) for process in started[1:]] == [0, 0], log.read_text()
    finally:
        engines.stop(started)
    experiment = load_experiment(out / "config.toml")
    assert experiment.run.engine == engine
    alone = replace(experiment, run=replace(experiment.run, engine="local"))
    local_engine.start(local_engine.prepare(alone), tmp_path / "local")
    expected, got = weights(tmp_path / "local"), weights(out)
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def taken(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_key_that_was_not_registered_does_not_get_in(tmp_path):
    if engines.python_with("flower") is None:
        pytest.skip(engines.why_not("flower"))
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    out, log = tmp_path / "run", tmp_path / "log"
    sets = [part for item in SETS for part in ("--set", item)]
    address = f"127.0.0.1:{free_port()}"
    server = engines.start("flower", log, "serve", "--engine", "flower", "--address", address, "--out", str(out), *sets)
    started = [server]
    try:
        kit = Federation(tmp_path / "run.federation").kit("device-0")
        assert wait_for(lambda: (kit / "kit.toml").is_file(), 90), log.read_text()
        key = kit / "device.key"
        key.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
        assert wait_for(lambda: "waiting for the devices" in log.read_text(), 90), log.read_text()
        own = tmp_path / "own.log"
        started.append(engines.start("flower", own, "join", str(kit), "--idle", "100"))
        assert started[1].wait(110) == 1, own.read_text()
        assert "the server turns this device away" in own.read_text()
        assert "device-0 is here" not in log.read_text()
    finally:
        engines.stop(started)


# --- mistakes, which need no engine ----------------------------------------------------------------------------------


def run(monkeypatch, capsys, cwd, *arguments):
    """Exit status and what was said, in this process."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr("sys.argv", ["edgeprune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def test_the_commands_are_there():
    assert {"serve", "join"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["join", "nowhere"], "not a kit"),
        (["serve", "--out", "x", "--engine", "flare", "--address", "here"], "write it as host:port"),
        (["serve", "--out", "x", "--engine", "flwr"], "'flwr' is not one of 'flare', 'flower'"),
        (["serve", "--out", "x", "--resume", "--engine", "flare"], "not a run directory"),
        (
            ["serve", "--out", "x", "--engine", "flare", "--set", 'fleet.fault=[{device="device-0",kind="nan"}]'],
            "for the virtual clock",
        ),
        (["run", "--set", "run.engine=flower", "--out", "x"], "start it with 'edgeprune serve'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    status, said = run(monkeypatch, capsys, tmp_path, *arguments)
    assert status in (1, 2) and sentence in said and said.count("\n") == 1, said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("module", ["edgeprune.cli.join", "edgeprune.engine.join", "edgeprune.engine.frames"])
def test_what_waits_on_a_device_beside_the_worker_stays_small(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("address", ["", "host", ":9000", "host:", "host:0", "host:70000", "host:x", "host:²"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(EdgePruneError, match="host:port"):
        split_address(address)


def test_a_kit_of_another_version_is_refused(tmp_path):
    import tomli_w

    told = {"name": "a", "engine": "flower", "address": "127.0.0.1:9", "edgeprune": "0.0.9"}
    (tmp_path / "kit.toml").write_text(tomli_w.dumps(told))
    with pytest.raises(EdgePruneError, match="install the server's version here"):
        read_kit(tmp_path)
    (tmp_path / "kit.toml").write_text(tomli_w.dumps({**told, "extra": 1}))
    with pytest.raises(EdgePruneError, match="copy the kit again"):
        read_kit(tmp_path)
    (tmp_path / "kit.toml").write_text(tomli_w.dumps({k: v for k, v in told.items() if k != "edgeprune"}))
    assert read_kit(tmp_path) == Kit("a", "flower", "127.0.0.1:9")


def test_kits_that_are_refused_leave_the_run_of_the_old_ones_its_experiment(tmp_path):
    """Another server may be waiting for its devices there."""
    own = Federation(tmp_path)
    own.private.mkdir()
    (own.private / "experiment.toml").write_text("of the other")
    for said, sentence in (
        ('{"engine": "flower", "address": "127.0.0.1:9"}', "its kits were made for .*127.0.0.1:9.*; delete the folder"),
        ('{"engine"', "address.json: cannot be read"),
    ):
        (own.private / "address.json").write_text(said)
        with pytest.raises(EdgePruneError, match=sentence):
            write_kits(own, load_experiment(None), "flower", "127.0.0.1:10")
        assert (own.private / "experiment.toml").read_text() == "of the other"
