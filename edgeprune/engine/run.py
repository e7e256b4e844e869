"""An experiment from its description to its end: prepare everything, then touch the disk, then go round by round."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from edgeprune import data as datasets
from edgeprune._version import __version__
from edgeprune.algorithms.protocol import Recipe, Setting
from edgeprune.algorithms.training import LocalData
from edgeprune.device.probe import beside_figures
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import rundir
from edgeprune.engine.checkpoint import Checkpoint
from edgeprune.engine.config import PARTITION_KEYS, DataConfig, Experiment, load_experiment
from edgeprune.engine.emulation import latency_table
from edgeprune.engine.evaluation import class_shares, client_accuracy
from edgeprune.engine.events import PENDING, EventTransport
from edgeprune.engine.executor import check_device, executor
from edgeprune.engine.interleaved import InterleavedServer
from edgeprune.engine.local import PLAN, LocalTransport
from edgeprune.engine.reporting import fleet_reports, own_times, recorded_times
from edgeprune.engine.rounds import Evaluated, Server
from edgeprune.engine.transport import Transport
from edgeprune.engine.trial import try_alone, try_task
from edgeprune.engine.worker import ModelShelf, Worker
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import Fleet, Times, build_fleet
from edgeprune.nn import densities
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.tasks import Task, evaluate_by_class
from edgeprune.tasks import get as get_task
from edgeprune.tasks.task import examples_of, initial_model

Watch = Callable[[Checkpoint, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked, with nothing written yet."""

    experiment: Experiment
    task: Task
    fleet: Fleet
    graph: ChannelGraph
    setting: Setting
    local: Mapping[str, LocalData]
    data: datasets.DataSet
    table: Times
    model: torch.nn.Module
    own: Mapping[str, Times] = field(default_factory=dict)


Connect = Callable[[Prepared], tuple[Prepared, Transport]]


def prepare(experiment: Experiment, data_dir: str | Path | None = None) -> Prepared:
    """Load the data, split them, build and trace the model, find the latency table.

    Raises :class:`EdgePruneError` for whatever the user has to put right; writes nothing.
    """
    check_device(experiment.run.executor, experiment.run.device)
    if experiment.run.threads:
        torch.set_num_threads(experiment.run.threads)
    fleet = build_fleet(experiment.fleet)
    task = get_task(experiment.task.name)
    data = task.load_data(data_dir)
    local = split(data, fleet, experiment.data, experiment.run.seed)
    model = initial_model(task, experiment.run.seed)
    try_task(task, model, data)
    graph = ChannelGraph.trace(model, examples_of(task))
    own = Recipe(1, task.batch_size, task.lr, task.momentum, task.weight_decay)
    recipe = experiment.algorithm.recipe(own)
    samples = {client: len(part) for client, part in local.items()}
    setting = Setting(
        graph, fleet.names, samples, recipe, experiment.run.rounds, seed=experiment.run.seed, maskable=_maskable(model)
    )
    if recipe.batch_size == 1:
        try_alone(model, local, recipe.batch_size)
    table = latency_table(experiment.fleet.latency, task, graph, local[fleet.names[0]], recipe)
    own_table = own_times(fleet, table)
    if getattr(experiment.algorithm, "needs_reports", False):
        noise, seed = experiment.fleet.profile_noise, experiment.run.seed
        setting = replace(setting, reports=fleet_reports(fleet, table, samples, recipe, noise, seed))
    return Prepared(experiment, task, fleet, graph, setting, local, data, table, model, own_table)


def start(
    prepared: Prepared, out: Path, watch: Watch | None = None, transport: Transport | None = None
) -> dict[str, Any]:
    """Run from the first round, into the new folder ``out``: over ``transport``, or all devices in this process.
    Returns the summary."""
    if transport is None:
        _refuse_other_engines(prepared.experiment)
    experiment = replace(prepared.experiment, fleet=replace(prepared.experiment.fleet, latency=rundir.LATENCY))
    server, begin = begun(prepared, transport)
    with rundir.created(out, experiment, prepared.table.to_json(), {n: t.to_json() for n, t in prepared.own.items()}):
        checkpoints.save(out / checkpoints.FILE, begin)
        return _go(prepared, server, begin, out, watch)


def begun(prepared: Prepared, transport: Transport | None = None) -> tuple[Server, Checkpoint]:
    """The loop, and the state before the first round, whose assignments were tried: what an algorithm refuses, it
    refuses here, with nothing written yet."""
    try_alone(prepared.model, prepared.local)
    server = _server(prepared, transport=transport)
    begin = server.start({name: tensor.clone() for name, tensor in prepared.model.state_dict().items()})
    server.algorithm.assign(server.setting, begin.state)
    return server, replace(begin, experiment=prepared.experiment.identity())


