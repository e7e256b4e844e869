"""FedDST's claims, cell by cell (docs/algorithms/feddst.md): resumable, all methods with the same splits and samples.

    python benchmarks/papers/feddst.py run [--grid headline,softmax,controls,fashion,where] [--processes 2]
    python benchmarks/papers/feddst.py list [--grid ...]
    python benchmarks/papers/feddst.py table

Every cell (task, row, seed) is one run of the engine, kept as one JSON file under benchmarks/results/feddst/; one run
serves all upload caps, read off its cumulative bytes (len of what was sent, masks and headers included).
`table` prints the README's table and writes benchmarks/results/feddst.json.
CIFAR-10 must be in $EDGEPRUNE_DATA; if it is not the published copy, its note is kept with every result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import feddst_cells
import feddst_judge
import paper_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "list", "table"))
    parser.add_argument("--grid", default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for unfinished runs")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        rows = feddst_judge.load()
        body = {"claims": feddst_judge.judge(rows), "seeds": {row: len(found) for row, found in rows.items()}}
        path = paper_runs.RESULTS / "feddst.json"
        path.write_text(json.dumps(paper_runs.rounded(body), indent=1) + "\n")
        print(feddst_judge.table(rows))
        return
    cells = feddst_cells.cells(arguments.grid)
    if arguments.verb == "list":
        for cell in cells:
            print(cell.key, *cell.sets)
        return
    paper_runs.run_all(cells, "feddst", arguments.processes, arguments.work)


if __name__ == "__main__":
    main()
