"""A run whose devices are processes of their own: wait for them, then the same loop as everywhere."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from edgeprune._version import __version__
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import run, rundir
from edgeprune.engine.carrier import Carrier
from edgeprune.engine.children import MISTAKE, Child, Children, wait_for
from edgeprune.engine.config import Experiment
from edgeprune.engine.remote import RemoteTransport, Terms
from edgeprune.engine.reporting import fleet_reports
from edgeprune.engine.resident import experiment_id, state_file
from edgeprune.engine.run import Prepared, Watch
from edgeprune.engine.sockets import SocketCarrier
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import build_fleet

MOST_PROCESSES = 64
MOST_STARTS = 10  # of one worker in a run
TEMPORARY_BYTES = 70  # of 107 that a socket's path may have
Say = Callable[[str], None]
Clock = Callable[[], float]


def check(experiment: Experiment) -> None:
    """Refuse what only a virtual clock can do."""
    for what in ("event", "fault"):
        if getattr(experiment.fleet, what):
            raise EdgePruneError(f"fleet.{what} is for the virtual clock; leave it out, or use run.engine = 'local'")
    every = experiment.run.checkpoint_every
    if every > 1 and getattr(experiment.algorithm, "feedback", False):
        raise EdgePruneError(
            f"run.checkpoint_every is {every}, and devices of their own keep what error feedback owes after the last "
            "round only: a run that resumes at an earlier one would go on with other numbers; use 1"
        )


def lead(
    experiment: Experiment,
    carrier: Carrier,
    out: Path,
    data_dir: str | Path | None,
    *,
    wait_s: float,
    watch: Watch | None = None,
    say: Say = lambda _: None,
    own: bool = False,
    clock: Clock = monotonic,
) -> dict[str, Any]:
    """Lead a new run into ``out`` over ``carrier``, once every device of the fleet has joined. Returns the summary.

    ``own``: the devices have data of their own, not a part of the server's; then how many samples is theirs to say.
    """
    check(experiment)
    prepared = run.prepare(experiment, data_dir)
    prepared, transport = _enrolled(prepared, carrier, wait_s, say, own, clock)
    summary = run.start(prepared, out, watch, transport)
    transport.close(prepared.setting.clients)
    return summary


def lead_on(
    out: Path,
    carrier: Carrier,
    data_dir: str | Path | None,
    *,
    wait_s: float,
    watch: Watch | None = None,
    say: Say = lambda _: None,
    own: bool = False,
    rounds: int = 0,
    clock: Clock = monotonic,
) -> dict[str, Any]:
    """Go on with the run in ``out``: the devices kept what is theirs meanwhile."""
    found: list[tuple[Prepared, RemoteTransport]] = []

    def connect(prepared: Prepared) -> tuple[Prepared, RemoteTransport]:
        found.append(_enrolled(prepared, carrier, wait_s, say, own, clock))
        return found[0]

    summary = run.resume(out, data_dir, watch, rounds, connect)
    ((prepared, transport),) = found
    transport.close(prepared.setting.clients)
    return summary


def _enrolled(
    prepared: Prepared, carrier: Carrier, wait_s: float, say: Say, own: bool, clock: Clock
) -> tuple[Prepared, RemoteTransport]:
    told = prepared.experiment
    terms = Terms(__version__, experiment_id(told))
    transport = RemoteTransport(carrier, terms, told.run.deadline_s, clock, told.identity())
    samples = transport.enrol(prepared.setting.clients, wait_s, say)
    if own:
        setting = replace(prepared.setting, samples=samples)
        if setting.reports:  # their steps are those of the devices' own samples
            run_, noise = prepared.experiment.run, prepared.experiment.fleet.profile_noise
            reports = fleet_reports(prepared.fleet, prepared.table, samples, setting.recipe, noise, run_.seed)
            setting = replace(setting, reports=reports)
        return replace(prepared, setting=setting, local={}), transport
    for client, expected in prepared.setting.samples.items():
        if samples[client] != expected:
            raise EdgePruneError(
                f"{client} has {samples[client]} samples, its part of the server's data are {expected}; give it the "
                "same data set, or say --own-data on both sides"
            )
    return prepared, transport


def run_here(
    experiment: Experiment,
    out: Path,
    data_dir: str | Path | None,
    *,
    watch: Watch | None = None,
    say: Say = lambda _: None,
    resume: bool = False,
    rounds: int = 0,
) -> dict[str, Any]:
    """A run with every device a process of this machine, on the real clock. Returns the summary."""
    check(experiment)
    names = build_fleet(experiment.fleet).names
    if len(names) > MOST_PROCESSES:
        raise EdgePruneError(
            f"run.engine 'processes': {len(names)} devices would be as many processes; at most {MOST_PROCESSES}, or "
            "use run.engine = 'local'"
        )
    if not resume:
        rundir.refuse_present(out)
    state = rundir.beside(out, "devices")
    if not resume:
        _cleared(state, names)
    common: dict[str, Any] = {"wait_s": 120.0, "watch": watch, "say": say}
    try:
        _made(state)
        with (
            tempfile.TemporaryDirectory(prefix="edgeprune-", dir=_short_folder()) as folder,
            Workers(experiment, names, Path(folder), data_dir, state=state) as workers,
        ):
            carrier = workers.carrier()
            workers.tend()
            if resume:
                return lead_on(out, carrier, data_dir, rounds=rounds, **common)
            return lead(experiment, carrier, out, data_dir, **common)
    finally:
        if not rundir.is_run(out):  # a mistake: no run was begun
            _cleared(state, names)


def _cleared(state: Path, names: Sequence[str]) -> None:
    """Without what devices of these names keep in ``state``, and without it where nothing else is there."""
    for name in names:
        with suppress(OSError):
            state_file(state, name).unlink()
    with suppress(OSError):
        state.rmdir()


def _made(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgePruneError(f"{state}: cannot be made a folder ({error.strerror}); choose another --out") from None


def _short_folder() -> str:
    """For temporary files; /tmp where the usual place is too far down for the path of a socket in it."""
    try:
        usual = tempfile.gettempdir()
    except OSError as error:
        raise EdgePruneError(f"run: {error.strerror}; name one with TMPDIR") from None
    return usual if len(os.fsencode(usual)) <= TEMPORARY_BYTES else "/tmp"


class Workers(AbstractContextManager["Workers"]):
    """Resident workers as processes of this machine, ``hosts`` of them (0: one for every device).

    ``folder`` holds their sockets, whose paths may have 107 bytes only, and their logs; ``state`` what must survive.
    """

    def __init__(
        self,
        experiment: Experiment,
        names: Sequence[str],
        folder: Path,
        data_dir: str | Path | None,
        hosts: int = 0,
        state: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        file = folder / "experiment.toml"
        checkpoints.write_atomically(file, experiment.to_toml().encode())
        hosts = min(hosts or len(names), len(names))
        self._children = Children()
        self._over = threading.Event()
        self._tending: threading.Thread | None = None
        self.paths: dict[str, Path] = {}
        self.hosts: list[Child] = []
        for number in range(hosts):
            mine, path = names[number::hosts], folder / f"{number}.sock"
            self.paths |= dict.fromkeys(mine, path)
            command = [sys.executable, "-m", "edgeprune.engine.resident", "--experiment", str(file)]
            command += ["--socket", str(path), "--state", str(state or folder / "state")]
            command += [f"--client={name}" for name in mine] + ([f"--data={data_dir}"] if data_dir else [])
            env = {"OMP_NUM_THREADS": str(experiment.run.threads)} if experiment.run.threads else {}
            self.hosts.append(Child(f"worker of {mine[0]}", command, folder / f"{number}.log", env, restart_s=1.0))

    def __enter__(self) -> Workers:
        for child in self.hosts:
            self._children.start(child)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._tending is not None:
            self._tending.join()
        self._children.__exit__(kind, error, trace)

    def tend(self) -> None:
        """From now on start again who fails."""

        def watch() -> None:
            while not self._over.wait(0.2):
                for child in self.hosts:
                    # 0: the run is over; MISTAKE: it would end in the same way again.
                    if child.status() not in (None, 0, MISTAKE) and child.starts < MOST_STARTS:
                        with suppress(EdgePruneError):  # tried again
                            child.tend()

        self._tending = threading.Thread(target=watch, daemon=True)
        self._tending.start()

    def carrier(self, seconds: float = 120.0) -> SocketCarrier:
        """The way to them, once all listen."""
        for child, path in zip(self.hosts, dict.fromkeys(self.paths.values()), strict=True):
            if not wait_for(path.is_socket, seconds, child):
                raise EdgePruneError(f"{child.name} did not begin within {seconds:.0f} s: {child.tail()}")
        return SocketCarrier(self.paths)
