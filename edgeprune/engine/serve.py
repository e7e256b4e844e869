"""The server's side of a federation: certificates, kits, the engine's processes, and an eye on them until the end."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.engine import federation as federations
from edgeprune.engine import rundir
from edgeprune.engine.children import Children, wait_for
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.engine.kits import EXPERIMENT, Federation, prepare_folder, split_address, write_kits
from edgeprune.engine.locks import alone
from edgeprune.engine.orders import Orders, said
from edgeprune.engine.ports import free_port, listens, refuse_taken
from edgeprune.engine.remote import absent
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import build_fleet

LOOK_S, TEND_S = 0.3, 10.0
STRAYED = 3  # looks in a row at which a device has no part in the job: starting one takes a while too
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
        return Federation(rundir.beside(self.out, "federation").resolve())


def which_engine() -> str:
    """The engine that is installed here, FLARE before Flower."""
    for engine, package in (("flare", "nvflare"), ("flower", "flwr")):
        if importlib.util.find_spec(package) is not None:
            return engine
    raise EdgePruneError("serve: no engine is installed; pip install 'edgeprune[flare]' or 'edgeprune[flower]'")


def check_engine(engine: str) -> None:
    """Refuse to begin with an engine that is not here, or too old."""
    if engine == "flower":
        from edgeprune.engine.flower import ceremony

        ceremony.check()
    else:
        from edgeprune.engine.flare import ceremony as flare

        flare.check()


def make_kits(service: Service, experiment: Experiment, say: Callable[[str], None]) -> None:
    """Write the kits, and say where they are. EdgePruneError while another process leads from them."""
    check_engine(service.engine)
    with _alone(service.federation):
        _make_kits(service, experiment, say)


def _alone(own: Federation) -> AbstractContextManager[None]:
    prepare_folder(own)
    return alone(own.folder, f"{own.folder}: another 'edgeprune serve' works there; stop it, or give another --out")


def _make_kits(service: Service, experiment: Experiment, say: Callable[[str], None]) -> None:
    own = service.federation
    write_kits(own, experiment, service.engine, service.address)
    count = len(build_fleet(experiment.fleet).names)
    say(f"kits for {count} devices are in {own.folder / 'kits'}; on each: edgeprune join KIT --data DIR")


def serve(
    service: Service, experiment: Experiment | None, watch: Callable[[Record], None], say: Callable[[str], None]
) -> dict[str, Any]:
    """Lead ``experiment`` (None: the one in ``out``, which is resumed) over real devices. Returns the summary."""
    if service.resume:
        experiment = load_experiment(service.out / rundir.CONFIG)
    assert experiment is not None
    experiment = replace(experiment, run=replace(experiment.run, engine=service.engine))
    federations.check(experiment)
    if not service.resume:
        rundir.refuse_present(service.out)
    host, port = split_address(service.address)
    check_engine(service.engine)
    refuse_taken(host, port)
    with _alone(service.federation):
        _make_kits(service, experiment, say)
        own, names = service.federation, build_fleet(experiment.fleet).names
        orders = Orders(
            str(own.private / EXPERIMENT),
            str(service.out.resolve()),
            str(service.data.resolve()) if service.data else os.environ.get("EDGEPRUNE_DATA"),
            service.wait_s,
            service.resume,
            service.own,
            service.rounds,
        )
        (_flower if service.engine == "flower" else _flare)(service, orders, names, watch, say)
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


def _flare(
    service: Service,
    orders: Orders,
    names: tuple[str, ...],
    watch: Callable[[Record], None],
    say: Callable[[str], None],
) -> None:
    from edgeprune.engine.flare import ceremony

    folder, (host, port) = service.federation.private, split_address(service.address)
    with Children() as children:
        server = children.start(ceremony.server(folder))
        if not wait_for(lambda: listens(port, host), START_S, server):
            raise EdgePruneError(f"{server.name} did not begin within {START_S:.0f} s: {server.tail()}")
        control = ceremony.Control(folder)
        try:
            say(f"waiting for the devices at {service.address} (log {server.log})")
            if not wait_for(lambda: set(names) <= set(control.connected()), service.wait_s, server, step_s=1.0):
                missing = [name for name in names if name not in control.connected()]
                raise EdgePruneError(absent(missing, service.wait_s))
            orders.write(folder)
            run = control.start(names)

            def alive() -> str | None:
                if server.status() is not None:
                    return f"{server.name} ended (status {server.status()}): {server.tail()}"
                status = control.status(run)
                return f"FLARE says that the job is {status}: {server.tail()}" if "FINISHED" in status else None

            seen: Counter[str] = Counter()

            def tend(leader: int) -> bool:
                nonlocal run, seen
                seen = Counter({name: seen[name] + 1 for name in control.strays(run)})
                strays = sorted(name for name, times in seen.items() if times >= STRAYED)
                if not strays:
                    return False
                seen.clear()
                say(f"{', '.join(strays)} came back without the job; it is begun anew where it was")
                control.abort(run)
                wait_for(lambda: not Path(f"/proc/{leader}").exists(), START_S, None)
                replace(orders, resume=service.resume or (service.out / rundir.CONFIG).is_file()).write(folder)
                run = control.start(names)
                return True

            follow(service.out, folder, watch, say, alive, tend)
        finally:
            control.close()


def follow(
    out: Path,
    folder: Path,
    watch: Callable[[Record], None],
    say: Callable[[str], None],
    alive: Callable[[], str | None],
    tend: Callable[[int], bool] = lambda _: False,
) -> None:
    """Pass on what the leading process says and each round's record, until it is done.

    ``alive``: why it cannot be any more, asked when nothing was heard for a while. ``tend(leader)`` is called now and
    then with the leading process's id; whether it put another one in its place. Raises :class:`EdgePruneError`.
    """
    heard, shown, leader = 0, 0, 0
    quiet = tended = time.monotonic()
    while True:
        if leader and time.monotonic() - tended > TEND_S:
            if tend(leader):
                heard, leader = 0, 0
            tended = time.monotonic()
        records = rundir.read_metrics(out / rundir.METRICS)[shown:]
        for record in records:
            watch(record)
        shown += len(records)
        for kind, what in said(folder, heard):
            heard += 1
            if kind == "pid":
                leader = what
            elif kind == "say":
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
