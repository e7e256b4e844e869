"""Free ports of the loopback interface."""

from __future__ import annotations

import socket

from edgeprune.errors import EdgePruneError


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.settimeout(0.5)
        return one.connect_ex((host, port)) == 0


def refuse_taken(host: str, port: int) -> None:
    """Raises :class:`EdgePruneError` where a server cannot listen."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise EdgePruneError(
            f"serve: cannot listen on {host}:{port} ({error.strerror}); try another --address"
        ) from None
