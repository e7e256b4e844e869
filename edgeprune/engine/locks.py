"""A folder that one process has for itself. The standard library is all that this file needs."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.errors import EdgePruneError


@contextmanager
def alone(path: Path, taken: str) -> Iterator[None]:
    """Have ``path`` for oneself; EdgePruneError with the sentence ``taken`` where another process has it. The kernel
    gives it free when this one dies."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise EdgePruneError(taken) from None  # else a file system that has no locks
        yield
    finally:
        os.close(folder)
