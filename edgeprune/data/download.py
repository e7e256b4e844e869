"""Fetching a data set: every byte counted and checked before it is kept. Needs no torch.

All files of a data set come into a temporary folder beside their place and are moved when the last one is right, so
that a failure leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from edgeprune._version import __version__
from edgeprune.data.files import CHUNK, sha256_of
from edgeprune.data.registry import Download, FileSpec, Source
from edgeprune.errors import EdgePruneError

TIMEOUT_S = 30.0  # without a byte
MOST_MEMBERS = 1000  # of an archive, looked at

Progress = Callable[[str, int, int], None]  # file, bytes so far, bytes in all


class _Refused(Exception):
    """Why one mirror's answer, or one archive, cannot be used."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def fetch(known: Source, root: Path, progress: Progress = lambda *_: None) -> list[Path]:
    """Bring the data set's files into ``root/NAME/``; those already there and right stay. Returns the new ones.

    Mirrors are tried in order. Raises :class:`EdgePruneError`, one sentence, with everything as it was before.
    """
    if not known.downloads:
        return []
    folder = root / known.name
    lacking = [d for d in known.downloads if not all(_is(folder / spec.name, spec) for spec in _kept(d))]
    if not lacking:
        return []
    with _made(folder), tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        staged = [path for download in lacking for path in _one(known, download, Path(temporary), progress)]
        try:
            for path in staged:
                os.replace(path, folder / path.name)
        except OSError as error:
            raise EdgePruneError(
                f"{folder}: cannot be written ({error.strerror}); choose another with --data"
            ) from None
    return [folder / path.name for path in staged]


def _kept(download: Download) -> list[FileSpec]:
    return [spec for _, spec in download.members] or [download.file]


def _is(path: Path, spec: FileSpec) -> bool:
    return path.is_file() and path.stat().st_size == spec.size and sha256_of(path) == spec.sha256


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """``folder`` exists inside; where an error comes out, the folders made for it go again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise EdgePruneError(
                f"{folder}: cannot be written ({error.strerror}); choose another with --data"
            ) from None
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _one(known: Source, download: Download, temporary: Path, progress: Progress) -> list[Path]:
    """One download, from the first mirror that gives what was published, unpacked where it is an archive."""
    target = temporary / download.file.name
    reasons = []
    for url in download.urls:
        host = urllib.parse.urlsplit(url).netloc
        try:
            _request(url, download.file, target, progress)
            return _unpack(download, target, temporary) if download.members else [target]
        except _Refused as reason:
            reasons.append(f"{host}: {reason}")
            target.unlink(missing_ok=True)
        except OSError as error:
            raise EdgePruneError(f"{temporary.parent}: cannot be written ({error.strerror or error})") from None
    raise EdgePruneError(
        f"{known.name}: {download.file.name} could not be fetched ({'; '.join(reasons)}); "
        f"try again later, or put the file into {temporary.parent}"
    )


def _request(url: str, spec: FileSpec, target: Path, progress: Progress) -> None:
    """The bytes of ``url`` into ``target``. Not a byte more than published is read."""
    request = urllib.request.Request(url, headers={"User-Agent": f"edgeprune/{__version__}"})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise _Refused(f"answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Refused(str(getattr(error.reason, "strerror", None) or error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Refused(_broken(error)) from None
    with answer, target.open("xb") as out:
        promised = answer.headers.get("Content-Length")
        if promised is not None and promised != str(spec.size):
            raise _Refused(f"offers {promised} bytes, not the published {spec.size}")
        _copy(answer, out, spec, lambda done: progress(spec.name, done, spec.size))


def _broken(error: Exception) -> str:
    return f"sends nothing for {TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else f"breaks off ({error})"


def _copy(source: _Readable, out: Any, spec: FileSpec, on_progress: Callable[[int], None] = lambda _: None) -> None:
    """Exactly ``spec``'s bytes from ``source`` to ``out``, or :class:`_Refused`."""
    digest, done = hashlib.sha256(), 0
    while True:
        try:
            piece = source.read(min(CHUNK, spec.size - done + 1))
        except (OSError, http.client.HTTPException) as error:  # of reading; one of writing is another matter
            raise _Refused(_broken(error)) from None
        if not piece:
            break
        done += len(piece)
        if done > spec.size:
            raise _Refused(f"sends more than the published {spec.size} bytes of {spec.name}")
        digest.update(piece)
        out.write(piece)
        on_progress(done)
    if done < spec.size:
        raise _Refused(f"ends after {done} of {spec.size} bytes of {spec.name}")
    if digest.hexdigest() != spec.sha256:
        raise _Refused(f"sends {spec.name} with another checksum than the published one")


def _unpack(download: Download, archive: Path, temporary: Path) -> list[Path]:
    """The expected members and nothing else, each under its own plain name."""
    wanted = dict(download.members)
    found: dict[str, Path] = {}
    # A folder of its own: a member may bear the archive's name.
    inside = Path(tempfile.mkdtemp(dir=temporary))
    members = _zip_members if archive.suffix == ".zip" else _tar_members
    try:
        for name, size, source in members(archive, wanted):
            spec = wanted[name]
            if name in found or size != spec.size:
                raise _Refused(f"holds {name} with {size} bytes, not the published {spec.size} once")
            found[name] = inside / spec.name
            with found[name].open("xb") as out:
                _copy(source, out, spec)
            if len(found) == len(wanted):
                break
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _Refused(f"sends an archive that cannot be read ({type(error).__name__})") from None
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise _Refused(f"sends an archive without {', '.join(missing)}")
    archive.unlink()
    return list(found.values())


def _tar_members(archive: Path, wanted: dict[str, FileSpec]) -> Iterator[tuple[str, int, _Readable]]:
    with tarfile.open(archive, "r|gz") as tar:
        for number, member in enumerate(tar):
            if number >= MOST_MEMBERS:
                return
            if member.name in wanted and member.isreg():
                stream = tar.extractfile(member)
                assert stream is not None
                yield member.name, member.size, stream


def _zip_members(archive: Path, wanted: dict[str, FileSpec]) -> Iterator[tuple[str, int, _Readable]]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist()[:MOST_MEMBERS]:
            if member.filename in wanted:
                with packed.open(member) as stream:
                    yield member.filename, member.file_size, stream