def resume(
    out: Path,
    data_dir: str | Path | None,
    watch: Watch | None = None,
    rounds: int = 0,
    connect: Connect | None = None,
) -> dict[str, Any]:
    """Go on where the run in ``out`` stopped, to the same end, bit for bit; ``rounds`` sets another last round.

    ``connect`` finds the devices where they are not in this process.
    """
    if not rundir.is_run(out):
        raise EdgePruneError(f"{out}: not a run directory (no {rundir.CONFIG}); leave out --resume to begin there")
    with rundir.occupied(out):
        return _resume(out, data_dir, watch, rounds, connect)


def _resume(
    out: Path, data_dir: str | Path | None, watch: Watch | None, rounds: int, connect: Connect | None
) -> dict[str, Any]:
    experiment = load_experiment(out / rundir.CONFIG)
    if rounds:
        experiment = replace(experiment, run=replace(experiment.run, rounds=rounds))
        written = replace(experiment, fleet=replace(experiment.fleet, latency=rundir.LATENCY))
    if connect is None:
        _refuse_other_engines(experiment)
    prepared = prepare(experiment, data_dir)
    prepared = replace(prepared, own={**prepared.own, **recorded_times(out / rundir.DEVICES)})
    at = _checkpoint(out, prepared)
    transport: Transport | None = None
    if connect is not None:
        prepared, transport = connect(prepared)
    if at is None:
        server, at = begun(prepared, transport)
        checkpoints.save(out / checkpoints.FILE, at)
    else:
        if transport is not None:  # what was under way was for a process that is gone; they are asked anew
            at = replace(at, flight={})
        server = _server(prepared, at, transport)
    rundir.truncate_metrics(out / rundir.METRICS, at.state.round)
    if rounds:
        checkpoints.write_atomically(out / rundir.CONFIG, written.to_toml().encode())
    return _go(prepared, server, at, out, watch)


def _checkpoint(out: Path, prepared: Prepared) -> Checkpoint | None:
    """Where the run in ``out`` stopped; None where it was killed before its first round: nothing was done yet."""
    path, rounds = out / checkpoints.FILE, prepared.experiment.run.rounds
    if not path.exists():
        if rundir.read_metrics(out / rundir.METRICS):
            raise EdgePruneError(f"{path}: gone, and rounds were made already; put it back, or start a new run")
        return None
    at = checkpoints.load(path, prepared.graph, prepared.experiment.identity())
    checkpoints.check_model(path, at.state.model, prepared.model.state_dict())
    if at.state.round > rounds:
        raise EdgePruneError(f"{out}: run.rounds is {rounds} and {at.state.round} rounds were made; give at least that")
    return at


def _refuse_other_engines(experiment: Experiment) -> None:
    if experiment.run.engine != "local":
        raise EdgePruneError(
            f"run.engine is {experiment.run.engine!r}, whose devices are processes of their own; start it with "
            "'edgeprune serve'"
        )


def split(data: datasets.DataSet, fleet: Fleet, config: DataConfig, seed: int) -> dict[str, LocalData]:
    """Each client's own part of the training data."""
    x, y, subject = data.train.x, data.train.y, data.train.subject
    if config.samples < 0 or config.samples > len(y):
        raise EdgePruneError(f"data.samples is {config.samples}; {data.name} has {len(y)} training samples")
    if config.samples:
        chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[: config.samples].sort().values
        x, y, subject = x[chosen], y[chosen], None if subject is None else subject[chosen]
    parameters = {key: getattr(config, key) for key in PARTITION_KEYS.get(config.partition, ())}
    shares = [device.share for device in fleet.devices]
    if len(set(shares)) > 1:
        parameters["sizes"] = shares
    parts = datasets.partition(config.partition, y, subject, len(fleet.devices), seed, **parameters)
    return {
        name: LocalData(x[part].contiguous(), y[part].contiguous(), data.normalise)
        for name, part in zip(fleet.names, parts, strict=True)
    }


def _maskable(model: torch.nn.Module) -> tuple[str, ...]:
    """The weights that can be trained under a mask: those that ``edgeprune.sparsify`` would take, but frozen ones."""
    names = (f"{row['name']}.weight" for row in densities(model) if row["note"] == "dense")
    return tuple(name for name in names if model.get_parameter(name).requires_grad)


def _server(prepared: Prepared, at: Checkpoint | None = None, transport: Transport | None = None) -> Server:
    """The loop over ``transport``; without one, over devices in this process that hold what they held at ``at``."""
    run = prepared.experiment.run
    transport = transport or _local(prepared, at)
    judge, data = on_device(prepared, run.device)

    shares = class_shares(prepared.local, len(prepared.data.classes)) if prepared.local else None

    def evaluated(state: Mapping[str, Tensor]) -> Evaluated:
        judge.load_state_dict(state)
        accuracy, loss, by_class = evaluate_by_class(judge, data, prepared.task)
        return Evaluated(accuracy, loss, client_accuracy(shares, by_class))

    kind = Server if prepared.experiment.algorithm.barrier.synchronous else InterleavedServer
    if kind is InterleavedServer and not hasattr(transport, "begin"):
        raise EdgePruneError(
            f"algorithm {prepared.experiment.algorithm.name!r} does not wait for all devices, which run.engine "
            f"{run.engine!r} cannot do; use run.engine = 'local'"
        )
    return kind(
        prepared.experiment.algorithm,
        prepared.setting,
        cast(Any, transport),
        evaluated,
        run.seed,
        run.evaluate_every,
        run.patience,
    )


