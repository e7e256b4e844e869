"""Virtual time: what a round would have cost on the fleet, from measured step times and counted bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeprune.device.profile import ModelSize
from edgeprune.fleet.device import Device
from edgeprune.fleet.times import Times


@dataclass(frozen=True)
class Work:
    """What a device was asked to do: bytes down and up, training ``steps`` and ``forwards`` of a model of ``macs``.

    ``size`` is what a device profile's times are looked up by; a latency table needs the multiply-adds alone.
    """

    download_bytes: int
    upload_bytes: int
    steps: int
    macs: int
    rebuilds: int = 0
    forwards: int = 0
    size: ModelSize | None = None


@dataclass(frozen=True)
class Charge:
    """Seconds of one device's round, part by part. ``total`` is its update time phi, from send to receipt."""

    download_s: float
    compute_s: float
    rebuild_s: float
    upload_s: float

    @property
    def total(self) -> float:
        """Update time in seconds."""
        return self.download_s + self.compute_s + self.rebuild_s + self.upload_s


def charge(device: Device, work: Work, table: Times, *, round_: int, seed: int) -> Charge:
    """What ``work`` costs on ``device`` in ``round_``, by ``table``: its own profile's times where it has one, else
    those of the machine that it is so many times slower than.

    Noise multiplies the whole update time by one log-normal number of mean 1, drawn from (seed, device, round): the
    same in every run and for every algorithm, whatever else was drawn.
    """
    # Events change the device as a whole, its link included; the link already carries the factor it started with.
    change = device.slowdown_at(round_) / device.slowdown
    factor = luck(device, round_, seed)
    slower = 1.0 if device.profile else device.slowdown
    size = work.macs if work.size is None else work.size
    return Charge(
        download_s=factor * change * device.link.download_s(work.download_bytes),
        compute_s=factor * change * slower * (work.steps * table.step_s(size) + work.forwards * table.forward_s(size)),
        rebuild_s=factor * change * slower * work.rebuilds * table.rebuild_ms * 1e-3,
        upload_s=factor * change * device.link.upload_s(work.upload_bytes),
    )


def luck(device: Device, round_: int, seed: int) -> float:
    """The noise factor of ``device`` in ``round_``: log-normal, mean 1."""
    if device.noise == 0:
        return 1.0
    name = int.from_bytes(device.name.encode(), "little")
    normal = np.random.default_rng([seed, round_, name]).standard_normal()
    return math.exp(device.noise * normal - device.noise**2 / 2)
