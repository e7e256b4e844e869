"""The scheduler against AdaptCL alone, a static table of rates, and FedAvg, on unequal fleets with noise and limits.

    python benchmarks/scheduler.py [--tasks fashion-cnn,cifar10-resnet] [--seeds 3] [--rounds 150] [--resume]

Writes benchmarks/results/scheduler.json. Every cell runs the real algorithms, messages and clock on a profile measured
with `edgeprune profile` (edgeprune/fleet/profiles). Nothing is trained: update times depend on weights through the
ranking of channels alone, so batch-norm scales are drawn once (log-normal, seeded) where training would have spread
them. What the scheduler cannot know is in the clock: each device's profile is off by 3 %, each sub-model's step time by
the latency model's own measured error, each round by 5 % noise. Memory is measured: the sub-models of devices with a
limit are trained for two steps in a process of their own (all that the scheduler gives, the largest of the others).
``luck_spread`` is what the rounds' noise alone makes of equal devices, ``unknown_spread`` what all three errors make of
devices that are planned to be exactly equal: no scheduler can be expected to do better in a first round.

Time saved is held against the arithmetic ceiling 1 - 1/sigma of a method that lets the fastest device train everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import harness
import numpy as np
import torch

from edgeprune import tasks, wire
from edgeprune.algorithms import clients, scheduled
from edgeprune.algorithms.adaptcl import AdaptCL
from edgeprune.algorithms.protocol import Algorithm, Recipe, Setting, State, Update
from edgeprune.algorithms.scheduled import Scheduled, initial_ranking
from edgeprune.device.profile import DeviceProfile, ModelSize, read_profile
from edgeprune.engine.reporting import fleet_reports
from edgeprune.fleet import Fleet, FleetConfig, ProfileTimes, Work, build_fleet, charge, size_of
from edgeprune.fleet.clock import luck
from edgeprune.fleet.reports import Rung, ladder
from edgeprune.pruning import ChannelGraph, Ranking, SubmodelPlan
from edgeprune.pruning.surgery import extract_state

HERE = Path(__file__).resolve().parent
PROFILES = HERE.parent / "edgeprune" / "fleet" / "profiles"
NOISE, PROFILE_NOISE = 0.05, 0.03
NORMAL_MEDIAN = 0.6745  # the median of |z|: from the latency model's median error to a deviation
RATES = (1.0, 0.75, 0.5, 0.25)
SAMPLES = 1000  # a device's
# Of what the whole model takes by the profile, beside the process itself: a limited device's share. Of the ResNet it is
# so little that the whole model really needs more, even in a fresh process; the small network always has room there.
LIMIT = {"fashion-cnn": 0.5, "cifar10-resnet": 0.2}


@dataclass(frozen=True)
class Static(AdaptCL):
    """A table of device classes, as deployments have it: the fastest quarter gets 1, the next .75, then .5 and .25."""

    name: ClassVar[str] = "static"

    def init(self, setting: Setting, model: dict[str, torch.Tensor]) -> State:
        order = initial_ranking(setting, model, self.min_channels)
        count = len(setting.clients)
        rates = {client: RATES[len(RATES) * i // count] for i, client in enumerate(setting.clients)}
        full = SubmodelPlan.full(setting.graph)
        plans = {c: full if rate == 1.0 else order.plan(rate) for c, rate in rates.items()}
        return State(0, model, plans)

    def merge(self, setting: Setting, state: State, updates: list[Update]) -> State:  # type: ignore[override]
        return replace(state, round=state.round + 1)


@dataclass(frozen=True)
class Whole(Static):
    """FedAvg's clock: the whole model for everybody."""

    name: ClassVar[str] = "fedavg"

    def init(self, setting: Setting, model: dict[str, torch.Tensor]) -> State:
        return State(0, model, dict.fromkeys(setting.clients, SubmodelPlan.full(setting.graph)))


class TrueTimes(ProfileTimes):
    """What really happens: the profile's model, off by its measured error in a way that is fixed for each size."""

    def __init__(self, profile: DeviceProfile, seed: int) -> None:
        super().__init__(profile)
        self.seed = seed
        self.deviation = profile.error["median"] / NORMAL_MEDIAN
        self._known: dict[tuple[int, int], float] = {}

    def step_s(self, size: int | ModelSize) -> float:
        assert isinstance(size, ModelSize)
        key = (size.macs, size.elements)
        if key not in self._known:
            off = np.random.default_rng([7, self.seed, *key]).standard_normal()
            self._known[key] = super().step_s(size) * math.exp(self.deviation * off)
        return self._known[key]


