"""Plans: what a sub-model keeps (submodel.py), and how that is chosen (choice.py)."""

from __future__ import annotations

from edgeprune.pruning.choice import Ranking, choose, ranking
from edgeprune.pruning.submodel import SubmodelPlan

__all__ = ["Ranking", "SubmodelPlan", "choose", "ranking"]
