"""What ``edgeprune doctor`` finds out, as plain data. A part that is missing or broken is a reason, not an error."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from edgeprune._version import __version__
from edgeprune.device import probe
from edgeprune.device.jtop_state import jtop_state
from edgeprune.device.power import open_sampler
from edgeprune.device.samples import now
from edgeprune.device.state import machine_state
from edgeprune.onnx_session import import_quiet


def checkup(data_dir: str | None = None) -> dict[str, Any]:
    """Everything, JSON-able, without the user's name. ``ok``: the kernels are there and pass their self-test."""
    machine = probe.machine()
    kernels = _kernels()
    jtop = jtop_state(machine.board is not None)
    found = {
        "edgeprune": __version__,
        "ok": kernels["ok"],
        "machine": {**machine.to_dict(), "export_target": probe.jetpack(machine.l4t)},
        "torch": _torch(),
        "kernels": kernels,
        "cuda_toolkit": _cuda_toolkit(),
        "jtop": {**vars(jtop), "ready": jtop.ready},
        "power": _power(),
        "onnx": _onnx(),
        "data": _data(data_dir),
    }
    cleaned: dict[str, Any] = _without_home(found)
    return cleaned


def _torch() -> dict[str, Any]:
    """Version, threads, and whether its CUDA can run on the GPU that is here."""
    try:
        import torch
    except Exception as error:  # a torch built for another machine fails in many ways
        return {"version": None, "reason": _sentence(error), "remedy": "install the torch made for this machine"}
    found: dict[str, Any] = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "path": os.path.dirname(torch.__file__),
        "gpu": None,
        "reason": "",
        "remedy": "",
    }
    if torch.version.cuda is None:
        found["reason"] = "this torch was built without CUDA"
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no NVIDIA driver" arrives as a warning; it is the answer, not a fault
        available = torch.cuda.is_available()
    if not available:
        found["reason"] = "torch has CUDA, but no GPU or driver answers"
        return found
    major, minor = torch.cuda.get_device_capability(0)
    found["gpu"] = {"name": torch.cuda.get_device_name(0), "capability": f"{major}.{minor}"}
    built_for = torch.cuda.get_arch_list()
    found["gpu"]["torch_built_for"] = built_for
    if f"sm_{major}{minor}" not in built_for and f"compute_{major}{minor}" not in built_for:
        found["reason"] = f"torch carries no code made for sm_{major}{minor}"
        found["remedy"] = "on a Jetson install NVIDIA's torch for its JetPack, not the one from the public index"
    return found


def _kernels() -> dict[str, Any]:
    """``edgeprune.ops.info()``, its self-test included, or why it cannot be had.

    Asked in a child process: a core built for another processor dies of an illegal instruction, and the doctor is to
    live to say so.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except subprocess.TimeoutExpired:
        return _broken(f"the kernels did not answer within {_PATIENCE_S} s", _REBUILD)
    if asked.returncode < 0:
        return _broken(f"the kernels died of {_signal_name(-asked.returncode)}", _REBUILD)
    try:
        answer = json.loads(asked.stdout.splitlines()[-1])
        info, reason = answer.get("info"), answer.get("reason", "")
    except (ValueError, IndexError, AttributeError):
        lines = asked.stderr.strip().splitlines() or ["no answer"]
        return _broken(f"the kernels gave no answer: {lines[-1]}", _REBUILD)
    if not isinstance(info, dict):
        return _broken(str(reason), "" if "install" in str(reason) else _REBUILD)
    failed = {name: said for name, said in info.get("self_test", {}).items() if said != "ok"}
    if failed:
        name, said = next(iter(failed.items()))
        broken = _broken(f"the self-test failed: {name}: {said}", _REBUILD)
        return {**broken, "info": info}
    return {"ok": True, "reason": "", "remedy": "", "info": info}


_PATIENCE_S = 120  # importing torch on a small board takes tens of seconds
_REBUILD = "build it again on this machine with 'pip install .'"
_ASK = """
import json
try:
    from edgeprune import ops
    answer = {"info": ops.info()}
except Exception as error:
    answer = {"reason": (str(error).strip() or type(error).__name__).splitlines()[0]}
print(json.dumps(answer))
"""


def _broken(reason: str, remedy: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason, "remedy": remedy, "info": {}}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cuda_toolkit() -> dict[str, Any]:
    """nvcc, looked for where a build of the extension looks: CUDA_HOME, /usr/local/cuda, PATH."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        places.append(Path(on_path))
    for place in places:
        if not place.is_file():
            continue
        try:
            shown = subprocess.run([str(place), "--version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return {"nvcc": str(place), "version": None}
        release = [part for part in shown.stdout.replace(",", " ").split() if part.startswith("V")]
        return {"nvcc": str(place), "version": release[-1][1:] if release else None}
    return {"nvcc": None, "version": None}


def _power() -> dict[str, Any]:
    """Power as it can be sampled here, tried for two seconds, and the state that figures depend on."""
    sampler = open_sampler("auto", 0.5, deadline_s=10.0)
    end = now() + _LOOK_S
    while sampler.recording().fault is None and len(sampler.recording().samples) < 3 and now() < end:
        time.sleep(0.05)
    seen, state = sampler.stop(), machine_state()
    watts = [sample.power_w for sample in seen.samples if sample.power_w is not None]
    return {
        "source": seen.source,
        "rail": seen.rail,
        "watts": watts[-1] if watts and seen.fault is None else None,
        "reason": (seen.fault or ("" if watts else f"{seen.source} gives no power")).removeprefix(_PREFIX),
        "instead_of": seen.instead_of,
        "mode": state.mode,
        "clocks_khz": dict(state.clocks_khz),
        "temperatures_c": dict(state.temperatures_c),
        "cooling": dict(state.cooling),
    }


_LOOK_S = 2.0
_PREFIX = "power: not measured: "


def _onnx() -> dict[str, Any]:
    """Versions of the ``onnx`` extra and the execution providers that this ONNX Runtime has."""
    found: dict[str, Any] = {name: _version(name) for name in ("onnx", "onnxscript")}
    found["onnxruntime"], found["providers"] = None, []
    try:
        runtime = import_quiet()
        found["onnxruntime"], found["providers"] = runtime.__version__, list(runtime.get_available_providers())
    except Exception as error:  # a wheel for another glibc or numpy fails with its own type
        if importlib.util.find_spec("onnxruntime") is not None:
            found["reason"] = f"onnxruntime does not import: {_sentence(error)}"
    complete = found["onnx"] is not None and found["onnxruntime"] is not None
    found["remedy"] = "" if complete else "pip install 'edgeprune[onnx]'"
    return found


def _data(data_dir: str | None) -> dict[str, Any]:
    """Data set -> its folder on this machine, or None; digits come with a package and need no file."""
    try:
        places = importlib.import_module("edgeprune.data.search").places(data_dir)
    except Exception as error:
        return {"reason": f"data sets cannot be looked for: {_sentence(error)}"}
    return {"digits": "built in", **{name: None if place is None else str(place) for name, place in places.items()}}


def _without_home(value: Any) -> Any:
    """``value`` with the user's own folder written ``~`` in every text: it holds the user's name."""
    if isinstance(value, dict):
        return {key: _without_home(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(inner) for inner in value]
    home = os.path.expanduser("~")
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
