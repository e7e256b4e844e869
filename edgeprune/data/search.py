"""Where data sets are on this machine, and whether they are the published ones. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeprune.data.files import sha256_of
from edgeprune.data.registry import SOURCES, Source, source
from edgeprune.errors import EdgePruneError

FOLDERS_INSIDE = ("", "cifar-10-batches-bin")  # of a data set's folder: its archive's own folder counts as well


def roots(data_dir: str | Path | None = None) -> list[Path]:
    """The folders to look in, first to last: ``data_dir`` (``--data``), $EDGEPRUNE_DATA, the cache.

    The last is none for a user without a home, as a container may run one.
    """
    given = [Path(data_dir)] if data_dir else []
    from_environment = [Path(os.environ["EDGEPRUNE_DATA"])] if os.environ.get("EDGEPRUNE_DATA") else []
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = [] if home.startswith("~") else [Path(home) / "edgeprune"]
    return list(dict.fromkeys([*given, *from_environment, *cache]))


def find(name: str, data_dir: str | Path | None = None) -> dict[str, Path] | None:
    """The files of the data set ``name``, by their published names; None if no root has all of them.

    Each root is asked for a folder ``name/``, then for the files themselves. A ``.gz`` file counts unpacked as well.
    A data set that needs no file has none: ``{}``.
    """
    wanted = source(name)
    if not wanted.layouts:
        return {}
    for root in roots(data_dir):
        for folder in (root / name, root):
            for layout in wanted.layouts:
                for inside in FOLDERS_INSIDE:
                    files = _complete(folder / inside, layout)
                    if files and not (folder == root and _another(wanted, files)):
                        return files
    return None


def require(name: str, data_dir: str | Path | None = None) -> dict[str, Path]:
    """As :func:`find`; raises one sentence that says where it looked, and what was missing where some was there."""
    if data_dir and source(name).layouts and not Path(data_dir).is_dir():
        raise EdgePruneError(f"{name}: there is no folder {data_dir}; give --data one that holds data sets")
    files = find(name, data_dir)
    if files is not None:
        return files
    for root in roots(data_dir):
        present = {file for inside in FOLDERS_INSIDE for file in _listed(root / name / inside)}
        for layout in source(name).layouts:
            lacking = [file for file in layout if not {file, file.removesuffix(".gz")} & present]
            if len(lacking) < len(layout):
                raise EdgePruneError(
                    f"{name}: {root / name} lacks {', '.join(lacking)}; 'edgeprune data fetch {name}' downloads it"
                )
    looked = ", ".join(str(root / name) for root in roots(data_dir)) or "any folder, for this user has no home"
    raise EdgePruneError(
        f"{name}: not found in {looked}; 'edgeprune data fetch {name}' downloads it, or say where it is with --data"
    )


def places(data_dir: str | Path | None = None) -> dict[str, Path | None]:
    """Data set -> its folder on this machine, or None. Those that need no file are left out."""
    found = {name: find(name, data_dir) for name, known in SOURCES.items() if known.layouts}
    return {name: next(iter(files.values())).parent if files else None for name, files in found.items()}


@dataclass(frozen=True)
class Verdict:
    """What one file turned out to be. ``unknown``: nobody published a checksum of it in this form."""

    path: Path
    state: Literal["ok", "differs", "unknown"]


def verify(name: str, data_dir: str | Path | None = None) -> list[Verdict]:
    """Every file of the data set ``name`` against its published size and checksum. Raises if it is not there."""
    return verdicts(source(name), require(name, data_dir))


def verdicts(known: Source, files: dict[str, Path]) -> list[Verdict]:
    """As :func:`verify`, for files already found."""
    out = []
    for path in files.values():
        spec = known.published.get(path.name)
        if spec is None:
            out.append(Verdict(path, "unknown"))
        else:
            same = path.stat().st_size == spec.size and sha256_of(path) == spec.sha256
            out.append(Verdict(path, "ok" if same else "differs"))
    return out


def _complete(folder: Path, layout: tuple[str, ...]) -> dict[str, Path] | None:
    """The layout's files in ``folder``, each packed or not, if all are there."""
    files = {}
    for name in layout:
        candidates = [folder / name, folder / name.removesuffix(".gz")]
        # os.path, not Path.is_file: a folder that may not be entered counts as empty on every Python.
        there = [path for path in candidates if os.path.isfile(path)]
        if not there:
            return None
        files[name] = there[0]
    return files


def _another(wanted: Source, files: dict[str, Path]) -> bool:
    """Whether files of the right names, in a folder of no name, are those of another data set (as MNIST's twin's)."""
    name, path = min(files.items(), key=lambda item: item[1].stat().st_size)
    twins = [spec for known in SOURCES.values() if known != wanted and (spec := known.published.get(name))]
    return bool(twins) and sha256_of(path) in {spec.sha256 for spec in twins}


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
