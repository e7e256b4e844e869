"""Reading data files nobody vouches for: a length is compared with what is left before it is believed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from edgeprune.errors import EdgePruneError

MAX_BYTES = 1 << 30  # no file of any data set here unpacks to more
DEFLATE_RATIO = 1032  # deflate cannot shrink further than this (zlib's own documentation)
CHUNK = 1 << 20


def bad(path: Path, what: str) -> EdgePruneError:
    """The one sentence about a file that cannot be used."""
    return EdgePruneError(f"{path}: {what}; fetch it again with 'edgeprune data fetch'")


class CheckedFile:
    """A file, plain or ``.gz``, read front to back with no length taken on trust.

    ``read`` gives exactly what was asked for or raises; ``most_left`` is an upper bound of the bytes still to come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._raw: BinaryIO = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        self._file: BinaryIO | gzip.GzipFile = self._raw
        self.most_left = size
        if path.suffix == ".gz":
            self._file = gzip.GzipFile(fileobj=self._raw)
            self.most_left = size * DEFLATE_RATIO

    def __enter__(self) -> CheckedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def read(self, count: int, what: str) -> bytearray:
        """The next ``count`` bytes, ``what`` they are (for the sentence). Memory grows with what is really there."""
        if count > min(self.most_left, MAX_BYTES):
            raise bad(self.path, f"promises {count} bytes of {what}, more than it can hold")
        out = bytearray()
        while len(out) < count:
            piece = self._piece(min(CHUNK, count - len(out)))
            if not piece:
                raise bad(self.path, f"ends after {len(out)} of {count} bytes of {what}")
            out += piece
        self.most_left -= count
        return out

    def end(self) -> None:
        """Checks that nothing follows (and, for ``.gz``, that its checksum is right)."""
        if self._piece(1):
            raise bad(self.path, "goes on after its last sample")

    def _piece(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except EOFError:
            raise bad(self.path, "is cut off within its compressed data") from None
        except (OSError, zlib.error) as error:
            raise bad(self.path, f"cannot be read ({str(error).rstrip('.')})") from None
