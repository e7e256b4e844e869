"""Who trains what, how much of it, and who sits out: from reports alone, and every decision says why.

    phi_w(r, s)   expected update time of client w with rung r and s steps: link both ways + s steps, times its scale
    target        equal: the fastest client's phi with the whole model; deadline: given; energy, memory: none
    rung of w     the largest r with  phi_w(r, S) (1 + margin noise_w) <= target   and within its memory and energy
    steps of w    S; fewer, down to the share ``least_work``, where the smallest rung is still too slow; and down to
                  ``fill_work``, where the rungs are a staircase: the next larger one with a few steps less

Pure functions: the same reports give the same decisions, in any order of the clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edgeprune.errors import EdgePruneError, nearest
from edgeprune.fleet.reports import Report, Rung, check_ladder

Objective = Literal["equal", "deadline", "energy", "memory"]
GAP = 0.05  # a planned time so far below what it might be is waste
COOLING_C = 5.0  # within so many degrees of its limit a device does less


@dataclass(frozen=True)
class Goal:
    """``equal``: all update times meet the fastest client's. ``deadline``: nobody later than ``deadline_s``.
    ``energy``: the largest sub-model within each client's joules a round. ``memory``: the largest that fits.

    ``least_work``: the smallest share of the local steps that is still worth a round. ``margin``: how many standard
    deviations of its own noise a pruned client is planned ahead of the target. ``band``: a client whose present
    sub-model is within this share of the target keeps it. ``fill_work``: for equal times a client may train a larger
    sub-model with as little as this share of its steps; 1 for never.
    """

    objective: Objective = "equal"
    deadline_s: float = math.inf
    least_work: float = 0.25
    margin: float = 1.0
    band: float = 0.03
    fill_work: float = 0.75

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise EdgePruneError(
                f"scheduler: unknown objective {self.objective!r}{nearest(self.objective, get_args(Objective))}"
            )
        if self.objective == "deadline" and not (0 < self.deadline_s < math.inf):
            raise EdgePruneError(f"scheduler: the objective 'deadline' needs deadline_s, not {self.deadline_s}")
        if not 0 < self.least_work <= 1:
            raise EdgePruneError(f"scheduler: least_work is {self.least_work}; it is a share of the steps, in (0, 1]")
        if not 0 < self.fill_work <= 1:
            raise EdgePruneError(f"scheduler: fill_work is {self.fill_work}; it is a share of the steps, in (0, 1]")
        if not (0 <= self.margin < math.inf and 0 <= self.band < 1):
            raise EdgePruneError(f"scheduler: margin {self.margin} must be 0 or more, band {self.band} in [0, 1)")


@dataclass(frozen=True)
class Decision:
    """What one client gets. ``rung`` is None for a client that sits out; ``why`` is a sentence for a person."""

    client: str
    rung: Rung | None
    steps: int
    parts_s: tuple[float, float, float]
    memory_bytes: int | None
    energy_j: float | None
    why: str

    @property
    def update_time_s(self) -> float:
        """Expected seconds from send to receipt; 0 for one that sits out."""
        return math.fsum(self.parts_s)


def schedule(
    reports: Sequence[Report], rungs: Sequence[Rung], goal: Goal, present: Mapping[str, float] | None = None
) -> dict[str, Decision]:
    """A decision for every client, in the order of ``reports``. ``present``: the retention each holds now.

    Raises :class:`EdgePruneError` when a limit is set on something that a client's profile did not measure.
    """
    check_ladder(rungs)
    for report in reports:
        _check_measured(report, rungs[0], goal)
    target = target_s(reports, rungs, goal)
    return {report.name: _decide(report, rungs, goal, target, (present or {}).get(report.name)) for report in reports}


def target_s(reports: Sequence[Report], rungs: Sequence[Rung], goal: Goal) -> float:
    """The time to be met: infinite where the objective sets none. Who sits out is nobody's measure."""
    if goal.objective == "equal":
        taking_part = [report for report in reports if _can_take_part(report, rungs, goal)]
        return min((report.update_time_s(rungs[0]) for report in taking_part), default=math.inf)
    return goal.deadline_s if goal.objective == "deadline" else math.inf


def _can_take_part(report: Report, rungs: Sequence[Rung], goal: Goal) -> bool:
    """Whether heat, memory and energy leave it anything to do."""
    least, most = _steps_by_heat(report, goal)
    fitting = [rung for rung in rungs if fits(report, rung)]
    return most > 0 and bool(fitting) and _energy(report, fitting[-1], least) <= report.energy_j


def _steps_by_heat(report: Report, goal: Goal) -> tuple[int, int]:
    """(the fewest steps that are worth a round, the most that it does); none at its limit of temperature."""
    share, _ = _share_by_heat(report)
    if share == 0.0:
        return 0, 0
    most = max(1, math.floor(report.steps * share))
    return min(most, max(1, math.ceil(report.steps * goal.least_work))), most


