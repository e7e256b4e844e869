"""Between ``edgeprune serve`` and the engine's own server process: what to lead, written as a file, and what came of
it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.engine import rundir
from edgeprune.engine.carrier import Carrier
from edgeprune.engine.checkpoint import write_atomically
from edgeprune.engine.config import load_experiment
from edgeprune.engine.federation import lead, lead_on
from edgeprune.errors import EdgePruneError

ORDERS, SAID = "orders.json", "said.jsonl"
LOOK_S = 0.5


@dataclass(frozen=True)
class Orders:
    """``nodes``: each device's number in the engine, where it has one. ``own``: the devices' data are their own.
    ``server``: the process that gave the orders; who follows them ends with it."""

    experiment: str
    out: str
    data: str | None
    wait_s: float
    resume: bool
    own: bool
    rounds: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)
    server: int = field(default_factory=os.getpid)

    def write(self, folder: Path) -> None:
        """Into ``folder``, with nothing said yet."""
        (folder / SAID).unlink(missing_ok=True)
        write_atomically(folder / ORDERS, json.dumps(asdict(self)).encode())


def follow_orders(folder: Path, carrier: Callable[[Orders], Carrier]) -> None:
    """Lead the run; whatever happens, the last line said is "end" or "error"."""
    orders = Orders(**json.loads((folder / ORDERS).read_text()))

    def say(kind: str, what: Any) -> None:
        with open(folder / SAID, "a", encoding="utf-8") as file:
            file.write(json.dumps({kind: what}) + "\n")

    data = Path(orders.data) if orders.data else None
    common: dict[str, Any] = {"wait_s": orders.wait_s, "own": orders.own, "say": lambda text: say("say", text)}
    threading.Thread(target=_end_with, args=(orders.server,), daemon=True).start()
    say("pid", os.getpid())
    try:
        if orders.resume:
            lead_on(Path(orders.out), carrier(orders), data, rounds=orders.rounds, **common)
        else:
            experiment = load_experiment(Path(orders.experiment))
            lead(experiment, carrier(orders), Path(orders.out), data, **common)
    except EdgePruneError as error:
        say("error", str(error))
    except Exception as error:  # the engine's own, of any kind: the one who waits must hear of it
        say("error", f"serve: the engine failed ({type(error).__name__}: {error})")
        raise
    else:
        say("end", str(Path(orders.out) / rundir.SUMMARY))


def _end_with(server: int) -> None:
    """The engine may leave this process behind when its own server is killed; two must never lead one run."""
    while True:
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            os._exit(3)
        time.sleep(LOOK_S)


def said(folder: Path, after: int) -> Iterator[tuple[str, Any]]:
    """What was said after the first ``after`` lines."""
    try:
        lines = (folder / SAID).read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        return
    for line in lines[after:]:
        yield from json.loads(line).items()
