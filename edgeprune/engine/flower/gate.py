"""What of the SuperLink the network may see: its Fleet API over TLS, and that only so large and so often.

A SuperLink (1.41) serves its control on the same port as its fleet, and asks nobody's name there: whoever reaches it
may register a key of his own, or start a run on every device. So it listens on loopback, and devices reach it through
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.errors import EdgePruneError

ALLOWED = b"/v1/fleet/"
MAX_HEAD = 1 << 15
MAX_BODY = 1 << 24  # Flower moves arrays in pieces of 5 MiB
CHUNK = 1 << 16
IDLE_S = 120.0


@dataclass(frozen=True)
class Limits:
    """Of one peer address: ``connections`` at once, ``per_s`` requests a second on average and ``burst`` at once;
    ``body``: bytes of one request."""

    connections: int = 64
    per_s: float = 50.0
    burst: float = 200.0
    body: int = MAX_BODY


@dataclass
class _Peer:
    """A token bucket."""

    open: int = 0
    tokens: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def may(self, limits: Limits) -> bool:
        now = time.monotonic()
        self.tokens = min(limits.burst, self.tokens + (now - self.at) * limits.per_s)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Refused(Exception):
    """An HTTP status and its reason."""


class Gate:
    """A TLS listener in a thread of its own; a context manager. ``counts``: what passed and what was refused.

    ``folder`` holds server.pem, server.key and ca.pem, which the SuperLink on port ``upstream`` uses too.
    """

    def __init__(self, host: str, port: int, upstream: int, folder: Path, limits: Limits | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._host, self._port, self._upstream = host, port, upstream
        self._limits = limits or Limits()
        self._peers: dict[str, _Peer] = {}
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._inner = ssl.create_default_context(cafile=folder / "ca.pem")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._fault = ""

    def __enter__(self) -> Gate:
        self._thread.start()
        self._ready.wait(10)
        if self._fault:
            raise EdgePruneError(
                f"serve: cannot listen on {self._host}:{self._port} ({self._fault}); try another --address"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            serving = asyncio.start_server(self._serve, self._host, self._port, ssl=self._tls, limit=MAX_HEAD)
            server = self._loop.run_until_complete(serving)
        except OSError as error:
            self._fault = error.strerror or str(error)
            self._loop.close()
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.05))  # connections close
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = self._peers.setdefault(str(writer.get_extra_info("peername")[0]), _Peer(tokens=self._limits.burst))
        peer.open += 1
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            if peer.open > self._limits.connections:
                raise Refused("503 too many connections")
            while True:
                head = await _head(reader)
                if not head:
                    return
                length = self._checked(head, peer)
                if upstream is not None:  # an old one may have been closed meanwhile
                    upstream[1].close()
                upstream = await asyncio.open_connection("127.0.0.1", self._upstream, ssl=self._inner, limit=MAX_HEAD)
                upstream[1].write(head)
                await _move(reader, upstream[1], length)
                answer = await _head(upstream[0])
                self.counts["passed"] += 1  # before who asked can know
                writer.write(answer)
                await _move(upstream[0], writer, _length(answer))
        except Refused as refused:
            self.counts[f"refused {str(refused)[:3]}"] += 1
            with contextlib.suppress(OSError):
                writer.write(f"HTTP/1.1 {refused}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError, asyncio.TimeoutError):
            self.counts["broken"] += 1
        except asyncio.CancelledError:
            return  # the end; asyncio would print a task that was cancelled
        finally:
            peer.open -= 1
            for one in (writer, upstream[1] if upstream else None):
                if one is not None:
                    one.close()

    def _checked(self, head: bytes, peer: _Peer) -> int:
        """The request's length, if it may pass."""
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or line[0] != b"POST":
            raise Refused("405 only POST")
        if not line[1].startswith(ALLOWED) or b".." in line[1] or b"%" in line[1] or b"//" in line[1]:
            raise Refused("403 only the fleet")
        if b"\r\ntransfer-encoding:" in head.lower():
            raise Refused("411 say the length")
        length = _length(head)
        if length > self._limits.body:
            raise Refused("413 too large")
        if not peer.may(self._limits):
            raise Refused("429 too often")
        return length


async def _head(reader: asyncio.StreamReader) -> bytes:
    """One request's or answer's head; empty at the end of the connection."""
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_S)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise EOFError from None
        return b""


def _length(head: bytes) -> int:
    found = [
        line.split(b":", 1)[1].strip() for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    if len(found) != 1 or not found[0].isdigit() or len(found[0]) > 12:
        raise Refused("411 say the length")
    return int(found[0])


async def _move(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length:
        part = await asyncio.wait_for(reader.read(min(CHUNK, length)), IDLE_S)
        if not part:
            raise EOFError
        writer.write(part)
        await writer.drain()
        length -= len(part)
    await writer.drain()
