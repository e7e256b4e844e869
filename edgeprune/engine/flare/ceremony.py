"""FLARE's processes and settings: provisioned with its own tool, on the devices nothing but our executor allowed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from edgeprune.engine.children import Child
from edgeprune.errors import EdgePruneError

T = TypeVar("T")
LEAST = (2, 9)
PROJECT, ADMIN = "edgeprune", "admin@edgeprune.local"
POLL_S = 0.1  # how often a device asks for a task
LEAD = "edgeprune.engine.flare.server.Lead"
FORWARD = "edgeprune.engine.flare.device.Forward"
LOGIN_S, ANSWER_S = 60.0, 30.0


def check() -> None:
    """Refuse to begin without FLARE, or with one too old."""
    try:
        version = metadata.version("nvflare")
    except metadata.PackageNotFoundError:
        raise EdgePruneError("flare: it is not installed; pip install 'edgeprune[flare]'") from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST:
        raise EdgePruneError(f"flare: version {version} is too old; pip install 'nvflare>={LEAST[0]}.{LEAST[1]}'")


def provision(folder: Path, host: str, port: int, names: Sequence[str]) -> None:
    """Certificates and start-up kits of server, devices and administrator, once, into ``folder``."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise EdgePruneError(f"fleet.device {name!r}: FLARE takes letters, digits, '.', '-' and '_' in a name only")
    if kit(folder, ADMIN).is_dir():
        return
    work = folder / "provision"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    project = {
        "api_version": 4,
        "name": PROJECT,
        "description": "an edgeprune federation",
        "participants": [
            {
                "name": host,
                "type": "server",
                "org": PROJECT,
                "fed_learn_port": port,
                "admin_port": port,
                "host_names": sorted({host, "localhost"}),
                "default_host": host,
            },
            *({"name": name, "type": "client", "org": PROJECT} for name in names),
            {"name": ADMIN, "type": "admin", "org": PROJECT, "role": "project_admin"},
        ],
        "builders": [
            {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder"},
            {
                "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": "tcp"},
            },
            {"path": "nvflare.lighter.impl.cert.CertBuilder"},
            {"path": "nvflare.lighter.impl.signature.SignatureBuilder"},
        ],
    }
    (work / "project.yml").write_text(json.dumps(project), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "out"]
    done = subprocess.run(command, cwd=work, env=_environment(), capture_output=True, text=True, check=False)
    made = work / "out" / PROJECT / "prod_00"
    if done.returncode or not (made / ADMIN).is_dir():
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise EdgePruneError(f"flare: provisioning failed: {said}")
    for one in (host, *names, ADMIN):
        target = kit(folder, "server" if one == host else one)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(made / one, target)
        for path in (target / "startup").glob("*.key"):
            path.chmod(0o600)
    # The authority's key signs nobody else: new devices need new kits.
    shutil.rmtree(work)


def kit(folder: Path, name: str) -> Path:
    """The start-up kit of ``name`` ("server" is the server's)."""
    return folder / "flare" / name


def allow_only(workspace: Path, what: Sequence[str], storage: Path | None = None) -> None:
    """Of FLARE's components that a job may name, this site runs ``what``: no other code can be sent to it.

    ``storage``: where the server keeps jobs, in place of a folder that everybody may write.
    """
    local = workspace / "local"
    text = (local / "resources.json.default").read_text(encoding="utf-8")
    if storage is not None:
        text = text.replace("/tmp/nvflare", str(storage))
    resources = json.loads(text)
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = list(what)
    # What FLARE would send home of a device's logs stays there.
    resources["allow_log_streaming"] = False
    resources["components"] = [one for one in resources["components"] if one["id"] != "site_log_streamer"]
    (local / "resources.json").write_text(json.dumps(resources, indent=1), encoding="utf-8")
    rights = json.loads((local / "authorization.json.default").read_text(encoding="utf-8"))
    for role in rights.get("permissions", {}).values():
        if isinstance(role, dict):
            role["byoc"] = "none"
    (local / "authorization.json").write_text(json.dumps(rights, indent=1), encoding="utf-8")


