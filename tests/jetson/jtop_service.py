"""The real service of jetson-stats on an emulated board, in a mount namespace of its own. Needs root, Linux, unshare.

Only /run/jtop.sock is shared with the machine (its place is fixed), so one service at a time: a lock sees to it. A
machine that has that socket already is a Jetson with work to do, and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from emulated_board import EmulatedBoard

SOCKET = Path("/run/jtop.sock")
MOUNT = Path("/fake_sys")
ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(tempfile.gettempdir()) / "edgeprune-jtop.lock"

# What the service's testing mode does not redirect: virtual devices (thermal zones, board name) and the group jtop.
SCRIPT = """
mount --bind "$TREE" /fake_sys
mount -t tmpfs tmpfs /sys/devices/virtual
mkdir -p /sys/devices/virtual/dmi/id; echo emulated > /sys/devices/virtual/dmi/id/product_name
i=0
for zone in cpu gpu soc0 tj; do
  folder=/sys/devices/virtual/thermal/thermal_zone$i; mkdir -p $folder
  echo $zone-thermal > $folder/type; echo $((45000 + i * 500)) > $folder/temp; i=$((i + 1))
done
cp /etc/group "$TREE/.group"; grep -q ^jtop: "$TREE/.group" || echo "jtop:x:987:" >> "$TREE/.group"
mount --bind "$TREE/.group" /etc/group
export PATH="$TREE/.tools:$PATH" JTOP_SERVICE=True JTOP_TESTING=true
exec "$ENVIRONMENT/bin/python" "$ENVIRONMENT/bin/jtop" --force
"""


# What edgeprune itself reads of a board, for a command that is to find itself on one.
ON_BOARD = """
mount -t tmpfs tmpfs /sys/firmware
mkdir -p /sys/firmware/devicetree/base
printf 'NVIDIA Jetson Orin Nano Developer Kit\\0' > /sys/firmware/devicetree/base/model
mount --bind "$TREE/bus" /sys/bus
exec "$@"
"""


def environments() -> dict[str, Path]:
    """``major.minor`` of jetson-stats -> a virtual environment that has it.

    Looked for in $EDGEPRUNE_JTOP (folders, separated as PATH is), in .venv-jtop of the repository (scripts/jtop makes
    it), and in the environment of this Python.
    """
    places = [Path(p) for p in os.environ.get("EDGEPRUNE_JTOP", "").split(os.pathsep) if p]
    places += sorted(ROOT.glob(".venv-jtop/*")) + [Path(sys.prefix)]
    found: dict[str, Path] = {}
    for place in places:
        for package in place.glob("lib/python3*/site-packages/jetson_stats-*.*-info"):
            version = re.match(r"jetson_stats-(\d+\.\d+)", package.name)
            if version and (place / "bin/jtop").exists():
                found.setdefault(version[1], place)
    return found


def why_not() -> str | None:
    """What keeps the service from running here, if anything."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return "the emulated board needs root, Linux and unshare"
    if not environments():
        return "no jetson-stats to run: scripts/jtop installs it into .venv-jtop"
    if SOCKET.exists() and not LOCK.exists():
        return f"{SOCKET} exists: another service runs on this machine"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "this container may not unshare its mounts"
    return None


def command_on_board(board: EmulatedBoard, command: list[str]) -> list[str]:
    """``command`` as it is run where board, INA3221 sensors and (if a service runs) jtop's socket are the board's."""
    script = f"TREE={shlex.quote(str(board.root))}\n{ON_BOARD}"
    return ["unshare", "--mount", "--propagation", "private", "bash", "-ec", script, "on-board", *command]


class Service:
    """One running service; the methods do to it what happens in the field."""

    def __init__(self, environment: Path, board: EmulatedBoard) -> None:
        self.board = board
        self._log = (board.root / ".log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-ec", SCRIPT],
            env={**os.environ, "TREE": str(board.root), "ENVIRONMENT": str(environment)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the service did not come up:\n" + (board.root / ".log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        """Gone at once, its socket left behind."""
        self._signal(signal.SIGKILL)
        self._process.wait(10)

    def hang(self) -> None:
        """Every process of it stops where it stands; connections stay open."""
        self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """Gone, and cleaned up behind."""
        self._signal(signal.SIGKILL)
        self._process.wait(10)
        self._log.close()
        SOCKET.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @staticmethod
    def _listens() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.5)
            try:
                probe.connect(str(SOCKET))
            except OSError:
                return False
        return True


@contextlib.contextmanager
def running(environment: Path, folder: Path, **board: object) -> Iterator[Service]:
    """A service on a fresh board in ``folder``; waits for its turn on this machine."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = not MOUNT.exists()
        MOUNT.mkdir(exist_ok=True)
        service = Service(environment, EmulatedBoard(folder, **board))  # type: ignore[arg-type]
        try:
            yield service
        finally:
            service.stop()
            if made:
                with contextlib.suppress(OSError):
                    MOUNT.rmdir()
