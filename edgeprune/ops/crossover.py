"""Where walking kept weights beats the dense product, so that the dense one runs where it does not.

The rule is a table: kind of layer, with or without gradients, threads -> highest density at which the sparse kernels
win, by the number of positions of a call (samples of a linear layer, output pixels of a batch of a convolution). The
package carries one (crossover.json); ``edgeprune bench kernels`` measures this machine's and writes it to
``$XDG_CACHE_HOME/edgeprune/crossover.json`` (else ``~/.cache``). It is read once, on import, and is used when it was
measured with these kernels and this torch on this kind of processor: nothing is ever measured during a call, and the
choice is the same for the same file.

Forced for the whole process with EDGEPRUNE_MASKED=sparse|dense|auto or :func:`force`, for one call or layer with its
``path`` argument.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeprune.destination import write_bytes
from edgeprune.errors import EdgePruneError
from edgeprune.ops._core import core

FORMAT = 2  # of the file
KINDS = ("linear", "conv1x1", "conv", "conv_odd", "grouped")
PATHS = ("auto", "sparse", "dense")
_WORK = ("forward", "step")

Curve = tuple[tuple[float, float], ...]
"""(positions, highest density at which sparse wins) with positions increasing; the last entry not above applies."""

Tables = dict[int, dict[str, dict[str, Curve]]]
"""threads -> "forward" or "step" (with gradients) -> kind of layer -> curve."""


def conv_kind(outputs: int, taps: int, groups: int) -> str:
    """The kind of a convolution. "conv_odd": dense products work on outputs in blocks of 16, and a quarter or more of
    those would be empty (few outputs, or what pruning left)."""
    if groups > 1:
        return "grouped"
    if taps == 1:
        return "conv1x1"
    return "conv_odd" if 3 * (-(-outputs // 16) * 16) >= 4 * outputs else "conv"


def sparse_wins(kind: str, positions: int, density: float, training: bool, path: str = "auto") -> bool:
    """Whether a call should walk kept weights. ``path`` other than "auto" decides; then the forced choice; then the
    table."""
    if path == "auto":
        path = _state["path"]
    if path != "auto":
        if path != "dense":
            check_path("masked", path)
        return path == "sparse"
    if torch.compiler.is_compiling():
        from edgeprune.ops._compile_time import constant_threads

        table = _state["tables"][constant_threads()]
    else:
        table = _state["tables"][measured_threads()]
    limit = 0.0
    curve = table["step" if training else "forward"][kind]
    if torch.compiler.is_compiling() and _exporting() and isinstance(positions, torch.SymInt):
        return density <= curve[-1][1]  # for batches of any size: how large this one is must not be asked
    for at_least, highest in curve:
        if positions < at_least:
            break
        limit = highest
    return density <= limit


# torch before 2.7 does not say
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

_GPU_LIMIT = 0.2
"""Highest density at which the sparse kernels are taken on a GPU. Reckoned, not measured: a multiply-add reads shared
memory once, which is a quarter of the float32 peak at best, and dense float32 reaches three quarters of it."""
_BLOCKS_LIMIT = 0.25
"""The same for blocks on the matrix units. Reckoned from the second-level cache's bandwidth, not measured."""


def sparse_wins_on_gpu(kind: str, density: float, path: str = "auto") -> bool:
    """Whether a call on a GPU should walk kept weights. Where dense products may use TF32 they win down to about a
    tenth of that density, which nobody who asks for TF32 keeps; so "auto" stays dense there."""
    chosen = _chosen(path)
    if chosen != "auto":
        return chosen == "sparse"
    if torch.compiler.is_compiling():
        from edgeprune.ops._compile_time import constant_tf32

        allowed = constant_tf32(kind)
    else:
        allowed = tf32(kind)
    return density <= (_GPU_LIMIT / 10 if allowed else _GPU_LIMIT)


def tf32(kind: str) -> bool:
    """Whether dense products on a GPU may use TF32. A compiled graph keeps that of its making.

    torch 2.9 brought ``fp32_precision``, which follows the older ``allow_tf32`` too; the older one raises where the new
    one was set."""
    of = torch.backends.cuda.matmul if kind == "linear" else getattr(torch.backends.cudnn, "conv", None)
    precision = getattr(of, "fp32_precision", None)
    if precision is not None:
        return bool(precision == "tf32")
    return torch.backends.cuda.matmul.allow_tf32 if kind == "linear" else torch.backends.cudnn.allow_tf32


