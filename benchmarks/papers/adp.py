"""Adaptive dynamic pruning, claim by claim (docs/algorithms/adp.md): resumable, all methods with the same splits.

    python benchmarks/papers/adp.py run [--processes 2] [--seeds 0]
    python benchmarks/papers/adp.py list
    python benchmarks/papers/adp.py table

Every cell (row, split, seed) is one run of the engine on Fashion-MNIST, kept as one JSON file under
benchmarks/results/adp/. `table` writes benchmarks/results/adp.json; it reads adp_latency.json (adp_latency.py) too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import adp_cells
import adp_judge
import paper_runs

if __name__ == "__main__":
    paper_runs.command("adp", __doc__, adp_cells, adp_judge)
