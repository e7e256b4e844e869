"""The place of a file to be written: looked at before the work, written beside and renamed when the work is done."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.errors import EdgePruneError


def check_destination(path: str | os.PathLike[str], op: str) -> Path:
    """``path``; EdgePruneError, in the name of ``op``, unless an ordinary file can be put there.

    A file that stands there would be replaced. Anything else (a folder, a device such as /dev/null, a pipe) is refused:
    a rename would put the file in its place.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise EdgePruneError(f"{op}: the file to write is given as {type(path).__name__}; give its path as text")
    path = Path(path)
    folder = path.parent
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise EdgePruneError(f"{op}: {folder} is not a folder; choose another place for {path.name}")
    except (OSError, ValueError):
        raise EdgePruneError(f"{op}: the folder {str(folder)!r} does not exist; create it first") from None
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdgePruneError(f"{op}: {str(path)!r} cannot name a file ({reason}); choose another name") from None
    if stat.S_ISDIR(kind):
        raise EdgePruneError(f"{op}: {path} is a folder; name a file in it")
    if not stat.S_ISREG(kind):
        raise EdgePruneError(f"{op}: {path} is a device or a pipe, not a file; name a file to write")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EdgePruneError(f"{op}: cannot write in {folder}; choose another place")
    return path


@contextmanager
def staged(path: str | os.PathLike[str], op: str) -> Iterator[Path]:
    """A place beside ``path`` to write the file to; it takes its name when the block ends without an error.

    The place is in a fresh hidden folder, so that the file gets the user's own permissions. Whatever happens, nothing
    else is left; EdgePruneError, in the name of ``op``, where the system refuses the writing.
    """
    path = check_destination(path, op)
    try:
        with tempfile.TemporaryDirectory(prefix=".edgeprune-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            yield draft
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        # Its name alone: the folder may be that of another draft.
        raise EdgePruneError(f"{op}: {path.name} cannot be written ({reason}); choose another place") from None


def write_bytes(
    path: str | os.PathLike[str], blob: bytes, op: str, remedy: str = "make room or choose another place"
) -> None:
    """``blob`` as the file ``path``, in one step: flushed to the disk under one fixed name beside it, so that a process
    that is killed here over and over leaves one draft, then renamed.

    EdgePruneError, in the name of ``op`` and with ``remedy``, where it cannot be; what was there stays.
    """
    path = check_destination(path, op)
    draft = path.with_name(f".{path.name[:60]}.tmp")  # cut: a name may have 255 bytes
    try:
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise EdgePruneError(f"{op}: {path}: cannot be written ({error.strerror}); {remedy}") from None


def write_text(path: str | os.PathLike[str], text: str, op: str) -> None:
    """``text`` in UTF-8 as the file ``path``, in one step."""
    write_bytes(path, text.encode(), op)
