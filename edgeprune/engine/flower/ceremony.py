"""Flower's processes and settings: found beside this Python, started with telemetry and installers off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeprune.engine.children import Child
from edgeprune.errors import EdgePruneError

LEAST = (1, 41)  # earlier ones have other addresses and other options
LINK = "edgeprune"  # the SuperLink's name in Flower's configuration

APP = """\
[project]
name = "edgeprune-run"
version = "1.0.0"
description = "Names the apps; their code is the edgeprune that is installed."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "edgeprune"

[tool.flwr.app.components]
serverapp = "edgeprune.engine.flower.server:app"
clientapp = "edgeprune.engine.flower.client:app"

[tool.flwr.app.config]
folder = ""
"""


def check() -> None:
    """Refuse to begin without Flower, or with one too old."""
    if sys.version_info < (3, 11):
        raise EdgePruneError("flower: it needs Python 3.11 or newer here; use --engine flare")
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise EdgePruneError("flower: it is not installed; pip install 'edgeprune[flower]'") from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST:
        raise EdgePruneError(
            f"flower: version {version} is too old; install flwr {LEAST[0]}.{LEAST[1]} or newer (Python 3.11 "
            "or newer), or use --engine flare"
        )


def environment(home: Path) -> dict[str, str]:
    """What every Flower process is started with: its files in ``home``, no telemetry, no look for updates, and its
    other programs from beside this Python."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # A user's own task is looked for where we were started.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")])),
        "PYTHONWARNINGS": "ignore",
    }


def program(name: str) -> str:
    """Flower's ``name`` beside this Python."""
    path = Path(sys.executable).parent / name
    found = str(path) if path.is_file() else shutil.which(name)
    if found is None:
        raise EdgePruneError(f"flower: its program {name!r} is not installed; pip install 'edgeprune[flower]'")
    return found


def superlink(folder: Path, port: int) -> Child:
    """The server's process, on loopback alone; the network sees it through the gate."""
    command = [program("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.pem"]
    command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    return Child("the SuperLink", command, folder / "superlink.log", environment(folder / "flower"), cwd=folder)


def supernode(folder: Path, address: str, authority: Path, key: Path, worker: Path, port: int) -> Child:
    """A device's process; started again whenever it ends."""
    command = [program("flower-supernode"), "--superlink", address, "--root-certificates", str(authority)]
    command += ["--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--node-config", f'worker="{worker}"']
    env = environment(folder / "flower")
    return Child("the SuperNode", command, folder / "supernode.log", env, restart_s=2.0, cwd=folder)


class Control:
    """The SuperLink's control, by Flower's own command line, over loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._env = {**os.environ, **environment(folder / "flower")}
        link = f'[superlink.{LINK}]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{folder}/ca.pem"\n'
        (folder / "flower" / "config.toml").write_text(f'[superlink]\ndefault = "{LINK}"\n\n{link}', encoding="utf-8")

    def register(self, public_key: Path) -> int:
        """The node that holds this key from now on."""
        return int(self._flwr("supernode", "register", str(public_key), LINK)["node-id"])

    def start(self) -> str:
        """Start the run whose orders are in the folder; its number."""
        app = self._folder / "app"
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(APP, encoding="utf-8")
        options = json.dumps(str(self._folder))
        return str(self._flwr("run", str(app), LINK, "--run-config", f"folder={options}")["run-id"])

    def status(self, run: str) -> str:
        """The run's state in Flower's words."""
        runs = self._flwr("ls", LINK)["runs"]
        return next((str(one["status"]) for one in runs if str(one["run-id"]) == run), "unknown")

    def _flwr(self, *arguments: str) -> Mapping[str, Any]:
        command = [program("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command, env=self._env, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            raise EdgePruneError(f"flower: 'flwr {arguments[0]}' did not answer within 120 s") from None
        start = done.stdout.find("{")
        try:
            found = json.loads(done.stdout[start:])
        except ValueError:
            found = {}
        if done.returncode or not found.get("success"):
            said = " ".join((done.stdout + done.stderr).split())[-300:]
            raise EdgePruneError(f"flower: 'flwr {' '.join(arguments[:2])}' failed: {said}")
        return found
