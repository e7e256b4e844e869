"""What the scheduler is told of the fleet: each device's profile, as the device itself would have measured it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import planned_steps
from edgeprune.device.profile import DeviceProfile, from_json, read_profile
from edgeprune.errors import EdgePruneError
from edgeprune.fleet import Device, Fleet, ProfileTimes, Times
from edgeprune.fleet.reports import Report


def fleet_reports(
    fleet: Fleet, times: Times, samples: Mapping[str, int], recipe: Recipe, profile_noise: float, seed: int
) -> tuple[Report, ...]:
    """A report for every device: from its own profile, else from this machine's times its slowdown.

    Such a virtual profile is off by a log-normal factor of ``profile_noise``, drawn from (seed, device): nobody
    measures without error. Nothing else of the true speed is told. Empty where there is no profile to start from.
    """
    found = []
    own = own_times(fleet, times)
    for device in fleet.devices:
        steps = planned_steps(samples[device.name], recipe)
        needs = own.get(device.name) or _needs(device, times, profile_noise, seed)
        if needs is None:
            return ()
        found.append(
            Report(
                device.name,
                needs,
                device.link,
                steps,
                memory_bytes=device.memory_mib * 2**20 or math.inf,
                energy_j=device.energy_j or math.inf,
                temperature_c=_temperature(device, needs),
                hottest_c=device.hottest_c or math.inf,
                noise=device.noise,
                measured=f"{needs.profile.fingerprint.id} {needs.profile.created}",
            )
        )
    return tuple(found)


def recorded_times(path: Path) -> dict[str, ProfileTimes]:
    """What the devices' profiles said when the run began, by device; nothing where no file is there. (A profile that is
    measured anew changes what is believed of a device, not what the device is.)"""
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EdgePruneError(f"{path}: cannot be read ({error}); put it back as the run wrote it") from None
    if not isinstance(held, dict):
        raise EdgePruneError(f"{path}: not what the run wrote; put it back")
    return {name: ProfileTimes(from_json(value, f"{path}: {name}")) for name, value in held.items()}


def own_times(fleet: Fleet, times: Times) -> dict[str, ProfileTimes]:
    """What the profiles say that devices have of their own, by name. Raises :class:`EdgePruneError` for one that cannot
    be read, or is of another task or batch size than ``times``."""
    found = {}
    for device in fleet.devices:
        if device.profile:
            own = read_profile(Path(device.profile))
            _check(own, device.name, times)
            try:
                found[device.name] = ProfileTimes(own)
            except EdgePruneError as error:
                raise EdgePruneError(f"fleet.device {device.name!r}: {error}") from None
    return found


def _needs(device: Device, times: Times, profile_noise: float, seed: int) -> ProfileTimes | None:
    if not isinstance(times, ProfileTimes):
        return None
    name = int.from_bytes(device.name.encode(), "little")
    normal = np.random.default_rng([seed, 1 << 20, name]).standard_normal()
    return ProfileTimes(times.profile, device.slowdown * math.exp(profile_noise * normal))


def _temperature(device: Device, needs: ProfileTimes) -> float | None:
    """What the device last read, else the hottest that its own profile saw under load; None for a virtual device."""
    if device.temperature_c:
        return device.temperature_c
    seen = needs.profile.temperatures_c if device.profile else {}
    return max(seen.values(), default=None)


def _check(profile: DeviceProfile, name: str, times: Times) -> None:
    if (profile.task, profile.batch_size) != (times.task, times.batch_size):
        raise EdgePruneError(
            f"fleet.device {name!r}: its profile is of {profile.task!r} with batches of {profile.batch_size}, the "
            f"experiment trains {times.task!r} with {times.batch_size}; measure it again"
        )
