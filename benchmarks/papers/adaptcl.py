"""AdaptCL's claims, cell by cell (docs/algorithms/adaptcl.md): resumable, both sides on one clock and one set of seeds.

    python benchmarks/papers/adaptcl.py run  [--tasks digits,fashion-cnn] [--processes 2]
    python benchmarks/papers/adaptcl.py table

Every cell (task, split, sigma, seed, method) is a real run of the engine; its outcome is kept as one JSON file under
benchmarks/results/adaptcl/ and is not run again. `table` turns them into benchmarks/results/adaptcl.json and prints
the table of docs/measured.md.

FedAvg's weights do not depend on how slow a device is (everybody trains everything, the server waits for all). So it
is trained once for each (task, split, seed), and its clock is run again for each sigma by charging the same bytes and
steps to that fleet; `tests/benchmarks/test_adaptcl.py` holds this against a real run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import adaptcl_cells
import adaptcl_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--tasks", default="digits,fashion-cnn")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.verb == "run":
        adaptcl_cells.run(arguments.tasks.split(","), arguments.processes)
    else:
        print(adaptcl_judge.table(adaptcl_judge.load_cells()))


if __name__ == "__main__":
    main()
