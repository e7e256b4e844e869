"""Co-S2P's claims, cell by cell (docs/algorithms/cos2p.md): resumable, all methods with the same splits.

    python benchmarks/papers/cos2p.py run [--grid har,vit,text,crossings] [--processes 2] [--seeds 0]
    python benchmarks/papers/cos2p.py list [--grid ...]
    python benchmarks/papers/cos2p.py table

Every cell (task, row, seed) is one run of the engine, kept as one JSON file under benchmarks/results/cos2p/. Baselines
have equal per-device budgets (cos2p_tasks.py). `table` writes benchmarks/results/cos2p.json; it reads cos2p_times.json
(step times and peak memory), cos2p_masks.json (masks against label distributions) and cos2p_slope.json (gradients) too.
UCI-HAR, CIFAR-10 and tinyshakespeare must be in $EDGEPRUNE_DATA.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cos2p_cells
import cos2p_judge
import paper_runs

if __name__ == "__main__":
    paper_runs.command("cos2p", __doc__, cos2p_cells, cos2p_judge)
