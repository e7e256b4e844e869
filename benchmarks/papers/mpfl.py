"""MPFL's claims, cell by cell (docs/algorithms/mpfl.md): resumable, all methods with the same splits and samples.

    python benchmarks/papers/mpfl.py run [--grid fashion,dirichlet,vgg,resnet] [--processes 2]
    python benchmarks/papers/mpfl.py list [--grid ...]
    python benchmarks/papers/mpfl.py table

Every cell (task, row, seed) is one run of the engine, kept as one JSON file under benchmarks/results/mpfl/; search
and training are rounds of it, and bytes are len of what was sent.
`table` prints the README's table and writes benchmarks/results/mpfl.json.
CIFAR-10 must be in $EDGEPRUNE_DATA; if it is not the published copy, its note is kept with every result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import mpfl_cells
import mpfl_judge
import paper_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "list", "table"))
    parser.add_argument("--grid", default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for unfinished runs")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        rows = mpfl_judge.load()
        body = {"claims": mpfl_judge.judge(rows), "seeds": {row: len(found) for row, found in rows.items()}}
        path = paper_runs.RESULTS / "mpfl.json"
        path.write_text(json.dumps(paper_runs.rounded(body), indent=1) + "\n")
        print(mpfl_judge.table(rows))
        return
    cells = mpfl_cells.cells(arguments.grid)
    if arguments.verb == "list":
        for cell in cells:
            print(cell.key, *cell.sets)
        return
    paper_runs.run_all(cells, "mpfl", arguments.processes, arguments.work, mpfl_cells.CHANGES)


if __name__ == "__main__":
    main()
