"""Moves assignments and updates: the loop, the local transport with its virtual clock, the run's folder."""

from edgeprune.engine.config import Experiment, load_experiment
from edgeprune.engine.run import Prepared, prepare, resume, start
from edgeprune.engine.rundir import RunDir

__all__ = ["Experiment", "Prepared", "RunDir", "load_experiment", "prepare", "resume", "start"]