def server(folder: Path) -> Child:
    """The server's process; it starts another for the job, which leads the run."""
    workspace = kit(folder, "server")
    allow_only(workspace, [LEAD], folder / "flare" / "storage")
    command = [sys.executable, "-u", "-m", "nvflare.private.fed.app.server.server_train", "-m", str(workspace)]
    command += ["-s", "fed_server.json", "--set", "secure_train=true", f"org={PROJECT}", "config_folder=config"]
    env = {**_environment(), "EDGEPRUNE_FEDERATION": str(folder)}
    return Child("the FLARE server", command, folder / "flare-server.log", env, cwd=workspace)


def client(state: Path, name: str, startup: Path, worker: Path) -> Child:
    """A device's process; started again whenever it ends. ``startup``: its kit, copied to where it may write."""
    workspace = state / "flare"
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(startup, workspace)
    allow_only(workspace, [FORWARD])
    command = [sys.executable, "-u", "-m", "nvflare.private.fed.app.client.client_train", "-m", str(workspace)]
    command += ["-s", "fed_client.json", "--set", "secure_train=true", f"uid={name}", f"org={PROJECT}"]
    command += ["config_folder=config"]
    env = {**_environment(), "EDGEPRUNE_WORKER": str(worker)}
    return Child("the FLARE client", command, state / "flare.log", env, restart_s=3.0, cwd=workspace)


class Control:
    """The server's control, by FLARE's own API with the administrator's certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        end = time.monotonic() + LOGIN_S
        while True:
            try:
                self._session = self._login()
                return
            except Exception as error:  # its own types, by the state of the server
                if time.monotonic() > end:
                    raise EdgePruneError(f"flare: cannot log in to the server ({error})") from None
                time.sleep(1.0)

    def _login(self) -> Any:
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        return new_secure_session(ADMIN, str(kit(self._folder, ADMIN)), timeout=5.0, command_timeout=ANSWER_S)

    def _ask(self, what: Callable[[Any], T], otherwise: T) -> T:
        """``what`` of the session; a server that asks a dead device of its state may not answer in time."""
        try:
            return what(self._session)
        except Exception:  # its own types, by the state of the server; the next time may be better
            with contextlib.suppress(Exception):
                self.close()
                self._session = self._login()
            return otherwise

    def connected(self) -> list[str]:
        """The devices that the server hears of."""
        return self._ask(lambda session: [one.name for one in session.get_system_info().client_info], [])

    def start(self, names: Sequence[str]) -> str:
        """Start the run whose orders are in the folder; its number."""
        job = self._folder / "flare" / "job"
        shutil.rmtree(job, ignore_errors=True)
        config = job / "app" / "config"
        config.mkdir(parents=True)
        meta = {
            "name": PROJECT,
            "resource_spec": {},
            "min_clients": len(names),
            "mandatory_clients": list(names),
            "deploy_map": {"app": ["@ALL"]},
        }
        _write(job / "meta.json", meta)
        lead = {"id": "lead", "path": LEAD, "args": {}}
        _write(
            config / "config_fed_server.json",
            {"format_version": 2, "server": {"task_request_interval": POLL_S}, "workflows": [lead], "components": []},
        )
        forward = {"tasks": ["*"], "executor": {"path": FORWARD, "args": {}}}
        _write(
            config / "config_fed_client.json",
            {
                "format_version": 2,
                "default_task_fetch_interval": POLL_S,
                "executors": [forward],
                "components": [],
                "task_data_filters": [],
                "task_result_filters": [],
            },
        )
        return str(self._session.submit_job(str(job)))

    def strays(self, run: str) -> list[str]:
        """Devices that are connected and do not take part in the job: their process died, and FLARE starts a job on a
        device only when it starts the job."""
        status: list[dict[str, Any]] = self._ask(lambda session: session.get_client_job_status() or [], [])
        idle = {str(one.get("client_name")) for one in status if one.get("status") == "no_jobs"}
        taking_part = {str(one.get("client_name")) for one in status if one.get("job_id") == run}
        return sorted(idle - taking_part)

    def abort(self, run: str) -> None:
        """End the job."""
        self._ask(lambda session: session.abort_job(run), None)

    def status(self, run: str) -> str:
        """The job's state in FLARE's words."""
        return self._ask(lambda session: str(session.get_job_meta(run).get("status", "unknown")), "unknown")

    def close(self) -> None:
        """Log out."""
        with contextlib.suppress(Exception):
            self._session.close()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _environment() -> dict[str, str]:
    """This Python's programs first; a user's own task is looked for where we were started."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")])),
    }
