"""Published systems and baselines on one engine: one file each, chosen by name."""

from __future__ import annotations

from edgeprune.algorithms.adaptcl import AdaptCL
from edgeprune.algorithms.adp import ADP
from edgeprune.algorithms.barrier import Barrier
from edgeprune.algorithms.cos2p import CoS2P
from edgeprune.algorithms.fedasync import FedAsync
from edgeprune.algorithms.fedavg import FedAvg
from edgeprune.algorithms.fedbuff import FedBuff
from edgeprune.algorithms.feddst import FedDST
from edgeprune.algorithms.fedrolex import FedRolex
from edgeprune.algorithms.heterofl import HeteroFL
from edgeprune.algorithms.mpfl import MPFL
from edgeprune.algorithms.protocol import Algorithm, Assignment, Job, Recipe, Setting, State, Update
from edgeprune.algorithms.scheduled import Scheduled
from edgeprune.errors import EdgePruneError, nearest

ALGORITHMS: dict[str, type] = {
    cls.name: cls
    for cls in (AdaptCL, ADP, CoS2P, FedAsync, FedAvg, FedBuff, FedDST, FedRolex, HeteroFL, MPFL, Scheduled)
}


def algorithm_class(name: str) -> type:
    """The dataclass of the algorithm called ``name``."""
    try:
        return ALGORITHMS[name]
    except KeyError:
        raise EdgePruneError(f"algorithm.name: unknown algorithm {name!r}{nearest(name, ALGORITHMS)}") from None


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Assignment",
    "Barrier",
    "Job",
    "Recipe",
    "Setting",
    "State",
    "Update",
    "algorithm_class",
]
