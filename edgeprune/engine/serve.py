"""The server's side of a federation: certificates, kits, the engine's processes, and an eye on them until the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.engine import federation as federations
from edgeprune.engine import rundir
from edgeprune.engine.children import Children, wait_for
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.engine.kits import Federation, split_address, write_kits
from edgeprune.engine.orders import Orders, said
from edgeprune.engine.ports import free_port, listens, refuse_taken
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import build_fleet

ENGINES = ("flower", "flare")
LOOK_S = 0.3
START_S = 60.0
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Service:
    """What ``edgeprune serve`` was asked for. ``out``: the run's folder; the kits lie beside it."""

    out: Path
    engine: str
    address: str
    data: Path | None
    wait_s: float
    own: bool
    resume: bool = False
    rounds: int = 0

    @property
    def federation(self) -> Federation:
        """The folder with certificates and kits."""
        return Federation(self.out.with_name(f"{self.out.name}.federation").resolve())


def serve(
    service: Service, experiment: Experiment | None, watch: Callable[[Record], None], say: Callable[[str], None]
) -> dict[str, Any]:
    """Lead ``experiment`` (None: the one in ``out``, which is resumed) over real devices. Returns the summary."""
    if service.resume:
        experiment = load_experiment(service.out / rundir.CONFIG)
    assert experiment is not None
    experiment = replace(experiment, run=replace(experiment.run, engine=service.engine))
    federations.check(experiment)
    if not service.resume and service.out.exists():
        raise EdgePruneError(f"{service.out}: already there; choose another --out, or --resume that run")
    host, port = split_address(service.address)
    if service.engine == "flower":
        from edgeprune.engine.flower import ceremony

        ceremony.check()
    refuse_taken(host, port)
    own = service.federation
    write_kits(own, experiment, service.engine, service.address)
    names = build_fleet(experiment.fleet).names
    say(f"kits for {len(names)} devices are in {own.folder / 'kits'}; on each: edgeprune join KIT --data DIR")
    orders = Orders(
        str(own.kit(names[0]) / "experiment.toml"),
        str(service.out.resolve()),
        str(service.data.resolve()) if service.data else os.environ.get("EDGEPRUNE_DATA"),
        service.wait_s,
        service.resume,
        service.own,
        service.rounds,
    )
    _flower(service, orders, names, watch, say)
    return dict(json.loads((service.out / rundir.SUMMARY).read_text()))


def _flower(
    service: Service,
    orders: Orders,
    names: tuple[str, ...],
    watch: Callable[[Record], None],
    say: Callable[[str], None],
) -> None:
    from edgeprune.engine.flower import ceremony
    from edgeprune.engine.flower.gate import Gate

    own, (host, port) = service.federation, split_address(service.address)
    folder, inner = own.private, free_port()
    with Children() as children:
        link = children.start(ceremony.superlink(folder, inner))
        if not wait_for(lambda: listens(inner), START_S, link):
            raise EdgePruneError(f"{link.name} did not begin within {START_S:.0f} s: {link.tail()}")
        control = ceremony.Control(folder, inner)
        nodes = {name: control.register(own.public_key(name)) for name in names}
        with Gate(host, port, inner, folder) as gate:
            replace(orders, nodes=nodes).write(folder)
            run = control.start()
            say(f"waiting for the devices at {service.address} (log {link.log})")

            def alive() -> str | None:
                if link.status() is not None:
                    return f"{link.name} ended (status {link.status()}): {link.tail()}"
                status = control.status(run)
                return f"Flower says that the run is {status}: {link.tail()}" if "finished" in status else None

            follow(service.out, folder, watch, say, alive)
        (folder / "gate.json").write_text(json.dumps(gate.counts))


def follow(
    out: Path,
    folder: Path,
    watch: Callable[[Record], None],
    say: Callable[[str], None],
    alive: Callable[[], str | None],
) -> None:
    """Pass on what the leading process says and each round's record, until it is done.

    ``alive``: why it cannot be any more, asked when nothing was heard for a while. Raises :class:`EdgePruneError`.
    """
    heard, shown, quiet = 0, 0, time.monotonic()
    while True:
        records = rundir.read_metrics(out / rundir.METRICS)[shown:]
        for record in records:
            watch(record)
        shown += len(records)
        for kind, what in said(folder, heard):
            heard += 1
            if kind == "say":
                say(what)
            elif kind == "error":
                raise EdgePruneError(what)
            elif kind == "end":
                for record in rundir.read_metrics(out / rundir.METRICS)[shown:]:
                    watch(record)
                return
            records.append({})
        if records:
            quiet = time.monotonic()
        elif time.monotonic() - quiet > 15:
            reason = alive()
            if reason is not None and not any(kind in ("end", "error") for kind, _ in said(folder, heard)):
                raise EdgePruneError(f"serve: {reason}")
            quiet = time.monotonic()
        time.sleep(LOOK_S)