def _check_measured(report: Report, whole: Rung, goal: Goal) -> None:
    if report.memory_bytes < math.inf and report.needs.memory(whole.size) is None:
        raise EdgePruneError(
            f"scheduler: {report.name!r} has a memory limit and its profile no memory figures; measure it on Linux"
        )
    if report.hottest_c < math.inf and report.temperature_c is None:
        raise EdgePruneError(
            f"scheduler: {report.name!r} has a temperature limit and nothing has measured its temperature; profile it "
            "where its sensors can be read, or set temperature_c"
        )
    limited = report.energy_j < math.inf or goal.objective == "energy"
    if limited and report.needs.energy_j(whole.size) is None:
        raise EdgePruneError(
            f"scheduler: an energy budget needs measured energy, and the profile of {report.name!r} has none; "
            "run 'edgeprune profile' there with a power source"
        )
    if goal.objective == "energy" and report.energy_j == math.inf:
        raise EdgePruneError(f"scheduler: the objective 'energy' needs a budget for {report.name!r}; set energy_j")


def _decide(report: Report, rungs: Sequence[Rung], goal: Goal, target: float, present: float | None) -> Decision:
    _, heat = _share_by_heat(report)
    least, most = _steps_by_heat(report, goal)
    if not most:
        return _out(report, heat)
    fitting = [rung for rung in rungs if fits(report, rung)]
    if not fitting:
        return _out(report, f"even {_percent(rungs[-1])} of the channels needs more than its memory")
    affordable = [rung for rung in fitting if _energy(report, rung, most) <= report.energy_j]
    if not affordable:
        return _within_energy(report, fitting[-1], least, most, target, goal)
    chosen, steps, why = _by_time(report, affordable, rungs, goal, target, most, present)
    if chosen is None:
        return _less_work(report, affordable[-1], least, most, target, goal)
    if chosen.retention < 1 and chosen == affordable[0] and steps == most:
        why = _cap(report, chosen, rungs, most)
    return _decision(report, chosen, steps, "; ".join(filter(None, (why, heat))))


def _by_time(
    report: Report,
    affordable: Sequence[Rung],
    rungs: Sequence[Rung],
    goal: Goal,
    target: float,
    steps: int,
    present: float | None,
) -> tuple[Rung | None, int, str]:
    """(the largest that is in time, its steps, why); no rung when not even the smallest is."""
    if target == math.inf:
        return affordable[0], steps, "the whole model fits"
    held = next((rung for rung in affordable if rung.retention == present), None)
    if held is not None and held.retention < 1:
        off = report.update_time_s(held, steps) * _ahead(report, goal) / target - 1
        if abs(off) <= goal.band and not (goal.objective == "deadline" and off > 0):
            return (
                held,
                steps,
                f"{_percent(held)} of the channels is within {goal.band:.0%} of {target:.3g} s: unchanged",
            )
    if affordable[0].retention == 1 and report.update_time_s(affordable[0], steps) <= target * (1 + 1e-9):
        full = report.update_time_s(affordable[0], steps)
        fastest = goal.objective == "equal" and full >= target * (1 - 1e-9)
        late = goal.objective == "deadline" and full * _ahead(report, goal) > target * (1 + 1e-9)
        if fastest:
            return affordable[0], steps, "the fastest: its time with the whole model is everybody's target"
        if not late:
            return affordable[0], steps, f"the whole model takes {full:.3g} s of {target:.3g} s"
    whole = report.update_time_s(rungs[0], steps)
    limit = target / _ahead(report, goal)
    ahead = _largest(report, affordable, steps, limit)
    if ahead is None:
        return None, 0, ""
    spare = f" less {1 - 1 / _ahead(report, goal):.0%} for its noise" if _ahead(report, goal) > 1.001 else ""
    more = ""
    if goal.objective == "equal" and report.update_time_s(ahead, steps) < (1 - GAP) * limit * (1 - 1e-9):
        full = steps
        ahead, steps = _filled(report, affordable, ahead, full, target, goal)
        more = f" with {steps} of {full} steps" if steps < full else ""
        if report.update_time_s(ahead, steps) > limit * (1 + 1e-9):
            spare = ", the next rung down is far below"
    text = f"the whole model takes {whole:.3g} s; {_percent(ahead)} of the channels{more} meets {target:.3g} s{spare}"
    return ahead, steps, text