@dataclass(frozen=True)
class Cell:
    """One fleet. ``limited``: every third device may use a share of what the whole model takes; ``slowed``: one device
    becomes twice as slow in the middle."""

    task: str
    devices: int
    sigma: float
    seed: int
    limited: bool = False
    slowed: bool = False


def algorithms() -> dict[str, Algorithm]:
    common = {"interval": 10, "epochs": 1, "calibrate": 0}
    return {
        "fedavg": Whole(**common),
        "static": Static(**common),
        "adaptcl": AdaptCL(**common),
        "scheduled": Scheduled(**common),
        "scheduled, learner": Scheduled(**common, correct="learner"),
    }


def fleet_of(cell: Cell, times: ProfileTimes, rounds: int, full: ModelSize) -> Fleet:
    event = {"device": f"device-{cell.devices // 2}", "round": rounds // 2 + 1, "slowdown": 2.0}
    config = FleetConfig(
        devices=cell.devices, heterogeneity=cell.sigma, noise=NOISE, event=(event,) if cell.slowed else ()
    )
    fleet = build_fleet(config)
    if not cell.limited:
        return fleet
    whole, base = times.memory(full), times.profile.base_memory
    assert whole is not None and base is not None
    limit = (base + (whole - base) * LIMIT[cell.task]) / 2**20
    return Fleet(tuple(replace(d, memory_mib=limit) if i % 3 == 0 else d for i, d in enumerate(fleet.devices)))


def run(cell: Cell, method: str, algorithm: Algorithm, rounds: int) -> dict[str, Any]:
    """One cell and method: update times of every round, retentions, memory that was asked of limited devices."""
    _cut.clear(), _ladders.clear()
    task = tasks.get(cell.task)
    profile = read_profile(PROFILES / f"{cell.task}.json")
    torch.manual_seed(cell.seed)
    model = task.make_model()
    generator = torch.Generator().manual_seed(cell.seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data = torch.exp(0.4 * torch.randn(module.weight.shape, generator=generator))
    graph = ChannelGraph.trace(model, task.example_inputs())
    truth = TrueTimes(profile, cell.seed)
    fleet = fleet_of(cell, truth, rounds, size_of(graph, SubmodelPlan.full(graph).counts))
    recipe = algorithm.recipe(Recipe(1, task.batch_size, task.lr, task.momentum, task.weight_decay))
    samples = dict.fromkeys(fleet.names, SAMPLES)
    reports = fleet_reports(fleet, ProfileTimes(profile), samples, recipe, PROFILE_NOISE, cell.seed)
    setting = Setting(graph, fleet.names, samples, recipe, rounds, reports)
    state = algorithm.init(setting, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    times: list[dict[str, float]] = []
    held: dict[str, SubmodelPlan] = {}
    seen: dict[tuple[str, str], SubmodelPlan] = {}
    traffic: dict[str, tuple[int, ModelSize]] = {}
    for number in range(1, rounds + 1):
        updates, took = [], {}
        for asked in algorithm.assign(setting, state):
            plan, device = asked.plan, fleet[asked.client]
            if plan.id not in traffic:
                message = wire.Message("update", number, asked.client, plan.id, asked.state, {"samples": SAMPLES})
                traffic[plan.id] = (len(wire.encode(message)), size_of(graph, plan.counts))
            nbytes, size = traffic[plan.id]
            new = asked.client in held and held[asked.client].id != plan.id
            steps = asked.recipe.steps or math.ceil(SAMPLES / recipe.batch_size)
            work = Work(nbytes, nbytes, steps, size.macs, int(new or number == 1), 0, size)
            took[asked.client] = charge(device, work, truth, round_=number, seed=cell.seed).total
            held[asked.client] = seen[asked.client, plan.id] = plan
            updates.append(Update(asked.client, plan, asked.state, SAMPLES, 0.0, took[asked.client]))
        times.append(took)
        state = algorithm.merge(setting, state, updates)
    limits = {d.name: d.memory_mib for d in fleet.devices if d.memory_mib}
    asked_of = {(name, key): plan for (name, key), plan in seen.items() if name in limits}
    if method != "scheduled":  # they know of no limit: the largest that each was given is enough to show it
        largest = {name: max(p.retention for (n, _), p in asked_of.items() if n == name) for name in limits}
        asked_of = {key: plan for key, plan in asked_of.items() if plan.retention == largest[key[0]]}
    asked_once = {key: (plan, limits[name]) for (name, key), plan in asked_of.items()}
    lucks = [luck(device, 1, cell.seed) for device in fleet.devices]
    free = [took for name, took in times[0].items() if name not in limits]
    calm = [took / luck(fleet[name], 1, cell.seed) for name, took in times[0].items()]
    spreads = [max(row.values()) / min(row.values()) for row in times]
    return {
        "time_s": math.fsum(max(row.values()) for row in times),
        "first_spread": spreads[0],
        "first_spread_without_noise": max(calm) / min(calm),
        "first_spread_unlimited": max(free) / min(free) if limits else None,
        "luck_spread": max(lucks) / min(lucks),
        "median_spread": statistics.median(spreads),
        "spreads": [round(s, 3) for s in spreads],
        "participants": min(map(len, times)),
        "retention_fastest": held[fleet.names[0]].retention if fleet.names[0] in held else None,
        "retention_slowest": held[fleet.names[-1]].retention if fleet.names[-1] in held else None,
        "memory": [measured_memory(cell.task, plan.kept_bytes(), limit) for plan, limit in asked_once.values()],
    }


_cut: dict[str, dict[str, torch.Tensor]] = {}
_ladders: dict[str, list[Rung]] = {}


def cut_once(state: Mapping[str, torch.Tensor], plan: SubmodelPlan) -> dict[str, torch.Tensor]:
    """The weights of a plan: they never change here, so each is cut out once in a run."""
    if plan.id not in _cut:
        _cut[plan.id] = extract_state(state, plan)
    return _cut[plan.id]


def ladder_once(graph: ChannelGraph, order: Ranking, least: float = 0.05) -> list[Rung]:
    """The ladder of a ranking, made once in a run."""
    key = json.dumps(order.to_json())
    if key not in _ladders:
        _ladders[key] = ladder(graph, order, least)
    return _ladders[key]


def as_it_was(self: object, model: Mapping[str, torch.Tensor], updates: object) -> dict[str, torch.Tensor]:
    """The average of models that nobody trained."""
    return dict(model)


def train_nothing() -> None:
    """On one thread: no averages, and what depends on untrained weights made once."""
    torch.set_num_threads(1)
    AdaptCL._average = as_it_was  # type: ignore[method-assign, assignment]
    clients.extract_state, scheduled.ladder = cut_once, ladder_once  # type: ignore[assignment, attr-defined]


def measured_memory(task: str, kept: bytes, limit_mib: float) -> dict[str, float]:
    """Peak of a fresh process that trains this sub-model, beside the limit of the device it was given to."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"limit_mib": limit_mib, "peak_mib": pool.apply(_peak, (task, kept))}


def _peak(task_name: str, kept: bytes) -> float:
    from edgeprune.algorithms.training import make_step
    from edgeprune.device.memory import peak_of
    from edgeprune.pruning import extract

    torch.set_num_threads(1)
    task = tasks.get(task_name)
    model = task.make_model()
    graph = ChannelGraph.trace(model, task.example_inputs())
    plan = SubmodelPlan.from_kept_bytes(graph, kept)
    x = torch.randn(task.batch_size, *task.example_inputs()[0].shape[1:])
    y = torch.zeros(task.batch_size, dtype=torch.int64)

    def work() -> None:
        step = make_step(extract(model, plan), task.loss, Recipe(1, task.batch_size, 0.1, 0.9, 0.0))
        step(x, y)
        step(x, y)

    peak = peak_of(work)
    return math.nan if peak is None else peak / 2**20


def unknown_spread(task: str, devices: int) -> float:
    """Expected largest over smallest first update time of devices planned to be equal, by errors that nobody knows."""
    error = read_profile(PROFILES / f"{task}.json").error["median"] / NORMAL_MEDIAN
    deviation = math.hypot(NOISE, PROFILE_NOISE, error)
    times = np.exp(deviation * np.random.default_rng(0).standard_normal((20_000, devices)))
    return float((times.max(1) / times.min(1)).mean())


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of each cell, methods side by side."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["task"], row["devices"], row["sigma"], row["limited"], row["slowed"], row["method"])
        found.setdefault(key, []).append(row)
    out = []
    for key, some in found.items():
        entry = dict(zip(("task", "devices", "sigma", "limited", "slowed", "method"), key, strict=True))
        for name in (
            "saved",
            "share_of_ceiling",
            "first_spread",
            "first_spread_without_noise",
            "first_spread_unlimited",
            "luck_spread",
            "median_spread",
            "rounds_to_recover",
        ):
            values = [row[name] for row in some if row[name] is not None]
            entry[name] = statistics.fmean(values) if values else None
        entry["unknown_spread"] = unknown_spread(entry["task"], entry["devices"])
        entry["first_spread_worst"] = max(row["first_spread"] for row in some)
        entry["memory_worst"] = max(
            (m["peak_mib"] / m["limit_mib"] for row in some for m in row["memory"]), default=None
        )
        entry["seeds"] = len(some)
        out.append(entry)
    return out


CELLS = (
    # devices, sigma, limited, slowed
    (10, 2.0, False, False),
    (10, 10.0, False, False),
    (16, 2.0, False, False),
    (16, 10.0, False, False),
    (10, 5.0, False, True),
    (10, 5.0, True, False),
)


def rows_of(cell: Cell, rounds: int) -> list[dict[str, Any]]:
    """Every method on one cell."""
    rows, baseline = [], 0.0
    for method, algorithm in algorithms().items():
        if cell.limited and method != "scheduled" and cell.seed:
            continue  # one seed shows that they do not know of limits
        got = run(cell, method, algorithm, rounds)
        baseline = got["time_s"] if method == "fedavg" else baseline
        saved = 1 - got["time_s"] / baseline if baseline else None
        after = got["spreads"][rounds // 2 :] if cell.slowed else []
        spreads = got["spreads"]
        got["spreads"] = spreads[:3] + spreads[rounds // 2 - 1 : rounds // 2 + 4]
        row = {
            **dataclasses.asdict(cell),
            "method": method,
            "rounds": rounds,
            "saved": saved,
            "share_of_ceiling": None if saved is None or cell.slowed else saved / (1 - 1 / cell.sigma),
            "rounds_to_recover": next((i for i, spread in enumerate(after) if spread <= 1.35), None),
            **got,
        }
        rows.append(row)
        share = "" if row["share_of_ceiling"] is None else f", {row['share_of_ceiling']:.1%} of the ceiling"
        memory = max((m["peak_mib"] / m["limit_mib"] for m in got["memory"]), default=None)
        print(
            f"{cell} {method}: saved {saved and round(saved, 3)}{share}, first spread {got['first_spread']:.2f} "
            f"(without noise {got['first_spread_without_noise']:.2f}, noise alone {got['luck_spread']:.2f}), median "
            f"{got['median_spread']:.2f}, recovered after {row['rounds_to_recover']}, memory {memory}",
            flush=True,
        )
    return rows


def write(about: dict[str, Any], rows: list[dict[str, Any]], rounds: int) -> Path:
    """The result so far: after every cell, so that ``--resume`` can go on."""
    path = harness.write_result("scheduler", about, summary(rows))
    body = json.loads(path.read_text())
    body["rounds"] = rounds
    body["noise"] = {"round": NOISE, "profile": PROFILE_NOISE, "model": "the profile's median error / 0.6745"}
    body["cells"] = rows
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="fashion-cnn,cifar10-resnet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--resume", action="store_true", help="keep the cells that the result file has")
    arguments = parser.parse_args()
    train_nothing()
    about = harness.machine()
    path = written = harness.RESULTS / "scheduler.json"
    rows = json.loads(written.read_text())["cells"] if arguments.resume and written.exists() else []
    names = [field.name for field in dataclasses.fields(Cell)]
    done = {tuple(row[name] for name in names) for row in rows}
    for task in arguments.tasks.split(","):
        for devices, sigma, limited, slowed in CELLS:
            for seed in range(arguments.seeds):
                cell = Cell(task, devices, sigma, seed, limited, slowed)
                if dataclasses.astuple(cell) not in done:
                    rows += rows_of(cell, arguments.rounds)
                    path = write(about, rows, arguments.rounds)
    print(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