def _local(prepared: Prepared, at: Checkpoint | None) -> LocalTransport:
    graph = prepared.graph
    held = dict(at.held) if at else {}
    owed: dict[str, dict[str, Tensor]] = {}
    for key, tensor in (at.devices if at else {}).items():
        client, _, name = key.partition("/")  # a device's name has no slash
        if name == PLAN:
            held[client] = SubmodelPlan.from_kept_bytes(graph, tensor.numpy().tobytes())
        elif not name.startswith(PENDING):
            owed.setdefault(client, {})[name] = tensor
    shelf = ModelShelf(prepared.model)
    workers = {
        name: Worker(name, part, graph, shelf, prepared.task.loss, held.get(name), owed.get(name))
        for name, part in prepared.local.items()
    }
    run = prepared.experiment.run
    times = {**dict.fromkeys(prepared.fleet.names, prepared.table), **prepared.own}
    training = executor(run.executor, run.device, shelf, prepared.task.loss)
    if prepared.experiment.algorithm.barrier.synchronous:
        return LocalTransport(prepared.fleet, workers, graph, times, run.seed, training)
    events = EventTransport(prepared.fleet, workers, graph, times, run.seed, training)
    events.recall(at.devices if at else {})
    return events


def on_device(prepared: Prepared, device: str) -> tuple[torch.nn.Module, datasets.DataSet]:
    """A model to be judged and the data with their test split, both on ``device``."""
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32, as everywhere else
    test = prepared.data.test
    there = replace(test, x=test.x.to(device), y=test.y.to(device))
    judge = initial_model(prepared.task, prepared.experiment.run.seed)  # with what no state dictionary holds
    return judge.to(device), replace(prepared.data, test=there)


def _go(prepared: Prepared, server: Server, at: Checkpoint, out: Path, watch: Watch | None) -> dict[str, Any]:
    began = perf_counter()
    run = prepared.experiment.run
    if at.state.round < run.rounds:
        (out / rundir.SUMMARY).unlink(missing_ok=True)  # of the shorter run that this one goes on with
    else:
        at, told = _ended(server, at, out)
        if told:
            return told
    for after, record in server.rounds(at):
        at = after
        rundir.append_metrics(out / rundir.METRICS, record)
        if at.state.round % run.checkpoint_every == 0 or at.state.round == run.rounds:
            checkpoints.save(out / checkpoints.FILE, at)
        if watch is not None:
            watch(at, record)
    summary = _summary(prepared, at, rundir.read_metrics(out / rundir.METRICS), perf_counter() - began)
    checkpoints.write_atomically(out / rundir.SUMMARY, json.dumps(summary, indent=1, allow_nan=False).encode())
    return summary


def _ended(server: Server, at: Checkpoint, out: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """(``at``, no round being left; the summary, if it was written). A round that only --set run.rounds made the last
    has not been judged yet."""
    records = rundir.read_metrics(out / rundir.METRICS)
    if records[-1].get("accuracy") is not None:
        try:
            return at, rundir.RunDir(out).summary()
        except EdgePruneError:  # damaged: it is written anew
            return at, {}
    at, records[-1] = server.judged(at, records[-1])
    checkpoints.save(out / checkpoints.FILE, at)  # first: calibrated weights are calibrated to the same again
    checkpoints.write_atomically(out / rundir.METRICS, "".join(map(rundir.line_of, records)).encode())
    return at, {}


def _summary(prepared: Prepared, at: Checkpoint, records: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    accuracies = [record["accuracy"] for record in records if record.get("accuracy") is not None]
    # The model in use was calibrated once, after the last round: that belongs to the run's time and traffic.
    once = (records[-1].get("calibration") if records else None) or {
        "time_s": 0.0,
        "upload_bytes": 0,
        "download_bytes": 0,
    }
    totals, run = dict(at.totals), prepared.experiment.run
    for key in ("upload_bytes", "download_bytes"):
        totals[key] += once[key]
    return {
        "edgeprune": __version__,
        "task": prepared.task.name,
        "algorithm": prepared.experiment.algorithm.name,
        "devices": len(prepared.fleet.devices),
        "rounds": at.state.round,
        "accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "time_s": at.time_s + once["time_s"],
        **totals,
        "wall_s": wall_s,
        "latency_source": {"source": prepared.table.source, "machine": dict(prepared.table.machine)},
        "executor": run.executor,
        "device": torch.cuda.get_device_name() if run.device == "cuda" else run.device,
        "machine": beside_figures(),
    }
