"""Who takes part: devices, links, faults, and the virtual clock that charges them."""

from edgeprune.fleet.clock import Charge, Work, charge
from edgeprune.fleet.description import Fleet, FleetConfig, build_fleet
from edgeprune.fleet.device import Device, Fault, Slowdown
from edgeprune.fleet.latency import LatencyTable, Probe, measure, read_table
from edgeprune.fleet.link import Link
from edgeprune.fleet.size import size_of
from edgeprune.fleet.times import ProfileTimes, Times, read_times

__all__ = [
    "Charge",
    "Device",
    "Fault",
    "Fleet",
    "FleetConfig",
    "LatencyTable",
    "Link",
    "Probe",
    "ProfileTimes",
    "Slowdown",
    "Times",
    "Work",
    "build_fleet",
    "charge",
    "measure",
    "read_table",
    "read_times",
    "size_of",
]
