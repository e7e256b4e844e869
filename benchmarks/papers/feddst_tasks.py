"""Tasks of benchmarks/papers/feddst.py that the package does not have."""

from __future__ import annotations

from dataclasses import replace

from edgeprune.tasks import Task
from edgeprune.tasks import get as get_task
from edgeprune.tasks.models import feddst_cifar


def small() -> Task:
    """FedDST's task with a fifth of the weights: 157,090 of 781,770."""
    return replace(get_task("cifar10-feddst"), make_model=lambda: feddst_cifar(widths=(3, 7, 55, 36)))


def large() -> Task:
    """FedDST's task with four times the weights: every layer twice as wide."""
    return replace(get_task("cifar10-feddst"), make_model=lambda: feddst_cifar(widths=(12, 32, 240, 168)))