def _filled(
    report: Report, affordable: Sequence[Rung], ahead: Rung, steps: int, target: float, goal: Goal
) -> tuple[Rung, int]:
    """A staircase: what fits lies far below what is asked for. The next larger rung with a few steps less fills the
    gap; where too many would be missing, the largest that meets the target without room for noise."""
    above = affordable.index(ahead) - 1
    if above >= 0:
        fewer = _steps_within(report, affordable[above], target / _ahead(report, goal), steps)
        gained = report.update_time_s(affordable[above], fewer) > report.update_time_s(ahead, steps)
        if gained and fewer >= goal.fill_work * steps:
            return affordable[above], fewer
    on_time = _largest(report, affordable, steps, target)
    return on_time or ahead, steps


def _steps_within(report: Report, rung: Rung, limit_s: float, most: int) -> int:
    """How many steps of ``rung`` fit, links counted."""
    per_step = report.scale * report.needs.step_s(rung.size)
    left = limit_s - report.update_time_s(rung, 0)
    return min(most, math.floor(left / per_step + 1e-9)) if per_step > 0 else most


def _largest(report: Report, rungs: Sequence[Rung], steps: int, limit_s: float) -> Rung | None:
    return next((rung for rung in rungs if report.update_time_s(rung, steps) <= limit_s * (1 + 1e-9)), None)


def _less_work(report: Report, rung: Rung, least: int, most: int, target: float, goal: Goal) -> Decision:
    """The smallest model is still too slow: fewer steps, or out of the round."""
    steps = _steps_within(report, rung, target / _ahead(report, goal), most)
    if least <= steps:
        return _decision(
            report, rung, steps, f"even {_percent(rung)} of the channels is slow: {steps} of {report.steps} steps "
            f"meet {target:.3g} s"
        )  # fmt: skip
    soonest = report.update_time_s(rung, least)
    if goal.objective == "deadline":
        return _out(report, f"with {_percent(rung)} of the channels and {least} steps it takes {soonest:.3g} s")
    return _decision(report, rung, least, f"the smallest model and {least} steps still take {soonest:.3g} s")


def _within_energy(report: Report, rung: Rung, least: int, most: int, target: float, goal: Goal) -> Decision:
    """The smallest model costs too many joules for a full round: fewer steps, and in time, or out."""
    each = _energy(report, rung, 1)
    steps = min(most, math.floor(report.energy_j / each + 1e-9))
    if steps < least:
        return _out(report, f"{least} steps of {_percent(rung)} of the channels exceed its {report.energy_j:.3g} J")
    if target < math.inf and _steps_within(report, rung, target / _ahead(report, goal), steps) < steps:
        return _less_work(report, rung, least, steps, target, goal)
    return _decision(report, rung, steps, f"{steps} of {report.steps} steps keep within {report.energy_j:.3g} J")


def _share_by_heat(report: Report) -> tuple[float, str]:
    """The share of its steps that a warm device does, falling to none at its limit."""
    if report.temperature_c is None or report.hottest_c == math.inf:
        return 1.0, ""
    left = report.hottest_c - report.temperature_c
    if left <= 0:
        return 0.0, f"{report.temperature_c:.0f} C is at its limit of {report.hottest_c:.0f} C"
    if left >= COOLING_C:
        return 1.0, ""
    return left / COOLING_C, f"less work, {report.temperature_c:.0f} C is near its limit of {report.hottest_c:.0f} C"


def _cap(report: Report, rung: Rung, rungs: Sequence[Rung], steps: int) -> str:
    """Which limit keeps a client from a larger model."""
    larger, share = rungs[rungs.index(rung) - 1], _percent(rung)
    if not fits(report, larger):
        limit, need = report.memory_bytes / 2**20, (report.needs.memory(rungs[0].size) or 0) / 2**20
        return f"memory: {share} of the channels fits in {limit:.0f} MiB, the whole model needs {need:.0f}"
    need_j = _energy(report, rungs[0], steps)
    return f"energy: {share} of the channels keeps within {report.energy_j:.3g} J, the whole model needs {need_j:.3g}"


def fits(report: Report, rung: Rung) -> bool:
    """Whether the rung's peak, as the client's profile has it, is within its memory."""
    need = report.needs.memory(rung.size)
    return report.memory_bytes == math.inf or (need is not None and need <= report.memory_bytes)


def _energy(report: Report, rung: Rung, steps: int) -> float:
    each = report.needs.energy_j(rung.size)
    return 0.0 if each is None else each * steps


def _ahead(report: Report, goal: Goal) -> float:
    return 1 + goal.margin * report.noise


def _decision(report: Report, rung: Rung, steps: int, why: str) -> Decision:
    each = report.needs.energy_j(rung.size)
    return Decision(
        report.name,
        rung,
        steps,
        report.parts_s(rung, steps),
        report.needs.memory(rung.size),
        None if each is None else each * steps,
        why,
    )


def _out(report: Report, why: str) -> Decision:
    return Decision(report.name, None, 0, (0.0, 0.0, 0.0), None, None, f"sits out: {why}")


def _percent(rung: Rung) -> str:
    return f"{rung.retention:.0%}"
