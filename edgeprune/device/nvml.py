"""Power of a desktop or server GPU through NVML (the ``nvidia-ml-py`` package, used where it happens to be installed).

On a Jetson NVML gives no power; there jtop or the INA3221 sensors do.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgeprune.device.polling import PollingSampler
from edgeprune.device.samples import Sample, now


def sampler(interval_s: float = 0.5, index: int = 0) -> PollingSampler | str:
    """A sampler of GPU ``index``, or one sentence why there is none. The rail is the whole board of the GPU."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "no NVML here (pip install nvidia-ml-py on a machine with an NVIDIA GPU)"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceGetPowerUsage(handle)
    except Exception as error:  # NVMLError and its kin; the package has a class for each code
        return f"NVML gives no power ({error})"

    def read() -> Sample:
        try:
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
            degrees = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            clock = int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)) * 1000
        except Exception as error:
            raise OSError(str(error)) from None
        return Sample(now(), watts, {}, {"gpu": degrees}, None, {"GPU clock": clock})

    return PollingSampler("NVML", f"GPU {index}", read, interval_s)
