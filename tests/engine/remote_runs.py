"""Short runs over devices elsewhere, and what they are compared by."""

from __future__ import annotations

from dataclasses import replace

import safetensors.torch
import torch
from bench_carrier import bench

from edgeprune import engine
from edgeprune.engine import checkpoint as checkpoints
from edgeprune.engine import federation


def weights(path):
    """The global model alone: what devices of this process owe is in the local engine's checkpoint only."""
    every = safetensors.torch.load_file(path / checkpoints.FILE)
    return {name: tensor for name, tensor in every.items() if ":" not in name}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lead(experiment, tmp_path, spoil=None, name="run"):
    carrier = bench(experiment, tmp_path / f"{name}.state", spoil)
    federation.lead(experiment, carrier, tmp_path / name, None, wait_s=5, clock=carrier.clock)
    return engine.RunDir(tmp_path / name).metrics(), carrier


def of(small, algorithm, *sets):
    """A short experiment with ``algorithm``, written as ``--set`` writes it."""
    from edgeprune.engine import load_experiment

    experiment = small("fleet.devices=3", "run.rounds=3", "run.deadline_s=2", *sets)
    return replace(experiment, algorithm=load_experiment(None, algorithm).algorithm)


FEEDBACK = ["algorithm.name=fedavg", "algorithm.upload=int8", "algorithm.feedback=true"]


def fedavg(small, *sets):
    return of(small, ["algorithm.name=fedavg"], *sets)