def blocks_win_on_gpu(density: float, path: str = "auto") -> bool:
    """Whether a call on a GPU should take the matrix units for kept blocks alone."""
    chosen = _chosen(path)
    return density <= _BLOCKS_LIMIT if chosen == "auto" else chosen == "sparse"


def _chosen(path: str) -> str:
    path = str(_state["path"]) if path == "auto" else path
    check_path("masked", path)
    return path


def measured_threads() -> int:
    """The number of threads in the table that is nearest to torch's. A compiled graph keeps that of its making."""
    tables, threads = _state["tables"], torch.get_num_threads()
    return threads if threads in tables else min(tables, key=lambda n: (abs(n - threads), n))


def in_force() -> tuple[str, Tables]:
    """What the choices of "auto" are made by: unequal once they may have changed."""
    return _state["path"], _state["tables"]


def force(path: str) -> None:
    """Makes every call of this process with ``path="auto"`` go one way; "auto" ends it. What was compiled stays."""
    check_path("force", path)
    _state["path"] = path


def check_path(op: str, path: str) -> None:
    """Raises EdgePruneError unless ``path`` is "auto", "sparse" or "dense"."""
    if path not in PATHS:
        raise EdgePruneError(f"{op}: path is {path!r}; give one of {', '.join(PATHS)}")


# ---- the file -------------------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Where this user's measured table lies, whether or not it exists. OSError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder")
    return Path(base) / "edgeprune" / "crossover.json"


def fingerprint() -> dict[str, Any]:
    """What a measured table depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "CPU part", "cpu family", "model")
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            found.setdefault(key.strip(), value.strip())
    return {
        "processor": " ".join(found.values()) or platform.machine(),
        "cores": os.cpu_count(),
        "kernels": core.chosen_variant(),
        "torch": torch.__version__,
    }


def to_json(tables: Tables, machine: Mapping[str, Any] | None = None) -> str:
    """The table as the file holds it, with the machine it was measured on."""
    body = {
        "format": FORMAT,
        "machine": dict(fingerprint() if machine is None else machine),
        "threads": {str(threads): table for threads, table in sorted(tables.items())},
    }
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def save(tables: Tables) -> Path:
    """Writes this machine's table (written, then renamed) and uses it from now on."""
    text = to_json(tables)
    _state.update(tables=from_json(text)[0], source="measured on this machine")
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode(), "bench kernels", "make room, set XDG_CACHE_HOME, or --no-save")
    return path


def from_json(text: str) -> tuple[Tables, dict[str, Any]]:
    """(tables, machine) of a file's text. Raises EdgePruneError for anything that :func:`to_json` does not write."""
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}")
        tables: Tables = {
            int(threads): {
                work: {kind: tuple((float(at), float(limit)) for at, limit in table[work][kind]) for kind in KINDS}
                for work in _WORK
            }
            for threads, table in body["threads"].items()
        }
        if not tables:
            raise ValueError("no threads")
        return tables, dict(body["machine"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EdgePruneError(f"crossover: not a table of densities ({error!r}); measure it again") from error


def source() -> str:
    """Where the table in use comes from, in words."""
    return str(_state["source"])


def load() -> None:
    """Reads the user's table if it is one of this machine, else the package's; done once on import."""
    try:
        tables, machine = from_json(cache_file().read_text(encoding="utf-8", errors="replace"))
        if machine == fingerprint():
            _state.update(tables=tables, source="measured on this machine")
            return
        reason = "the package's, since the measured one is of another machine or version"
    except OSError:
        reason = "the package's; 'edgeprune bench kernels' measures this machine's"
    except EdgePruneError:
        reason = "the package's, since the file in the cache directory is damaged or of another version"
    tables, _ = from_json(Path(__file__).with_name("crossover.json").read_text(encoding="utf-8"))
    _state.update(tables=tables, source=reason)


_state: dict[str, Any] = {"path": os.environ.get("EDGEPRUNE_MASKED", "auto")}
check_path("EDGEPRUNE_MASKED", _state["path"])
load()
