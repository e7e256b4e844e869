"""A task's training step and inference, measured on this device at many sizes of its model: a DeviceProfile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import LocalData, make_step
from edgeprune.bench import shapes
from edgeprune.bench.made_up import check_batch, made_up
from edgeprune.bench.meter import Idle, Meter, threads
from edgeprune.bench.shapes import Shape
from edgeprune.device import memory
from edgeprune.device.power import Sampler
from edgeprune.device.probe import beside_figures
from edgeprune.device.profile import DeviceProfile, Point, fingerprint, moments
from edgeprune.device.samples import Energy, now
from edgeprune.device.state import changes, machine_state
from edgeprune.fleet import latency_model
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import extract, extract_state, load_local
from edgeprune.tasks import Task
from edgeprune.tasks.task import examples_of, initial_model, made

IDLE_S = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """``seconds``: of timed training steps at one size, over all ``passes``; a third of it for inference. ``energy_s``:
    length of a window for an energy figure, at ``energy_shapes`` sizes, when there is power to measure."""

    seconds: float = 1.2
    passes: int = 5
    energy_s: float = 30.0
    energy_shapes: int = 6


@dataclass
class _Running:
    """One built sub-model and what was measured of it so far."""

    shape: Shape
    step: Callable[[], object]
    forward: Callable[[], object]
    steps: list[list[float]]
    forwards: list[list[float]]
    peak: int | None = None
    step_j: float | None = None
    forward_j: float | None = None


def profile_task(
    task: Task,
    *,
    data: LocalData | None = None,
    recipe: Recipe | None = None,
    thread_count: int = 1,
    effort: Effort | None = None,
    sampler: Sampler | None = None,
    widths: Sequence[float] = shapes.WIDTHS,
    checks: Sequence[float] = shapes.CHECKS,
    valid_days: int = 30,
    root: Path = Path("/"),
    say: Say = lambda text: None,
) -> DeviceProfile:
    """Measure ``task`` on this machine. ``data``: real samples; without them random ones of the same shape (the time of
    dense layers does not depend on values). Power comes from ``sampler``, already started."""
    effort = effort or Effort()
    say("tracing the model")
    recipe = recipe or Recipe(1, task.batch_size, task.lr, task.momentum, task.weight_decay)
    with threads(thread_count):
        batch = _batch(task, data, recipe.batch_size)
        # The sub-models depend on the initial weights: the same ones in every profile of a task.
        model = initial_model(task, 0)
        graph = ChannelGraph.trace(model, examples_of(task))
        found = list(shapes.widths_of(model, graph, widths, checks))
        deep = shapes.depths_of(model, examples_of(task))
        sparse, why_not = shapes.densities_of(model, graph)
        notes = [text for text in (why_not, None if deep else "depths: no residual block can be left out") if text]
        base = memory.resident()
        before, began = machine_state(root), now()
        meter = Meter(sampler, root)
        idle_before = meter.idle(IDLE_S)
        running = _measure_times([*found, *deep, *sparse], batch, task, recipe, effort, say)
        hot = meter.hottest_c(began)
        idle_w = Idle(idle_before, meter.idle(IDLE_S)).mean_w
        power = _measure_energy(running, meter, idle_w, effort, say)
        rebuild = _rebuild_ms(model, graph)
        print_ = fingerprint(thread_count, "cpu", root)
    flags = changes(before, machine_state(root))
    flags += [flag for flag in meter.sampler.recording().flags(began) if flag not in flags]
    points = [_point(each, flags) for each in running]
    kept = [point for point, each in zip(points, running, strict=True) if not each.shape.check]
    checked = [point for point, each in zip(points, running, strict=True) if each.shape.check]
    created, expires = moments(valid_days)
    profile = DeviceProfile(
        task=task.name,
        batch_size=recipe.batch_size,
        fingerprint=print_,
        points=tuple(kept),
        rebuild_ms=rebuild,
        created=created,
        expires=expires,
        base_memory=base,
        noise=_noise(running),
        error=model_error(kept, checked),
        power=power,
        temperatures_c=hot,
        machine=beside_figures(),
        notes=(*notes, *flags),
    )
    return replace(profile, machine={**profile.machine, "threads": thread_count})


def model_error(fitted: Sequence[Point], checked: Sequence[Point]) -> dict[str, float]:
    """How far the fitted step time is off at dense points that were not fitted; the fit's own leave-one-out error where
    nothing was kept back."""
    dense = [point for point in fitted if point.density == 1.0]
    if len(dense) < 4:
        return {}
    sizes, times = [p.size for p in dense], [p.step_ms for p in dense]
    if checked:
        model = latency_model.fit(sizes, times)
        found = [model(point.size) / point.step_ms - 1 for point in checked]
    else:
        found = latency_model.errors(sizes, times)
    ordered = sorted(map(abs, found))
    return {
        "median": statistics.median(ordered),
        "p90": ordered[max(0, math.ceil(0.9 * len(ordered)) - 1)],
        "largest": ordered[-1],
        "checked": len(ordered),
    }


def _batch(task: Task, data: LocalData | None, batch_size: int) -> tuple[Callable[[], Tensor], Tensor]:
    """(makes the network's input of one batch, its targets)."""
    if data is not None:
        rows = torch.arange(batch_size) % len(data)
        stored, targets = data.x[rows], data.y[rows]
        check_batch(task, made(task), data.normalise(stored.clone()), targets)
        return lambda: data.normalise(stored), targets
    x, y = made_up(task, batch_size, f"profile of {task.name!r}", "say where its data are, --data DIR")
    return lambda: x, y


def _measure_times(
    found: Sequence[Shape],
    batch: tuple[Callable[[], Tensor], Tensor],
    task: Task,
    recipe: Recipe,
    effort: Effort,
    say: Say,
) -> list[_Running]:
    """Peak memory of each, one alone in memory; then all are timed in turns, so that a slow spell meets all."""
    say(f"peak memory of {len(found)} sizes")
    peaks = [_peak(shape, batch, task, recipe) for shape in found]
    running = [_build(shape, batch, task, recipe) for shape in found]
    for each, peak in zip(running, peaks, strict=True):
        each.peak = peak
        each.step()
        each.forward()
    for number in range(effort.passes):
        say(f"timing {len(running)} sizes, pass {number + 1} of {effort.passes}")
        for each in running:
            each.steps.append(_timed(each.step, effort.seconds / effort.passes))
            each.forwards.append(_timed(each.forward, effort.seconds / effort.passes / 3))
    return running


def _peak(shape: Shape, batch: tuple[Callable[[], Tensor], Tensor], task: Task, recipe: Recipe) -> int | None:
    """Of the process while it builds this model and trains it for two steps."""

    def work() -> None:
        each = _build(shape, batch, task, recipe)
        each.step()
        each.step()

    return memory.peak_of(work)


def _build(shape: Shape, batch: tuple[Callable[[], Tensor], Tensor], task: Task, recipe: Recipe) -> _Running:
    inputs, y = batch
    model = shape.build().train()
    step = make_step(model, task.loss, recipe)
    return _Running(shape, lambda: step(inputs(), y), lambda: _inference(model, inputs()), [], [])


def _inference(model: nn.Module, x: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(x)
    finally:
        model.train(training)


def _timed(work: Callable[[], object], seconds: float) -> list[float]:
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _measure_energy(
    running: Sequence[_Running], meter: Meter, idle_w: float | None, effort: Effort, say: Say
) -> dict[str, object]:
    """Joules of a step and of a forward pass at a few sizes, net of idle; or why there are none."""
    seen = meter.sampler.recording()
    if not meter.has_power or idle_w is None:
        return {"source": seen.source, "reason": seen.fault or "power: not measured: idle power is not known"}
    layers = [each for each in running if each.shape.kind == "layer" and not each.shape.check]
    first: Energy | None = None
    for each in _spread_out(layers[::-1], effort.energy_shapes):
        say(f"energy at {each.shape.width:.0%} of the channels")
        for name, work in (("step", each.step), ("forward", each.forward)):
            result = meter.measure(name, work, batch=1, seconds=effort.energy_s, repeats=1, least_s=effort.energy_s)
            joules, why = result.joules_each(Idle(idle_w))
            first = first or result.energy
            if joules is None:
                return {"source": seen.source, "rail": seen.rail, "idle_w": idle_w, "reason": why}
            setattr(each, f"{name}_j", joules)
    samples = first.samples if first else 0
    found: dict[str, object] = {"source": seen.source, "rail": seen.rail, "idle_w": idle_w, "samples": samples}
    return {**found, "instead_of": seen.instead_of} if seen.instead_of else found


def _spread_out(layers: Sequence[_Running], count: int) -> list[_Running]:
    """``count`` of them, or all: the first, the last and what lies evenly between."""
    count = min(max(1, count), len(layers))
    return [layers[round(i * (len(layers) - 1) / max(1, count - 1))] for i in range(count)]


def _point(each: _Running, flags: Sequence[str]) -> Point:
    medians = [statistics.median(times) for times in each.steps]
    return Point(
        width=each.shape.width,
        depth=each.shape.depth,
        density=each.shape.density,
        shape=each.shape.kind,
        size=each.shape.size,
        step_ms=min(medians) * 1e3,
        inference_ms=min(statistics.median(times) for times in each.forwards) * 1e3,
        spread=max(medians) / min(medians) - 1,
        peak_memory=each.peak,
        step_j=each.step_j,
        inference_j=each.forward_j,
        flags=tuple(flags),
    )


def _noise(running: Sequence[_Running]) -> float:
    """How far the median of one pass lies from those of the others, as the deviation of a logarithm, over all sizes."""
    logs = []
    for each in running:
        medians = [statistics.median(times) for times in each.steps]
        logs += [math.log(median / statistics.median(medians)) for median in medians]
    return math.sqrt(math.fsum(value * value for value in logs) / len(logs)) if logs else 0.0


def _rebuild_ms(model: nn.Module, graph: ChannelGraph) -> float:
    plan = SubmodelPlan.full(graph)
    state = extract_state(model.state_dict(), plan)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        load_local(extract(model, plan), state)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3
