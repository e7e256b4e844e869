"""The envelope between the server and a resident worker: who is asked what under which token, and bytes of the wire
format.

Engines carry it unread. A frame is "EPF1", the length of a JSON object (four bytes, little-endian), that object, and
the rest is the blob. On a socket each frame has its length (eight bytes, little-endian) before it. The standard library
is all that this file needs: it is loaded anew for every message where an engine starts a process for each.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeprune.errors import EdgePruneError

MAGIC = b"EPF1"
MAX_HEADER = 1 << 16
LIMIT = 1 << 32  # bytes of one frame
ASKS = ("hello", "work", "bye")
ANSWERS = ("hello", "done", "refused")


@dataclass(frozen=True)
class Frame:
    """One question or answer. ``client`` is the device asked; an answer repeats the question's ``token``.

    ``about`` holds the rest: of a "hello" who the device is, of "done" what was measured, of "refused" the ``reason``.
    """

    verb: str
    client: str
    token: str
    about: Mapping[str, Any] = field(default_factory=dict)
    blob: bytes = b""

    def to_bytes(self) -> bytes:
        """The frame's bytes."""
        header = {"verb": self.verb, "client": self.client, "token": self.token, "about": dict(self.about)}
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
        return b"".join((MAGIC, len(text).to_bytes(4, "little"), text, self.blob))

    @classmethod
    def from_bytes(cls, data: bytes, verbs: tuple[str, ...], limit: int = LIMIT) -> Frame:
        """The frame in ``data``. Raises :class:`EdgePruneError` if it is not of ``verbs`` within ``limit`` bytes."""
        if len(data) > limit:
            raise EdgePruneError(f"frame: {len(data)} bytes are over the limit of {limit}; it was not read")
        length = int.from_bytes(data[4:8], "little")
        if data[:4] != MAGIC or len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
            raise EdgePruneError("frame: this is not a frame, or it is cut short")
        try:
            header = json.loads(data[8 : 8 + length])
            verb, client, token, about = (header[key] for key in ("verb", "client", "token", "about"))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EdgePruneError("frame: its header cannot be read") from None
        if not all(isinstance(text, str) for text in (verb, client, token)) or not isinstance(about, dict):
            raise EdgePruneError("frame: its header holds values of the wrong type")
        if verb not in verbs:
            raise EdgePruneError(f"frame: {verb[:20]!r} was not expected here")
        return cls(verb, client, token, about, data[8 + length :])


def shown(text: Any, most: int = 300) -> str:
    """What a device says, fit to be printed and kept: one line, no control characters, not long."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= most else line[: most - 3] + "..."


def send(to: socket.socket, data: bytes) -> None:
    """Write one frame's bytes to a socket."""
    to.sendall(len(data).to_bytes(8, "little"))
    to.sendall(data)


def receive(source: socket.socket, limit: int = LIMIT) -> bytes:
    """The next frame's bytes on a socket. Raises :class:`EdgePruneError` where it ends early or is over ``limit``."""
    length = int.from_bytes(_exactly(source, 8), "little")
    if length > limit:
        raise EdgePruneError(f"frame: {length} bytes are over the limit of {limit}; it was not read")
    return _exactly(source, length)


def _exactly(source: socket.socket, count: int) -> bytes:
    """``count`` bytes; memory grows with what has come, not with what was announced."""
    data = bytearray()
    while len(data) < count:
        part = source.recv(min(count - len(data), 1 << 20))
        if not part:
            raise EdgePruneError(f"frame: the connection ended after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


def ask(path: str, data: bytes, seconds: float | None = None) -> bytes:
    """The answer of the worker that listens on the Unix socket ``path``.

    Raises :class:`EdgePruneError` if there is none, or none within ``seconds``.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(path)
            send(connection, data)
            return receive(connection)
        except TimeoutError:
            raise EdgePruneError(f"worker: no answer within {seconds} s") from None
        except OSError as error:
            raise EdgePruneError(f"worker: it cannot be reached ({error.strerror or error})") from None
