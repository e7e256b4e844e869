"""Coverage-guided fuzzing of everything that reads a message, with atheris (pip install atheris; not a test of pytest).

    python tests/wire/fuzz_decode.py CORPUS_DIR -max_total_time=600        further options: libFuzzer's

How many inputs were tried and decoded is kept in CORPUS_DIR.json. The golden and hostile files are put into CORPUS_DIR
first. The first byte of an input says how much of its envelope is made right, so that the search does not spend its
time on checksums: bit 0 the checksum, bit 1 also the body's length, bit 2 also the dense size. An input is a finding
when decoding raises anything but EdgePruneError, when what was decoded does not come back the same from its own
encoding, or when memory goes beyond the bound that format.md states (traced for every 16th input; 512 MiB of address
space beyond the start for all).
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeprune.wire"]):
    from edgeprune import wire
    from edgeprune.wire import __main__ as show
    from edgeprune.wire import directory, layout, message, positions, tensors  # noqa: F401

import torch
from rich.console import Console

from edgeprune.errors import EdgePruneError

HERE = Path(__file__).resolve().parent
DENSE_LIMIT = 1 << 18
KINDS = tuple(layout.KINDS)
MASKS = {"w": wire.to_bitmap(torch.tensor([True] + [False] * 7 + [True]))}
counts = {"inputs": 0, "decoded": 0, "traced": 0, "seconds": 0.0}
started = time.monotonic()


def enveloped(data: bytes) -> bytes:
    """The message in an input, with as much of its envelope put right as its first byte says."""
    if len(data) < 2:
        return data
    mode, blob = data[0], bytearray(data[1:])
    if not mode & 7 or len(blob) < layout.HEADER_BYTES + layout.TRAILER:
        return bytes(blob)
    if mode & 2:
        kept, meta, client = (int.from_bytes(blob[a:b], "little") for a, b in ((60, 64), (64, 68), (68, 70)))
        listed = int.from_bytes(blob[56:60], "little")
        body = len(blob) - layout.HEADER_BYTES - layout.TRAILER - kept - meta - client - listed
        if body >= 0:
            blob[48:56] = struct.pack("<Q", body)
    if mode & 4:
        put_right(blob)
    blob[-4:] = zlib.crc32(blob[:-4]).to_bytes(4, "little")
    return bytes(blob)


def put_right(blob: bytearray) -> None:
    """Writes the dense size that the directory adds up to, if one can be read."""
    try:
        header = layout.Header.from_bytes(blob)
        start = layout.HEADER_BYTES + header.client + header.kept + header.meta
        cursor = layout.Cursor(bytes(blob[start : start + header.directory]), "directory")
        entries = [directory._entry(cursor) for _ in range(header.tensors)]
    except EdgePruneError:
        return
    dense = sum(entry.dense_bytes for entry in entries)
    if dense < 1 << 64:
        blob[40:48] = struct.pack("<Q", dense)


def bound(blob: bytes) -> int:
    """What format.md allows a reader, the numbers of its own limit put in."""
    return 4 * len(blob) + DENSE_LIMIT + 24 * DENSE_LIMIT + 4096 * (len(blob) // 8) + (1 << 20)


def decode(blob: bytes) -> wire.Message | None:
    """The message with its packed tensors, None if it was refused."""
    try:
        return wire.decode(blob, kind=KINDS, dense_limit=DENSE_LIMIT, masks=MASKS, keep_packed=True)
    except EdgePruneError as error:
        assert "\n" not in str(error)
        return None


def one_input(data: bytes) -> None:
    """The target."""
    blob = enveloped(data)
    counts["inputs"] += 1
    if counts["inputs"] % 1000 == 0:  # libFuzzer ends the process without asking anybody
        counts["seconds"] = round(time.monotonic() - started, 1)
        Path(f"{sys.argv[1].rstrip('/')}.json").write_text(json.dumps(counts) + "\n")
    traced = counts["inputs"] % 16 == 0
    if traced:
        tracemalloc.start()
    got = decode(blob)
    if traced:
        counts["traced"] += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= bound(blob), f"{peak} bytes for a message of {len(blob)}"
    try:
        show.describe(blob, Console(file=io.StringIO()))
    except EdgePruneError:
        assert got is None, "describe refuses what decode takes"
    if got is None:
        return
    counts["decoded"] += 1
    dense = wire.decode(blob, kind=KINDS, dense_limit=DENSE_LIMIT, masks=MASKS).tensors
    again = wire.decode(wire.encode(got), kind=KINDS, masks=MASKS).tensors
    assert dense.keys() == again.keys()
    for name, x in dense.items():
        assert x.shape == again[name].shape and x.dtype == again[name].dtype
        assert tensors.to_bytes(x.contiguous()) == tensors.to_bytes(again[name].contiguous())


def main() -> None:
    """Fills the corpus and runs until the time is over."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("*/*.bin")):
        for mode in (0, 7):
            (corpus / f"{path.parent.name}-{path.stem}-{mode}").write_bytes(bytes([mode]) + path.read_bytes())
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
