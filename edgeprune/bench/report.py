"""What a benchmark says: one table for the terminal, one JSON for a program, both from the same figures."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune._version import __version__
from edgeprune.bench.meter import Idle, Meter, Result
from edgeprune.destination import write_text
from edgeprune.device import probe
from edgeprune.device.profile import fingerprint
from edgeprune.device.state import machine_state

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "edgeprune.bench/1"


def report(
    kind: str, subject: Mapping[str, Any], results: Sequence[Result], idle: Idle, meter: Meter, threads: int
) -> dict[str, Any]:
    """Everything about one benchmark run, JSON-able. No serial number, host name, user name or path."""
    seen = meter.sampler.recording()
    state = machine_state()
    return {
        "format": FORMAT,
        "kind": kind,
        "edgeprune": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "source": "measured",
        "subject": dict(subject),
        "machine": {**probe.beside_figures(), "threads": threads, "l4t": probe.l4t()},
        "fingerprint": fingerprint(threads).id,
        "state": state.to_dict(),
        "power": {
            "source": seen.source,
            "rail": seen.rail,
            "interval_s": seen.interval_s if seen.interval_s == seen.interval_s else None,
            "idle_before_w": idle.before_w,
            "idle_after_w": idle.after_w,
            "reason": seen.fault,
            "instead_of": seen.instead_of,
        },
        "results": [result.to_dict(idle) for result in results],
    }


def write(found: Mapping[str, Any], path: Path) -> None:
    """Written, then renamed."""
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n", "bench")


def table(found: Mapping[str, Any]) -> Table:
    """One row a measurement."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("", "batch", "runs", "p50 ms", "p90 ms", "p99 ms", "samples/s", "J/sample", "peak MiB"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in found["results"]:
        joules, peak = row["joules_per_sample_net_of_idle"], row["peak_memory_bytes"]
        times = [f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        shown.add_row(
            row["name"],
            str(row["batch"]),
            str(row["iterations"]),
            *times,
            f"{row['samples_per_s']:,.0f}",
            "-" if joules is None else f"{joules:.4g}",
            "-" if peak is None else f"{peak / 2**20:.0f}",
        )
    return shown


def lines(found: Mapping[str, Any]) -> list[str]:
    """What stands under the table: machine, mode, power, heat, and every flag."""
    machine, state, power = found["machine"], found["state"], found["power"]
    mode = f", power mode {state['mode']}" if state["mode"] else ""
    clocks = "".join(f", {name} <= {value // 1000} MHz" for name, value in state["clocks_khz"].items())
    plural = "" if machine["threads"] == 1 else "s"
    shown = [
        f"measured on {machine['cpu']}{mode}{clocks}, {machine['threads']} thread{plural}, torch {machine['torch']}"
    ]
    reasons = dict.fromkeys(row["joules_reason"] for row in found["results"] if row["joules_reason"])
    if power["rail"] and power["reason"] is None:
        idle = ", ".join(f"{power[key]:.2f} W" for key in ("idle_before_w", "idle_after_w") if power[key] is not None)
        shown.append(f"energy of {power['rail']} through {power['source']}, net of idle ({idle or 'not known'})")
    if power["instead_of"]:
        shown.append(f"power through {power['source']}, for {power['instead_of']}")
    for reason in reasons:
        shown.append(f"energy: {reason.removeprefix('power: ')}")
    heat: dict[str, float] = {}
    for row in found["results"]:
        for name, value in row["temperatures_max_c"].items():
            heat[name] = max(value, heat.get(name, value))
    hot = ", ".join(f"{name} {value:.0f} C" for name, value in heat.items())
    shown.append(f"temperatures at most {hot}" if hot else "temperatures: not measured, this machine shows none")
    return shown + [f"flag ({row['name']}): {flag}" for row in found["results"] for flag in row["flags"]]
