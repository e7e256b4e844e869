"""The resident worker: one process of a device that owns torch, the data and the extension, and answers frames.

    python -m edgeprune.engine.resident --experiment FILE --client NAME --data DIR --socket PATH --state DIR

Engines come and go, the server too: this process stays. It trains in its main thread, one job after the other (torch's
number of threads belongs to the thread that set it), measures its own time and energy, and gives an assignment that
comes again the answer that it gave before, so that a server that resumes does not train anybody twice.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import queue
import select
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import safetensors
import safetensors.torch
import torch

from edgeprune._version import __version__
from edgeprune.algorithms.training import LocalData
from edgeprune.device.energy import EnergyMeter
from edgeprune.device.power import SOURCES, open_sampler
from edgeprune.engine import frames
from edgeprune.engine.checkpoint import write_atomically
from edgeprune.engine.children import MISTAKE, SAYS
from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.engine.frames import Frame
from edgeprune.engine.run import split
from edgeprune.engine.trial import try_alone, try_split
from edgeprune.engine.worker import Answer, ModelShelf, Worker
from edgeprune.errors import EdgePruneError, raised
from edgeprune.fleet import build_fleet
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.tasks import get as get_task
from edgeprune.tasks.task import examples_of, initial_model

OWED, LAST = "owed/", "last"  # in the state file: what error feedback owes, by tensor; the bytes of the last update


def experiment_id(experiment: Experiment) -> str:
    """16 hex digits over all that server and devices must agree on; how long a run is, is the server's affair."""
    told = experiment.to_dict()
    fleet = {key: told["fleet"][key] for key in ("devices", "heterogeneity", "device")}
    shared = {"task": told["task"], "data": told["data"], "fleet": fleet, "seed": told["run"]["seed"]}
    text = json.dumps({**shared, "threads": told["run"]["threads"]}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Resident:
    """One device: its worker, what it remembers on disk, the answers it gave last.

    ``state``: a file that keeps the plan, what error feedback owes and, where it owes anything, the last update; a
    worker that was killed goes on from there.
    ``meter``: of the machine's power, where it can be had.
    """

    def __init__(
        self,
        client: str,
        data: LocalData,
        graph: ChannelGraph,
        shelf: ModelShelf,
        loss: Any,
        about: Any,
        state: Path,
        meter: EnergyMeter | None = None,
    ) -> None:
        plan, residual, self._round, self._run, last = _remembered(state, graph)
        self._new = lambda: Worker(client, data, graph, shelf, loss)
        self._worker = Worker(client, data, graph, shelf, loss, plan, residual)
        self._client = client
        self._about = {**about, "samples": len(data)}
        self._meter = meter or EnergyMeter(partial(open_sampler, "none"))
        self._state = state
        self._plan = "" if plan is None else plan.id
        # By what was asked for ("update", "statistics"): which bytes asked, and what was answered.
        self._given: dict[str, tuple[str, Frame]] = {} if last is None else {"update": last}

    def hello(self, token: str) -> Frame:
        """Who this is: samples, version, experiment, where power comes from."""
        return Frame("hello", self._client, token, {**self._about, "power": self._meter.source})

    def work(self, asked: Frame) -> Frame:
        """The answer to an assignment; "refused" with the reason where it is nothing for this device."""
        key = hashlib.sha256(asked.blob).hexdigest()
        known = next((frame for asked_by, frame in self._given.values() if asked_by == key), None)
        if known is not None:
            return Frame(known.verb, self._client, asked.token, {**known.about, "again": True}, known.blob)
        round_, run = asked.about.get("round"), asked.about.get("run")
        other = isinstance(run, str) and self._run not in ("", run)
        if other or isinstance(round_, int) and round_ < self._round:
            # Another run has begun, or this one again: what was owed is owed no more.
            plans, self._worker, self._plan = self._worker.plans, self._new(), ""
            self._worker.plans.update(plans)
            self._given.clear()
        self._round = round_ if isinstance(round_, int) else self._round
        self._run = run if isinstance(run, str) else self._run
        try:
            return self._worked(asked, key)
        except EdgePruneError as error:
            reason = str(error)
        except Exception as error:  # of the user's model or data; the next assignment may fare better
            traceback.print_exc()
            said = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else raised(error)
            reason = f"its work failed ({said}); the device's log has more"  # paths stay on the device
        return Frame("refused", self._client, asked.token, {**self._about, "reason": reason})

    def _worked(self, asked: Frame, key: str) -> Frame:
        cpu, began = _cpu_s(), perf_counter()
        self._meter.begin()
        answer = self._worker.handle(asked.blob)
        measured = {"compute_s": perf_counter() - began, "cpu_s": _cpu_s() - cpu, "steps": answer.steps}
        energy = self._meter.finish()
        if energy.joules is not None:
            measured |= {"energy_j": energy.joules}
        given = Frame("done", self._client, asked.token, {**self._about, **measured}, answer.blob)
        if answer.kind == "update":
            try:
                self._remember(answer, key, given)
            except EdgePruneError as error:
                self._worker.take_back(answer)
                print(f"{SAYS}{error}", file=sys.stderr)
                raise EdgePruneError(
                    "it cannot write what it must remember; make room on the device (its log has more)"
                ) from None
        self._given[answer.kind] = key, given
        return given

    def _remember(self, answer: Answer, key: str, given: Frame) -> None:
        """Keep what a new process needs. The update itself only where it cannot be made again: what error feedback owed
        before it is gone."""
        residual = self._worker.residual
        if answer.plan.id == self._plan and not residual:
            return
        kept = base64.b64encode(answer.plan.kept_bytes()).decode()
        tensors = {OWED + name: t.contiguous() for name, t in residual.items()}
        if residual:
            tensors[LAST] = torch.frombuffer(bytearray(given.to_bytes()), dtype=torch.uint8)
        told = {"plan": kept, "round": str(self._round), "run": self._run, "asked": key}
        write_atomically(self._state, safetensors.torch.save(tensors, metadata=told))
        self._plan = answer.plan.id


Kept = tuple[SubmodelPlan | None, dict[str, torch.Tensor], int, str, tuple[str, Frame] | None]


def _remembered(state: Path, graph: ChannelGraph) -> Kept:
    """The plan, the residual, the round, the run and the last update in ``state``; nothing where it is not there or not
    this model's."""
    try:
        with safetensors.safe_open(state, framework="pt") as file:
            told = file.metadata()
            plan = SubmodelPlan.from_kept_bytes(graph, base64.b64decode(told["plan"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        last = None
        if LAST in tensors:
            last = told["asked"], Frame.from_bytes(tensors.pop(LAST).numpy().tobytes(), frames.ANSWERS)
        owed = {name.removeprefix(OWED): t for name, t in tensors.items()}
        return plan, owed, int(told["round"]), told.get("run", ""), last
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, EdgePruneError):
        return None, {}, 0, "", None


def state_file(folder: Path, client: str) -> Path:
    """Where ``client`` keeps in ``folder`` what must survive."""
    return folder / f"device-{quote(client, safe='')}"


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def residents(
    experiment: Experiment,
    clients: Sequence[str],
    data_dir: str | Path | None,
    state: Path,
    own: bool = False,
    meter: EnergyMeter | None = None,
) -> dict[str, Resident]:
    """The devices ``clients`` of ``experiment`` on this machine: several share one model shelf, as a test bench does.

    Each has its part of the data by ``[data] partition``, or with ``own`` all the training data in ``data_dir``.
    ``meter``: of the machine's power; they work one after the other, so each has the energy of its own work.
    """
    if experiment.run.threads:
        torch.set_num_threads(experiment.run.threads)
    fleet = build_fleet(experiment.fleet)
    for client in clients:
        fleet[client]  # refused with the nearest name
    task = get_task(experiment.task.name)
    data = task.load_data(data_dir)
    if own:
        whole = LocalData(data.train.x, data.train.y, data.normalise)
        parts = dict.fromkeys(clients, whole)
    else:
        everyone = split(data, fleet, experiment.data, experiment.run.seed)
        parts = {client: everyone[client] for client in clients}
    model = initial_model(task, experiment.run.seed)
    try_split(task, model, data, data.train, "training")
    try_alone(model, parts)
    graph = ChannelGraph.trace(model, examples_of(task))
    shelf = ModelShelf(model)
    state.mkdir(parents=True, exist_ok=True)
    about = {"edgeprune": __version__, "experiment": experiment_id(experiment), "torch": torch.__version__}
    return {
        client: Resident(client, part, graph, shelf, task.loss, about, state_file(state, client), meter)
        for client, part in parts.items()
    }


@dataclass
class _Job:
    """One piece of work and the place for its answer."""

    frame: Frame
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""
    wanted: bool = True


class Listener:
    """Answers on a Unix socket that only this user may open, until nobody has asked for ``idle_s`` seconds."""

    def __init__(self, devices: dict[str, Resident], path: Path, idle_s: float) -> None:
        self._devices = devices
        self._left = set(devices)
        self._last: dict[tuple[str, bool], _Job] = {}  # by device, and whether it is wanted whatever is asked next
        self._lock = threading.Lock()
        self._idle_s = idle_s
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise EdgePruneError(
                f"worker: cannot listen on {path} ({error}); choose a folder with a shorter path"
            ) from None
        finally:
            os.umask(before)
        self._socket.listen(64)

    def run(self) -> None:
        """Work in this thread; connections have their own."""
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s)
            except queue.Empty:
                return
            if job is None:
                return
            if job.wanted:
                job.answer = self._devices[job.frame.client].work(job.frame).to_bytes()
            else:
                reason = "a newer assignment came before this one was begun"
                job.answer = Frame("refused", job.frame.client, job.frame.token, {"reason": reason}).to_bytes()
            job.done.set()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """One question, one answer. Whoever hangs up is not worked for."""
        with connection:
            connection.settimeout(60)
            bye = ""
            try:
                asked = Frame.from_bytes(frames.receive(connection), frames.ASKS)
                if asked.client not in self._devices:
                    raise EdgePruneError(f"this worker is not {frames.shown(asked.client, 64)!r}")
                answer = self._answer(asked, connection)
                bye = asked.client if asked.verb == "bye" else ""
            except EdgePruneError as error:
                answer = Frame("refused", "", "", {"reason": str(error)}).to_bytes()
            except OSError:
                return
            with suppress(OSError):
                connection.settimeout(60)
                frames.send(connection, answer)
            if bye:
                self._leave(bye)

    def _leave(self, client: str) -> None:
        """The run is over for ``client``; with the last one this process ends."""
        self._left.discard(client)
        if not self._left:
            self._jobs.put(None)

    def _answer(self, asked: Frame, connection: socket.socket) -> bytes:
        if asked.verb == "bye":
            return Frame("hello", asked.client, asked.token).to_bytes()
        if asked.verb == "hello":
            return self._devices[asked.client].hello(asked.token).to_bytes()
        job = _Job(asked)
        # In rounds that do not wait an assignment outlasts questions for statistics; another one takes its place.
        lasting = asked.about.get("lasting") is True
        with self._lock:
            for kind in (False, True) if lasting else (False,):
                older = self._last.get((asked.client, kind))
                if older is not None:
                    older.wanted = False  # its round is over; if it waits still, it is not begun
            self._last[asked.client, lasting] = job
        self._jobs.put(job)
        while not job.done.wait(1.0):
            # The one who asked has nothing more to say: what can be read now is the end of the connection.
            if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
                job.wanted = False
                raise EdgePruneError("the one who asked has gone")
        return job.answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the devices named; status MISTAKE and one sentence where they cannot be."""
    parser = argparse.ArgumentParser(prog="python -m edgeprune.engine.resident", description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--client", action="append", required=True, help="a device of the fleet; may be given again")
    parser.add_argument("--data", help="folder that holds the data sets")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder for what must survive a restart")
    parser.add_argument("--own", action="store_true", help="all training data here are this device's")
    parser.add_argument("--power", choices=SOURCES, default="none", help="where power figures come from")
    parser.add_argument("--idle", type=float, default=86400.0, help="end after so many seconds without a question")
    options = parser.parse_args(arguments)
    try:
        experiment = load_experiment(options.experiment)
        with EnergyMeter(partial(open_sampler, options.power)) as meter:
            devices = residents(experiment, options.client, options.data, options.state, options.own, meter)
            Listener(devices, options.socket, options.idle).run()
    except EdgePruneError as error:
        print(f"{SAYS}{' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
