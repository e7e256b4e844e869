"""``edgeprune doctor``: what this machine is and whether everything works, each fault with its remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

_MARKS = {"ok": "[green]ok[/green]", "bad": "[bold red]bad[/bold red]", "": ""}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for a program or a bug report.")
@click.option("--data", "data_dir", metavar="DIR", help="Where to look for data sets first.")
@click.pass_context
def command(context: click.Context, as_json: bool, data_dir: str | None) -> None:
    """Say what this machine is, which kernels were built and whether they compute the right thing.

    Ends with status 0 when the essentials work and 1 when the kernels are missing or fail their self-test. No serial
    number, host name or user name is read.
    """
    from edgeprune.cli.checkup import checkup

    found = checkup(data_dir)
    if as_json:
        click.echo(json.dumps(found, indent=1, sort_keys=True))
    else:
        from rich.console import Console

        Console(highlight=False).print(_table(found))
    if not found["ok"]:
        context.exit(1)


def _table(found: Mapping[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, mark, text in rows(found):
        table.add_row(name, _MARKS[mark], escape(text))
    return table


def rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, mark, text) of every line; the mark is ``ok``, ``bad`` or nothing where there is nothing to judge."""
    return [
        ("edgeprune", "", str(found["edgeprune"])),
        *_machine_rows(found["machine"]),
        *_torch_rows(found["torch"]),
        *_kernel_rows(found["kernels"], found["cuda_toolkit"], bool(found["torch"].get("gpu"))),
        *_jtop_rows(found["jtop"], found["machine"]["board"] is not None),
        *_power_rows(found["power"], found["machine"]["board"] is not None),
        *_onnx_rows(found["onnx"]),
        *_data_rows(found["data"]),
    ]


def _machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    out = []
    if machine["board"]:
        release = f", Jetson Linux {machine['l4t']}" if machine["l4t"] else ""
        target = f" (export target {machine['export_target']})" if machine["export_target"] else ""
        out.append(("board", "", f"{machine['board']}{release}{target}"))
    cores = f"{machine['cores_usable']} of {machine['cores']} cores usable"
    out.append(("processor", "", f"{machine['cpu'] or machine['architecture']}, {cores}"))
    out.append(("SIMD", "", " ".join(machine["simd"]) or "none recognised"))
    total, free = machine["memory_total"], machine["memory_free"]
    if total is not None:
        left = f", {free / 2**30:.1f} GiB free" if free is not None else ""
        out.append(("memory", "", f"{total / 2**30:.1f} GiB{left}"))
    out.append(("system", "", f"{machine['system']}, Python {machine['python']}"))
    return out


def _torch_rows(torch: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if torch["version"] is None:
        return [("torch", "bad", _with_remedy(torch))]
    out = [("torch", "ok", f"{torch['version']}, {torch['threads']} threads")]
    if torch["gpu"]:
        gpu = (
            f"{torch['gpu']['name']} (compute {torch['gpu']['capability']}), CUDA {torch['cuda']} from {torch['path']}"
        )
        out.append(
            ("torch CUDA", "bad" if torch["reason"] else "ok", "; ".join(filter(None, (gpu, _with_remedy(torch)))))
        )
    else:
        out.append(("torch CUDA", "", torch["reason"]))
    return out


def _kernel_rows(kernels: Mapping[str, Any], toolkit: Mapping[str, Any], has_gpu: bool) -> list[tuple[str, str, str]]:
    out = []
    info = kernels["info"]
    if not kernels["ok"]:
        out.append(("kernels", "bad", _with_remedy(kernels)))
    if info:
        built = f"{', '.join(info['compiled'])} built, {info['chosen']} chosen, {info['compiler']}"
        out.append(("kernels", "ok", built) if kernels["ok"] else ("", "", built))
        passed = [name for name, said in info["self_test"].items() if said == "ok"]
        out.append(("self-test", "ok" if kernels["ok"] else "", f"{', '.join(passed) or 'nothing'} right"))
        if not info["cuda_built"]:
            out.append(("CUDA", "", f"no kernels: {info['cuda']}"))
        else:
            tried = "" if has_gpu else "; not tried, torch sees no GPU"
            out.append(("CUDA", "ok" if has_gpu else "", f"kernels built for {info['cuda']}{tried}"))
    if toolkit["nvcc"]:
        out.append(("CUDA toolkit", "", f"{toolkit['version'] or 'unknown version'} at {toolkit['nvcc']}"))
    else:
        out.append(("CUDA toolkit", "", "no nvcc in CUDA_HOME, /usr/local/cuda or PATH"))
    return out


def _jtop_rows(jtop: Mapping[str, Any], is_jetson: bool) -> list[tuple[str, str, str]]:
    if jtop["ready"]:
        return [("jtop", "ok", f"jetson-stats {jtop['version']}, service answers")]
    version = f"jetson-stats {jtop['version']}: " if jtop["version"] else ""
    return [("jtop", "bad" if is_jetson else "", f"{version}{jtop['remedy']}")]


def _power_rows(power: Mapping[str, Any], is_jetson: bool) -> list[tuple[str, str, str]]:
    clocks = [f"{name} up to {value // 1000} MHz" for name, value in power["clocks_khz"].items()]
    state = [*([f"power mode {power['mode']}"] if power["mode"] else []), *clocks]
    hot = max(power["temperatures_c"].items(), key=lambda item: item[1], default=None)
    state += [f"{hot[0]} {hot[1]:.0f} C"] if hot else []
    state += [f"slowed down by heat ({', '.join(power['cooling'])})"] if power["cooling"] else []
    out = [("state", "bad" if power["cooling"] else "", ", ".join(state))] if state else []
    if power["watts"] is None:
        return [*out, ("power", "bad" if is_jetson else "", f"not measured: {power['reason']}")]
    reason = f"; not a better source, for {power['instead_of']}" if power["instead_of"] else ""
    return [*out, ("power", "ok", f"{power['watts']:.2f} W on {power['rail']} through {power['source']}{reason}")]


def _onnx_rows(onnx: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if onnx["remedy"]:
        return [("ONNX", "", _with_remedy(onnx) if onnx.get("reason") else f"not installed; {onnx['remedy']}")]
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnx["providers"])
    return [("ONNX", "ok", f"onnx {onnx['onnx']}, ONNX Runtime {onnx['onnxruntime']} on {providers}")]


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "reason" in data:
        return [("data", "bad", data["reason"])]
    here = [name for name, place in data.items() if place]
    missing = [name for name, place in data.items() if not place]
    out = [("data", "", f"found: {', '.join(here) or 'none'}")]
    if missing:
        out.append(("", "", f"not found: {', '.join(missing)}; edgeprune data fetch NAME"))
    return out


def _with_remedy(part: Mapping[str, Any]) -> str:
    return "; ".join(text for text in (part.get("reason"), part.get("remedy")) if text)
