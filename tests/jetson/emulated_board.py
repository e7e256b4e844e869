"""A folder with the files of /sys that jetson-stats' service reads on a Jetson Orin Nano, and that can be changed live.

The service has a testing mode in which it reads /fake_sys in place of sysfs; jtop_service.py puts this folder there.
The INA3221 chip is also found where the kernel's driver shows it, for the reader that does without jtop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

MODES = ("15W", "25W", "MAXN_SUPER", "7W")
RAILS = {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)}
GPU = "devices/platform/17000000.gpu"
CHIP = "bus/i2c/devices/1-0040"

NVPMODEL = """#!/bin/bash
# The three calls of NVIDIA's nvpmodel that jetson-stats makes.
modes=({modes})
now=$(cat {tree}/.nvpmodel)
case "$1" in
  -q) echo "NV Power Mode: ${{modes[$now]}}"; echo "$now" ;;
  -m) echo "$2" > {tree}/.nvpmodel ;;
  -p) for i in ${{!modes[@]}}; do echo "NVPM VERB: POWER_MODEL: ID=$i NAME=${{modes[$i]}}"; done
      echo "NVPM VERB: PM_CONFIG: DEFAULT=25W(1)" ;;
esac
"""


class EmulatedBoard:
    """Writes the tree below ``root``; every change replaces a file whole, as a reader in another process expects."""

    def __init__(self, root: Path, rails: Mapping[str, tuple[int, int]] = RAILS, cores: int = 6) -> None:
        self.root = root
        self.rails = dict(rails)
        self._cpu(cores)
        self._gpu()
        self._clocks()
        self._sensors()
        self.put(".nvpmodel", "1")
        self.tools.mkdir(parents=True, exist_ok=True)
        script = self.tools / "nvpmodel"
        script.write_text(NVPMODEL.format(modes=" ".join(MODES), tree="/fake_sys"))
        script.chmod(0o755)

    @property
    def tools(self) -> Path:
        """Folder of the commands that stand in for NVIDIA's."""
        return self.root / ".tools"

    def put(self, name: str, value: object, end: str = "\n") -> None:
        """The file ``name`` with ``value``; device-tree strings end in NUL instead of a newline."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part~")
        part.write_text(f"{value}{end}")
        os.replace(part, path)

    def set_power(self, rail: str, watts: float) -> None:
        """The rail draws that much from now on, at the voltage it has."""
        number = list(self.rails).index(rail) + 1
        self.put(f"{CHIP}/hwmon/hwmon1/curr{number}_input", round(watts * 1e6 / self.rails[rail][0]))

    def set_mode(self, number: int) -> None:
        """As nvpmodel -m would, by somebody else's hand."""
        self.put(".nvpmodel", number)

    def set_gpu_limit(self, hertz: int) -> None:
        """The GPU's upper clock, which a power mode lowers."""
        self.put(f"{GPU}/devfreq/17000000.gpu/max_freq", hertz)

    def _cpu(self, cores: int) -> None:
        lines = ["cpu  1000 0 1000 8000 0 0 0 0 0 0"]
        for i in range(cores):
            lines.append(f"cpu{i} 100 0 100 800 0 0 0 0 0 0")
            base = f"devices/system/cpu/cpu{i}"
            self.put(f"{base}/online", 1)
            self.put(f"{base}/cpufreq/scaling_governor", "schedutil")
            for kind, low, high in (("scaling", 729600, 1510400), ("cpuinfo", 115200, 1510400)):
                self.put(f"{base}/cpufreq/{kind}_min_freq", low)
                self.put(f"{base}/cpufreq/{kind}_max_freq", high)
                self.put(f"{base}/cpufreq/{kind}_cur_freq", high)
        self.put("stat", "\n".join([*lines, "intr 0", "ctxt 1"]))

    def _gpu(self) -> None:
        freq = f"{GPU}/devfreq/17000000.gpu"
        self.put(f"{GPU}/of_node/name", "gpu", "\0")
        for name, value in (("load", 437), ("railgate_enable", 1), ("tpc_pg_mask", 252), ("enable_3d_scaling", 1)):
            self.put(f"{GPU}/{name}", value)
        self.put(f"{GPU}/power/control", "auto")
        for name, hertz in (("cur_freq", 624750000), ("max_freq", 624750000), ("min_freq", 306000000)):
            self.put(f"{freq}/{name}", hertz)
        self.put(f"{freq}/governor", "nvhost_podgov")
        # Relative links: the folder is seen under another name by the service.
        self._link(f"{freq}/device", "../..")
        self._link("class/devfreq/17000000.gpu", f"../../{freq}")

    def _clocks(self) -> None:
        for name, value in (("rate", 2133), ("max_rate", 2133), ("min_rate", 204)):
            self.put(f"kernel/debug/bpmp/debug/clk/emc/{name}", value * 1_000_000)
        self.put("kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked", 0)
        self.put("kernel/debug/cactmon/mc_all", 426600)
        for engine in ("nvdec", "nvjpg", "vic", "ape"):
            for name, value in (("enable_count", 0), ("rate", 0), ("max_rate", 793600000), ("min_rate", 0)):
                self.put(f"kernel/debug/clk/{engine}/clk_{name}", value)

    def _sensors(self) -> None:
        hwmon = f"{CHIP}/hwmon/hwmon1"
        self.put(f"{CHIP}/name", "ina3221")
        for number, (label, (millivolts, milliamperes)) in enumerate(self.rails.items(), 1):
            self.put(f"{hwmon}/in{number}_label", label)
            self.put(f"{hwmon}/in{number}_input", millivolts)
            self.put(f"{hwmon}/curr{number}_input", milliamperes)
            for limit in ("max", "crit"):
                self.put(f"{hwmon}/curr{number}_{limit}", 32760)
                self.put(f"{hwmon}/curr{number}_{limit}_alarm", 0)
        self.put(f"{hwmon}/in7_label", "sum of shunt voltages")
        self.put(f"{hwmon}/in7_input", 0)
        self._link("bus/i2c/drivers/ina3221/1-0040", "../../devices/1-0040")
        (self.root / "class/power_supply").mkdir(parents=True, exist_ok=True)
        self.put("class/hwmon/hwmon0/name", "pwmfan")
        self.put("class/hwmon/hwmon0/pwm1", 90)
        self.put("class/hwmon/hwmon2/name", "pwm_tach")
        self.put("class/hwmon/hwmon2/rpm", 1800)

    def _link(self, name: str, target: str) -> None:
        link = self.root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
