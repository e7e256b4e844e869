"""Do learnt masks follow the data? Mask distance against label distance over all pairs of clients (B8).

    python benchmarks/papers/cos2p_masks.py [har,vit]

Sixteen clients with labels spread by Dirichlet(0.5); each learns its mask at rate 0.5 on 128 of its samples (drawn with
replacement, so that all take equally many steps) from the same weights: the initial ones, as Co-S2P does in its first
rounds, and ("trained") after three epochs on all data. Distance of masks: L1 between probabilities, by channel; of
labels: total variation. p: a permutation of the clients, 2,000 times (Mantel).
Writes benchmarks/results/cos2p_masks.json.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from edgeprune import data as datasets
from edgeprune import tasks
from edgeprune.algorithms.mask_learning import learn_mask
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.training import LocalData, train_local
from edgeprune.pruning import ChannelGraph, SubmodelPlan

NAMES = {"har": "uci-har", "vit": "cifar10-vit"}
CLIENTS, SAMPLES, EACH, EPOCHS = 16, 2400, 128, 4


def distances(vectors: Tensor) -> np.ndarray:
    """Mean absolute difference of every pair of rows: [rows, rows]."""
    return torch.cdist(vectors.double(), vectors.double(), p=1).numpy() / vectors.shape[1]


def mantel(a: np.ndarray, b: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """(Spearman over pairs, share of permutations of the clients that give as much)."""
    pairs = np.array(list(itertools.combinations(range(len(a)), 2))).T
    ranks = rankdata(b[pairs[0], pairs[1]])

    def correlation(order: np.ndarray) -> float:
        moved = a[np.ix_(order, order)]
        return float(np.corrcoef(rankdata(moved[pairs[0], pairs[1]]), ranks)[0, 1])

    rng = np.random.default_rng(0)
    found = correlation(np.arange(len(a)))
    as_much = sum(correlation(rng.permutation(len(a))) >= found for _ in range(draws))
    return found, (1 + as_much) / (1 + draws)


def one(name: str, trained: bool) -> dict[str, Any]:
    task = tasks.get(NAMES[name])
    data = task.load_data()
    torch.manual_seed(0)
    model = task.make_model()
    graph = ChannelGraph.trace(model, task.example_inputs())
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    x, y = data.train.x[chosen], data.train.y[chosen]
    recipe = Recipe(3, task.batch_size, task.lr, task.momentum, task.weight_decay)
    if trained:
        train_local(model, LocalData(x, y, data.normalise), task.loss, recipe, 0)
    parts = datasets.partition("dirichlet", y, None, CLIENTS, 0, alpha=0.5)
    learning = Recipe(EPOCHS, task.batch_size, task.lr, 0.0, 0.0)
    full, masks, labels = SubmodelPlan.full(graph), [], []
    for part in parts:
        drawn = part[torch.randint(len(part), (EACH,), generator=torch.Generator().manual_seed(1))]
        mine = LocalData(x[drawn], y[drawn], data.normalise)
        learnt = learn_mask(model, graph, full, mine, task.loss, learning, Job(learn=0.5), 0)
        masks.append(torch.cat([learnt.kept[group] for group in graph.map.groups]))
        counts = torch.bincount(y[part], minlength=len(data.classes)).double()
        labels.append(counts / counts.sum())
    spearman, p = mantel(distances(torch.stack(masks)), distances(torch.stack(labels)))
    row = {"task": name, "backbone": "trained" if trained else "initial", "spearman": spearman, "p": p}
    return {**row, "clients": CLIENTS, "mask_epochs": EPOCHS}


def main() -> None:
    torch.set_num_threads(1)
    about = harness.machine()
    rows = []
    for name in (sys.argv[1] if len(sys.argv) > 1 else "har,vit").split(","):
        for trained in (False, True):
            rows.append(one(name, trained))
            print(rows[-1], flush=True)
    harness.write_result("cos2p_masks", about, rows)


if __name__ == "__main__":
    main()
