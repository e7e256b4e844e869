"""MPFL's claims, cell by cell (docs/algorithms/mpfl.md): resumable, all methods with the same splits and samples.

    python benchmarks/papers/mpfl.py run [--grid fashion,dirichlet,vgg,long,resnet] [--processes 2]
    python benchmarks/papers/mpfl.py list [--grid ...]
    python benchmarks/papers/mpfl.py table

Every cell (task, row, seed) is one run of the engine, kept as one JSON file under benchmarks/results/mpfl/; search
and training are rounds of it, and bytes are len of what was sent.
`table` prints the page's table and writes benchmarks/results/mpfl.json.
CIFAR-10 must be in $EDGEPRUNE_DATA; if it is not the published copy, its note is kept with every result.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import mpfl_cells
import mpfl_judge
import paper_runs

if __name__ == "__main__":
    paper_runs.command("mpfl", __doc__, mpfl_cells, mpfl_judge)
