"""How fast does Co-S2P's gradient shrink, and does coverage help? (B9)

    python benchmarks/papers/cos2p_slope.py [--seeds 0,1,2] [--rounds 48]

The paper bounds the mean over rounds of the squared gradient by a multiple of 1 / sqrt(N* E Q). So, on UCI-HAR with
sixteen devices in three fleets, of which 2, 4 or 8 hold the whole network (N*, the fewest that hold any weight, is
that or less), the same learning rate and K = 10 of 16: the squared norm of the gradient of the training loss on 600 of
the fleet's samples in one batch, at the served weights before rounds 1, 3, 5 ...; M(Q) is its mean up to Q. Reported:
the slope of log M in log Q from Q = 6 on (-0.5 is the bound's), and M at the end for each fleet.
Writes benchmarks/results/cos2p_slope.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import numpy as np
import torch
from cos2p_cells import SETTINGS, fleet
from torch import Tensor

from edgeprune import engine

FLEETS = {  # by how many of sixteen hold all: rates dealt from the strongest to the weakest, two devices each
    2: (1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.25),
    4: (1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25),
    8: (1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25),
}
SAMPLES, EVERY, FROM = 600, 2, 6


def squared_gradient(model: torch.nn.Module, loss_of: Any, x: Tensor, y: Tensor) -> float:
    """Of the loss over all of ``x`` at once, summed in double."""
    model.train()
    model.zero_grad()
    loss_of(model(x), y).backward()
    return math.fsum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)


def one(whole: int, seed: int, rounds: int) -> dict[str, Any]:
    """M(Q) of one run."""
    sets = [
        *SETTINGS["har"],
        fleet("har"),
        f"run.rounds={rounds}",
        "run.evaluate_every=1000",
        f"run.seed={seed}",
        "run.threads=1",
        "algorithm.name=cos2p",
        "algorithm.wait_for=10",
        'algorithm.staleness="relative"',
        "algorithm.calibrate=0",
        f"algorithm.rates={list(FLEETS[whole])}",
    ]
    prepared = engine.prepare(engine.load_experiment(None, sets))
    parts = [prepared.local[client] for client in sorted(prepared.local)]
    chosen = torch.randperm(sum(len(part) for part in parts), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    x = prepared.data.normalise(torch.cat([part.x for part in parts])[chosen])
    y = torch.cat([part.y for part in parts])[chosen]
    model, at_round, squared, facts = prepared.task.make_model(), [], [], {}

    def judge(weights: dict[str, Tensor], round_: int) -> None:
        model.load_state_dict(weights)
        at_round.append(round_)
        squared.append(squared_gradient(model, prepared.task.loss, x, y))

    def watch(at: Any, record: Any) -> None:
        facts.update(record["facts"])
        if at.state.round % EVERY == 0 and at.state.round < rounds:
            judge(at.state.model, at.state.round + 1)

    judge(prepared.model.state_dict(), 1)
    with tempfile.TemporaryDirectory() as folder:
        engine.start(prepared, Path(folder) / "run", watch)
    means = [statistics.fmean(squared[: i + 1]) for i in range(len(squared))]
    late = [i for i, q in enumerate(at_round) if q >= FROM]
    slope = np.polyfit(np.log([at_round[i] for i in late]), np.log([means[i] for i in late]), 1)[0]
    return {
        "hold_all": whole,
        "seed": seed,
        "coverage": facts["coverage"],
        "slope": float(slope),
        "mean_squared_gradient": means[-1],
        "rounds": at_round,
        "squared_gradient": [float(f"{value:.6g}") for value in squared],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = harness.machine()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        for whole in FLEETS:
            rows.append(one(whole, seed, arguments.rounds))
            shown = {key: rows[-1][key] for key in ("hold_all", "seed", "slope", "mean_squared_gradient", "coverage")}
            print(shown, flush=True)
    harness.write_result("cos2p_slope", about, rows)


if __name__ == "__main__":
    main()
