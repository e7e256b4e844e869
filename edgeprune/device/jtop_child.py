"""The only file that imports jtop, and it is a process of its own: ``python -m edgeprune.device.jtop_child INTERVAL``.

jtop 7 forces the fork start method on the process that imports it, and its ``start()`` can block for ever. So this
process may hang or die without harm: it writes one JSON object a line on its standard output, ends when its standard
input is closed, and :mod:`edgeprune.device.jtop` watches it against a clock.

    {"event": "started", "client": VERSION, "interval_s": the service's own}
    {"event": "sample", "time_s", "power_w" or null, "total", "rails_w", "temperatures_c", "mode", "clocks_khz"}
    {"event": "stale"}                                                    a sample that does not advance
    {"event": "fault", "kind": KIND, "detail": TEXT}                      the last line
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from typing import Any

OLDEST = (4, 3)


def main() -> None:
    """Connect, then a line a sample until standard input is closed."""
    interval = float(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what jtop or its helpers print must not get between our lines

    def say(**fields: Any) -> None:
        out.write(json.dumps(fields) + "\n")

    threading.Thread(target=_die_with_parent, daemon=True).start()
    client: str | None = None
    stage = "import"
    try:
        module = importlib.import_module("jtop")
        client = str(getattr(module, "__version__", "unknown"))
        if not _recent(client):
            say(event="fault", kind="old", detail=client)
            return
        stage = "start"
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        board = module.jtop(interval=interval)
        board.start()
        effective = float(board.interval)
        say(event="started", client=client, interval_s=effective)
        stage = "read"
        last = began - effective
        while board.ok():
            sample = read(board)
            if sample["time_s"] <= last:
                say(event="stale")
                continue
            last = sample["time_s"]
            say(event="sample", **sample)
        say(event="fault", kind="lost", detail="no sample within three intervals")
    except ImportError as error:
        say(event="fault", kind="absent", detail=str(error))
    except BrokenPipeError:
        pass
    except BaseException as error:  # KeyError, EOFError, OSError, JtopException ...: each becomes a sentence
        kind = classify(error, stage)
        say(event="fault", kind=kind, detail=f"{type(error).__name__}: {error}", client=client)
    finally:
        out.flush()
        os._exit(0)  # jtop's threads may hang; nothing of ours is left to do


def read(board: Any) -> dict[str, Any]:
    """One sample; a field that this board or version lacks is left out, never guessed."""
    power, rails, total = None, {}, None
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        shown = board.power
        rails = {str(name): rail["power"] / 1e3 for name, rail in shown.get("rail", {}).items()}
        if rails or "name" in shown.get("tot", {}):
            power, total = shown["tot"]["power"] / 1e3, shown["tot"].get("name")
    temperatures = {}
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        for name, value in board.temperature.items():
            if isinstance(value, dict) and value.get("online", True) and value.get("temp", -256) > -100:
                temperatures[str(name)] = float(value["temp"])
    mode = None
    with contextlib.suppress(Exception):
        mode = str(board.nvpmodel.name) if board.nvpmodel is not None else None
    clocks = {}
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        for name, gpu in board.gpu.items():
            clocks[f"{name} clock"] = int(gpu["freq"]["max"])
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        highest = [int(core["freq"]["max"]) for core in board.cpu["cpu"] if core.get("online")]
        if highest:
            clocks["CPU clock"] = max(highest)
    return {
        "time_s": board.uptime.total_seconds(),
        "power_w": power,
        "total": total,
        "rails_w": rails,
        "temperatures_c": temperatures,
        "mode": mode,
        "clocks_khz": clocks,
    }


def classify(error: BaseException, stage: str) -> str:
    """Which of the known troubles this is, by type and by jtop's own words."""
    text = str(error)
    if "Mismatch version" in text:
        return "mismatch"
    if isinstance(error, PermissionError) or "can't access" in text:
        return "forbidden"
    if "not active" in text or isinstance(error, FileNotFoundError):
        return "no-service"
    if "Mismatch of Python" in text or "Authentication" in text or "uthentication" in type(error).__name__:
        return "mismatch"
    # A service of another version speaks another dialect: it shows as a missing key before the first sample.
    if stage == "start" and isinstance(error, (KeyError, TypeError, AttributeError)):
        return "mismatch"
    if stage == "start" and (type(error).__name__ in ("Empty", "TimeoutError") or "Error connection" in text):
        return "silent"
    return "lost" if stage == "read" or isinstance(error, (EOFError, OSError)) else "error"


def _recent(version: str) -> bool:
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return len(numbers) < 2 or tuple(numbers) >= OLDEST


def _die_with_parent() -> None:
    with contextlib.suppress(Exception):
        while sys.stdin.buffer.read(4096):
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
