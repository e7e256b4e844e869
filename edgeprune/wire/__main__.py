"""``python -m edgeprune.wire FILE``: what a blob holds, without unpacking it."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.errors import EdgePruneError
from edgeprune.wire import directory, layout
from edgeprune.wire.layout import ALL, KNOWN, POSITIONS, Cursor, Header, refused

USAGE = "usage: python -m edgeprune.wire FILE"


def main(arguments: Sequence[str]) -> int:
    """Prints the table. 0, or 1 with one sentence on stderr."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        wanted = arguments[:1] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    try:
        describe(_read(arguments[0]), Console())
    except EdgePruneError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdgePruneError(f"cannot be read ({reason}); check the path") from None


def describe(blob: bytes, console: Console) -> None:
    """Header and directory of ``blob`` as text. Allocates nothing of the tensors. Raises EdgePruneError."""
    header = Header.from_bytes(blob)
    data = memoryview(blob)
    if zlib.crc32(data[: -layout.TRAILER]).to_bytes(4, "little") != data[-layout.TRAILER :]:
        raise refused("the checksum does not match what is there")
    cursor = Cursor(data[layout.HEADER_BYTES : -layout.TRAILER], "message")
    client, kept, meta = (bytes(cursor.take(n)) for n in (header.client, header.kept, header.meta))
    listed = cursor.take(header.directory)
    entries = directory.from_bytes(listed, header.tensors, header.body, header.dense)
    console.print(f"{header.kind}, version {layout.VERSION}, {len(blob):,} bytes, checksum right", highlight=False)
    for what, value in (
        ("round", header.round),
        ("client", _plain(client)),
        ("plan", header.plan),
        ("mask", header.mask),
        ("samples", header.samples),
        ("kept channels", f"{len(kept)} bytes" if kept else ""),
        ("more", _plain(meta)),
    ):
        if value:
            console.print(Text(f"  {what}: {value}"))
    if not entries:
        console.print("no tensors")
        return
    table = Table(box=None)
    table.add_column("tensor", overflow="fold")  # a name goes on in the next line; figures stay whole
    for name in ("shape", "type"):
        table.add_column(name, no_wrap=True)
    for name in ("kept", "positions", "coding", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        placed = POSITIONS[entry.positions]
        if entry.positions not in (ALL, KNOWN):
            placed += f" {entry.position_bytes:,} B"
        table.add_row(
            Text(_plain(entry.name.encode())),
            "x".join(map(str, entry.shape)) or "scalar",
            str(entry.dtype).removeprefix("torch."),
            f"{entry.kept / max(entry.numel, 1):.2%}",
            placed,
            entry.coding,
            f"{entry.total:,}",
        )
    console.print(table)
    share = f", {len(blob) / header.dense:.1%} of them" if header.dense else ""
    console.print(f"{len(entries)} tensors of {header.dense:,} bytes unpacked{share}", highlight=False)


def _plain(data: bytes) -> str:
    """Text that does no harm to a terminal: what is not printable ASCII is escaped."""
    return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
