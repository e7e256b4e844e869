"""Whether jtop (jetson-stats) could be asked for power, found out without importing it.

Importing jtop forces the fork start method on the process, and talking to a service that hangs blocks for ever; so this
file only looks: at the installed package's version, at the socket, at the groups.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

SOCKET = Path("/run/jtop.sock")
_PATIENCE_S = 0.5


@dataclass(frozen=True)
class JtopState:
    """``ready`` when nothing seen here stands in the way; otherwise ``remedy`` is the one next thing to do."""

    version: str | None
    socket: bool
    answering: bool
    permitted: bool
    remedy: str

    @property
    def ready(self) -> bool:
        """All four hold."""
        return self.version is not None and self.socket and self.answering and self.permitted


def jtop_state(is_jetson: bool, path: Path = SOCKET) -> JtopState:
    """The state of package, service and permission; ``is_jetson`` only words the remedy."""
    version = _installed_version()
    present = _is_socket(path)
    permitted = present and os.access(path, os.R_OK | os.W_OK)
    answering = permitted and _accepts(path)
    if version is None:
        remedy = (
            "pip install 'edgeprune[jetson]', then sudo jtop --install-service"
            if is_jetson
            else "nothing to do: jtop measures power on Jetson boards only"
        )
    elif not present:
        remedy = "start the service: sudo systemctl start jtop (jetson-stats 7: first sudo jtop --install-service)"
    elif not permitted:
        remedy = "join the service's group: sudo usermod -aG jtop $USER, then log in again"
    elif not answering:
        remedy = "the service left its socket behind: sudo systemctl restart jtop"
    else:
        remedy = ""
    return JtopState(version, present, answering, permitted, remedy)


def _installed_version() -> str | None:
    """The version of jetson-stats; ``find_spec`` looks for a top-level module without running it."""
    if importlib.util.find_spec("jtop") is None:
        return None
    try:
        return importlib.metadata.version("jetson-stats")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _accepts(path: Path) -> bool:
    """Somebody listens. Nothing is sent: whether it speaks the right version is for the sampling child to find out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno == errno.EAGAIN  # a full queue: it is there, and busy
    return True
