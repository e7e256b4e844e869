"""Reading data files nobody vouches for: a length is compared with what is left before it is believed."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgeprune.errors import EdgePruneError

MAX_BYTES = 1 << 30  # no file of any data set here unpacks to more
DEFLATE_RATIO = 1032  # deflate cannot shrink further than this (zlib's own documentation)
CHUNK = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def bad(where: Path | str, what: str) -> EdgePruneError:
    """The one sentence about a file that cannot be used."""
    return EdgePruneError(f"{where}: {what}; fetch it again with 'edgeprune data fetch'")


class Checked:
    """Bytes read front to back with no length taken on trust.

    ``read`` gives exactly what was asked for or raises; ``most_left`` is an upper bound of the bytes still to come.
    Use as a context manager.
    """

    def __init__(self, where: Path | str, file: _Readable, most_left: int, close: Callable[[], None]) -> None:
        self.where = where
        self.most_left = most_left
        self._file = file
        self._close = close

    @classmethod
    def open(cls, path: Path) -> Checked:
        """The bytes of a file, unpacked where its name ends in ``.gz``."""
        try:
            raw = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        if path.suffix == ".gz":
            return cls(path, gzip.GzipFile(fileobj=raw), size * DEFLATE_RATIO, raw.close)
        return cls(path, raw, size, raw.close)

    def __enter__(self) -> Checked:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._close()

    def read(self, count: int, what: str) -> bytearray:
        """The next ``count`` bytes, ``what`` they are (for the sentence). Memory grows with what is really there."""
        if count > min(self.most_left, MAX_BYTES):
            raise bad(self.where, f"promises {count} bytes of {what}, more than it can hold")
        out = bytearray()
        while len(out) < count:
            piece = self._piece(min(CHUNK, count - len(out)))
            if not piece:
                raise bad(self.where, f"ends after {len(out)} of {count} bytes of {what}")
            out += piece
        self.most_left -= count
        return out

    def rest(self, limit: int, what: str) -> bytearray:
        """Everything still to come, if it is no more than ``limit`` bytes."""
        out = bytearray()
        while piece := self._piece(CHUNK):
            out += piece
            if len(out) > limit:
                raise bad(self.where, f"holds more than {limit} bytes of {what}")
        return out

    def end(self) -> None:
        """Checks that nothing follows (and, where the bytes were packed, that their checksum is right)."""
        if self._piece(1):
            raise bad(self.where, "goes on after its last sample")

    def _piece(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except EOFError:
            raise bad(self.where, "is cut off within its compressed data") from None
        except (OSError, zlib.error, zipfile.BadZipFile) as error:
            raise bad(self.where, f"cannot be read ({str(error).rstrip('.')})") from None


class CheckedZip:
    """A zip archive whose members are read with no length taken on trust. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise EdgePruneError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise bad(path, f"is not a zip archive ({str(error).rstrip('.')})") from None

    def __enter__(self) -> CheckedZip:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def member(self, name: str) -> tuple[Checked, int]:
        """The member's bytes, and how many it says it unpacks to (which may not be more than it can)."""
        where = f"{self.path}, {name}"
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise bad(self.path, f"holds no {name!r}") from None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise bad(where, "is packed by a method that no data set here uses")
        if info.file_size > min(info.compress_size * DEFLATE_RATIO, MAX_BYTES):
            raise bad(where, f"promises {info.file_size} bytes, more than it can hold")
        try:
            stream = self._zip.open(info)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
            raise bad(where, f"cannot be read ({str(error).rstrip('.')})") from None
        return Checked(where, stream, info.file_size, lambda: None), info.file_size


def sha256_of(path: Path) -> str:
    """The checksum of a file's bytes as they are on disk, in hex."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
    except OSError as error:
        raise EdgePruneError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return digest.hexdigest()
