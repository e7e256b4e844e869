"""FedDST's claims, cell by cell (docs/algorithms/feddst.md): resumable, all methods with the same splits and samples.

    python benchmarks/papers/feddst.py run [--grid short,headline,fixed,softmax,controls,fashion,mnist,where]
    python benchmarks/papers/feddst.py list [--grid ...]
    python benchmarks/papers/feddst.py table

Every cell (task, row, seed) is one run of the engine, kept as one JSON file under benchmarks/results/feddst/; one run
serves all upload caps, read off its cumulative bytes (len of what was sent, masks and headers included).
`table` prints the page's table and writes benchmarks/results/feddst.json.
CIFAR-10 must be in $EDGEPRUNE_DATA; if it is not the published copy, its note is kept with every result.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import feddst_cells
import feddst_judge
import paper_runs

if __name__ == "__main__":
    paper_runs.command("feddst", __doc__, feddst_cells, feddst_judge)
