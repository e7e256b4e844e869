"""A device's side of a federation: its resident worker, and the engine's node in front of it."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgeprune.engine.children import Child, Children, wait_for
from edgeprune.engine.kits import AUTHORITY, EXPERIMENT, KEY, STARTUP, Kit, read_kit
from edgeprune.engine.locks import alone
from edgeprune.engine.ports import free_port
from edgeprune.errors import EdgePruneError

TRIES, REFUSED_S = 4, 90.0  # a node that ended so often within so many seconds is turned away, a worker gives up
TEND_S = 0.5
SOCKET_BYTES = 100  # of a Unix socket's path
LOG = "worker.log"


def join(
    folder: Path,
    data_dir: str | Path | None,
    state: Path,
    *,
    own: bool,
    idle_s: float,
    say: Callable[[str], None],
    power: str = "auto",
    nice: int = 0,
) -> None:
    """Take part with the kit in ``folder`` until the server says that it is over, or has not been heard of for
    ``idle_s`` seconds.

    ``state``: where the worker keeps what must survive; ``own``: all training data in ``data_dir`` are this device's;
    ``power``: where its figures come from (device.power.SOURCES).
    """
    kit = read_kit(folder)
    options = [f"--idle={idle_s}", f"--power={power}"]
    options += ([f"--data={data_dir}"] if data_dir else []) + (["--own"] if own else [])
    with ExitStack() as held:
        try:
            state.mkdir(parents=True, exist_ok=True)
            held.enter_context(
                alone(state, f"{state}: another 'edgeprune join' works there; stop it, or give a --state of its own")
            )
            (state / LOG).open("ab").close()
            socket = _socket(state)
            socket.unlink(missing_ok=True)  # of a worker that was killed: it says nothing of the new one
        except OSError as error:
            raise EdgePruneError(f"{state}: cannot be written ({error.strerror}); choose another --state") from None
        held.callback(socket.unlink, missing_ok=True)
        _take_part(kit, folder, state, socket, _worker(kit, folder, state, socket, options, nice), say)
    say(f"{kit.name}: the federation is over")


def _take_part(
    kit: Kit,
    folder: Path,
    state: Path,
    socket: Path,
    worker: Child,
    say: Callable[[str], None],
) -> None:
    """Worker and node, until the worker ends by itself."""
    with Children() as children:
        children.start(worker)
        while not wait_for(socket.is_socket, 1.0, worker):
            pass  # however long it loads its data
        say(f"{kit.name}: the worker is ready (log {worker.log})")
        node = _node(kit, folder, state, socket)
        children.start(node)
        say(f"{kit.name}: looking for the server at {kit.address} with {kit.engine} (log {node.log})")
        nodes, workers = _Starts(node), _Starts(worker)
        while worker.status() != 0:
            worker.check()
            worker.tend()
            node.tend()
            if nodes.too_many():
                raise EdgePruneError(
                    f"{kit.name}: the server turns this device away; is the kit of this run, and on this device "
                    f"alone? (log {node.log})"
                )
            if workers.too_many():
                raise EdgePruneError(f"{worker.name} ends again and again: {worker.last_line()}")
            time.sleep(TEND_S)


class _Starts:
    """When a child was started."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._at = [time.monotonic()]

    def too_many(self) -> bool:
        """Whether it was started again more than TRIES times within REFUSED_S seconds; asked after each look at it."""
        if self._child.starts == len(self._at):
            return False
        self._at.append(time.monotonic())
        return len(self._at) > TRIES and self._at[-1] - self._at[-1 - TRIES] < REFUSED_S


def _worker(kit: Kit, folder: Path, state: Path, socket: Path, options: Sequence[str], nice: int) -> Child:
    command = [sys.executable, "-m", "edgeprune.engine.resident", "--experiment", str(folder / EXPERIMENT)]
    command += [f"--client={kit.name}", "--socket", str(socket), "--state", str(state), *options]
    if nice:
        command = ["nice", "-n", str(nice), *command]
    return Child(f"the worker (log {state / LOG})", command, state / LOG, restart_s=1.0)


def _node(kit: Kit, folder: Path, state: Path, socket: Path) -> Child:
    if kit.engine == "flower":
        from edgeprune.engine.flower import ceremony

        ceremony.check()
        authority, key = (folder / AUTHORITY).resolve(), (folder / KEY).resolve()
        return ceremony.supernode(state.resolve(), kit.address, authority, key, socket.resolve(), free_port())
    if kit.engine == "flare":
        from edgeprune.engine.flare import ceremony as flare

        flare.check()
        return flare.client(state.resolve(), kit.name, (folder / STARTUP).resolve(), socket.resolve())
    raise EdgePruneError(f"kit of {kit.name!r}: unknown engine {kit.engine!r}; install the server's version here")


def _socket(state: Path) -> Path:
    """In ``state``; where that path is too long for a socket, in the user's run-time folder."""
    path = state.resolve() / "worker.sock"
    if len(str(path).encode()) <= SOCKET_BYTES:
        return path
    base = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp"))
    folder = base / f"edgeprune-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EdgePruneError(f"{folder}: belongs to somebody else; give a shorter --state")
    return folder / f"{hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]}.sock"
