"""A fleet's first assignment, worked out from profiles and explained, with nothing trained and nothing written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.algorithms.scheduled import Scheduled, initial_ranking
from edgeprune.engine.config import Experiment, experiment_from, load_raw
from edgeprune.engine.emulation import PROFILES
from edgeprune.engine.run import Prepared, prepare
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import FleetConfig, ProfileTimes
from edgeprune.fleet.reports import Report, ladder
from edgeprune.fleet.scheduler import Decision, schedule


@dataclass(frozen=True)
class FleetPlan:
    """``rows``: one for each device; ``facts``: of a round as a whole; ``warnings``: profiles to renew."""

    rows: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"devices": [dict(row) for row in self.rows], **self.facts, "warnings": list(self.warnings)}


def plan_fleet(path: Path, sets: Sequence[str] = (), data_dir: Path | None = None) -> FleetPlan:
    """The plan for the fleet in a TOML file. Raises :class:`EdgePruneError`."""
    raw = load_raw(path, sets)
    algorithm = raw.setdefault("algorithm", {})
    if isinstance(algorithm, dict):
        known = set(Scheduled.__dataclass_fields__)
        kept = {
            key: value for key, value in algorithm.items() if key in known or algorithm.get("name") == Scheduled.name
        }
        raw["algorithm"] = {**kept, "name": Scheduled.name}
    experiment, borrowed = _with_shipped_profile(experiment_from(raw, path.parent))
    prepared = prepare(experiment, data_dir)
    if not prepared.setting.reports:
        raise EdgePruneError(
            f"{path}: a plan needs measured profiles; give --profile FILE (edgeprune profile "
            f"{experiment.task.name} writes one), or every [[fleet.device]] its own"
        )
    found = explained(prepared)
    if not borrowed:
        return found
    machine = prepared.table.machine.get("cpu", "another machine")
    note = f"the package's own, measured on {machine}: times for comparing, not your devices'; --profile FILE"
    return replace(found, warnings=(note, *found.warnings))


def _with_shipped_profile(experiment: Experiment) -> tuple[Experiment, bool]:
    """Where no step times are named, those that ship for the task, if any do; and whether a device needs them."""
    fleet = experiment.fleet
    if fleet.latency != FleetConfig().latency or not os.path.isfile(PROFILES / f"{experiment.task.name}.json"):
        return experiment, False
    own = [isinstance(entry, Mapping) and bool(entry.get("profile")) for entry in fleet.device]
    return replace(experiment, fleet=replace(fleet, latency="profile")), not (own and all(own))


def explained(prepared: Prepared) -> FleetPlan:
    """The decisions for round 1, as rows."""
    algorithm = prepared.experiment.algorithm
    assert isinstance(algorithm, Scheduled)
    setting = prepared.setting
    order = initial_ranking(setting, prepared.model.state_dict(), algorithm.min_channels)
    rungs = ladder(setting.graph, order, algorithm.gamma_min)
    decisions = schedule(setting.reports, rungs, algorithm.first_goal())
    whole = {report.name: report.update_time_s(rungs[0]) for report in setting.reports}
    rows = tuple(_row(report, decisions[report.name], whole[report.name]) for report in setting.reports)
    times = [decision.update_time_s for decision in decisions.values() if decision.rung is not None]
    if not times:
        raise EdgePruneError("plan: nobody can take part under these limits; " + rows[0]["why"])
    facts = {
        "task": prepared.task.name,
        "objective": algorithm.objective,
        "participants": len(times),
        "round_s": max(times),
        "spread": max(times) / min(times),
        "whole_round_s": max(whole.values()),
        "whole_spread": max(whole.values()) / min(whole.values()),
        "saved": 1 - max(times) / max(whole.values()),
        "sources": _sources(setting.reports),
    }
    return FleetPlan(rows, facts, tuple(_warnings(setting.reports)))


def _row(report: Report, decision: Decision, whole_s: float) -> dict[str, Any]:
    download, compute, upload = decision.parts_s
    return {
        "client": report.name,
        "takes_part": decision.rung is not None,
        "retention": decision.rung.retention if decision.rung else 0.0,
        "steps": decision.steps,
        "steps_full": report.steps,
        "download_s": download,
        "compute_s": compute,
        "upload_s": upload,
        "update_time_s": decision.update_time_s,
        "whole_s": whole_s,
        "memory_mib": None if decision.memory_bytes is None else decision.memory_bytes / 2**20,
        "memory_limit_mib": None if report.memory_bytes == math.inf else report.memory_bytes / 2**20,
        "energy_j": decision.energy_j,
        "energy_limit_j": None if report.energy_j == math.inf else report.energy_j,
        "why": decision.why,
    }


def _sources(reports: Sequence[Report]) -> str:
    found: dict[str, int] = {}
    for report in reports:
        source = report.needs.source if isinstance(report.needs, ProfileTimes) else "unknown"
        found[source] = found.get(source, 0) + 1
    return ", ".join(f"{count} {source}" for source, count in sorted(found.items()))


def _warnings(reports: Sequence[Report]) -> list[str]:
    """Expired profiles, each once. Fingerprints are the devices' own to compare."""
    found: dict[str, None] = {}
    for report in reports:
        if isinstance(report.needs, ProfileTimes):
            for reason in report.needs.profile.stale(None):
                found[f"{report.name}: {reason}; measure it again"] = None
    return list(found)
