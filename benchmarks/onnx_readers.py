"""What reads the files of pruned networks: both of torch's exporters, ONNX Runtime now and 1.16.

    python benchmarks/onnx_readers.py [--old-python PATH] [--quick]

Every network of tests/pruning (the small ones and the zoo) and, without --quick, those of structured_networks and the
installed ones of structured_zoo, cut to half of its channels, by each exporter and for jetpack6 (opset 17, IR 8) and
jetpack7; agreement with torch at batches 1, 2 and 7. Where no file with a free batch can be had, one for a single row.
ONNX Runtime 1.16, what JetPack 5 boards carry, needs a Python of its own (3.8 to 3.11, numpy 1): the one given, which
must have it, else a virtual environment that pip fills. Where that fails it says so and skips that reader.
Writes benchmarks/results/onnx_readers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pruning"))
import structured_zoo  # noqa: E402
from structured_networks import NETWORKS  # noqa: E402

from edgeprune import EdgePruneError  # noqa: E402
from edgeprune.export import check_parity, export_onnx  # noqa: E402
from edgeprune.export._trace import EXPORTERS  # noqa: E402
from edgeprune.pruning import prune  # noqa: E402

OLD = "onnxruntime==1.16.3"
# Run by the old Python: loads every file and compares with what torch gave. One line of JSON a file.
READER = """
import json, sys
import numpy as np, onnxruntime as ort
for path, arrays in json.load(open(sys.argv[1])):
    try:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = np.load(arrays)
        out = session.run(None, {e.name: given["in%d" % i] for i, e in enumerate(session.get_inputs())})[0]
        error, largest = np.abs(out - given["out"]).max(), np.abs(given["out"]).max()
        print(json.dumps({"error": float(error), "largest": float(largest)}))
    except Exception as error:
        print(json.dumps({"refused": str(error).splitlines()[0][:200]}))
"""


def old_python(given: str | None, folder: Path) -> str | None:
    """A Python that has ONNX Runtime 1.16, or None with the reason on the terminal."""
    if given is None:
        if not (3, 8) <= sys.version_info[:2] <= (3, 11):
            print(f"ONNX Runtime 1.16: skipped, it has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}")
            return None
        given = str(folder / "old" / "bin" / "python")
        made = subprocess.run([sys.executable, "-m", "venv", str(folder / "old")], capture_output=True, text=True)
        done = made.returncode or subprocess.run(
            [given, "-m", "pip", "install", "-q", OLD, "numpy<2"], capture_output=True, text=True
        )
        if made.returncode or done.returncode:  # type: ignore[union-attr]
            print(f"ONNX Runtime 1.16: skipped, {OLD} cannot be installed here")
            return None
    check = subprocess.run(
        [given, "-c", "import onnxruntime as o; print(o.__version__)"], capture_output=True, text=True
    )
    if not check.stdout.startswith("1.16"):
        print(f"ONNX Runtime 1.16: skipped, {os.path.basename(given)} has {check.stdout.strip() or 'none'}")
        return None
    return given


def networks(quick: bool) -> dict[str, Any]:
    """Name -> (factory, inputs)."""
    import pruning_cases
    import test_zoo

    small = {n: (f, lambda s=s: (torch.randn(s),)) for n, (f, s) in pruning_cases.CASES.items()}
    large = {} if quick else {n: (f, lambda: (torch.randn(2, 3, 224, 224),)) for n, f in NETWORKS.items()}
    if not quick:
        full = {n: f for n, f in structured_zoo.networks().items() if not n.startswith("tests/")}
        large |= {n: (lambda f=f: f()[0], lambda f=f: f()[1]) for n, f in full.items() if n not in large}
    return {**small, **{f"zoo {n}": v for n, v in test_zoo.ZOO.items()}, **large}


def export(name: str, factory: Any, inputs: Any, folder: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model, x = factory().eval(), inputs()
    sub = prune(model, x, keep=0.5)
    small = sub.model.eval()
    name = name.replace("/", " ")
    answers = {batch: folder / f"{name}-{batch}.npz" for batch in (None, 1)}
    for batch, arrays in answers.items():
        feed = tuple(t[:batch] for t in x)
        with torch.no_grad():
            out = small(*feed)
        out = out if isinstance(out, torch.Tensor) else out[0]
        np.savez(arrays, out=out.numpy(), **{f"in{i}": t.numpy() for i, t in enumerate(feed)})
    rows = []
    for target in ("jetpack6", "jetpack7"):
        for exporter in EXPORTERS:
            path = folder / f"{name}-{target}-{exporter}.onnx"
            row: dict[str, Any] = {"network": name, "target": target, "exporter": exporter}
            for batch, arrays in answers.items():
                try:
                    export_onnx(small, x, path, target, exporter=exporter, batch=batch)
                    row |= {"agrees": True, "max_abs_diff": check_parity(small, path, x).max_abs_diff, "batch": batch}
                    row["path"], row["arrays"] = str(path), str(arrays)
                    break
                except EdgePruneError as error:
                    why = str(error)[:240].replace(str(folder), "")
                    row |= {"agrees": False, "why": row.get("why", why)}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old-python", help="has ONNX Runtime 1.16; made with pip when left out")
    parser.add_argument("--quick", action="store_true", help="the small networks only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = {**harness.machine(), "onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows: list[dict[str, Any]] = []
        for name, (factory, inputs) in networks(arguments.quick).items():
            try:
                rows += export(name, factory, inputs, folder)
            except EdgePruneError as error:
                rows.append({"network": name, "agrees": False, "why": f"not pruned: {error}"[:240]})
        python = old_python(arguments.old_python, folder)
        written = [row for row in rows if "path" in row]
        if python is not None:
            (folder / "list.json").write_text(json.dumps([(row["path"], row["arrays"]) for row in written]))
            (folder / "reader.py").write_text(READER)
            done = subprocess.run(
                [python, "reader.py", "list.json"], cwd=folder, capture_output=True, text=True, check=True
            )
            for row, line in zip(written, done.stdout.splitlines(), strict=True):
                answer = json.loads(line.replace(f"{folder}{os.sep}", ""))
                close = "error" in answer and answer["error"] <= 1e-5 + 1e-3 * answer["largest"]
                row["onnxruntime_1_16"] = (
                    "agrees" if close else answer.get("refused", f"differs by {answer.get('error')}")
                )
        about["old_reader"] = OLD if python else "skipped"
        for row in rows:
            row.pop("path", None)
            row.pop("arrays", None)
    for target in ("jetpack6", "jetpack7"):
        for exporter in EXPORTERS:
            mine = [r for r in rows if (r.get("target"), r.get("exporter")) == (target, exporter)]
            good = [r for r in mine if r["agrees"]]
            old = [r for r in good if r.get("onnxruntime_1_16") == "agrees"]
            one = sum(r["batch"] == 1 for r in good)
            print(
                f"{target} {exporter:12s} {len(good)} of {len(mine)} agree ({one} for one row only), {len(old)} of "
                "them in ONNX Runtime 1.16"
            )
    for row in rows:
        old = row.get("onnxruntime_1_16", "agrees")
        if not row["agrees"] or old != "agrees":
            print(row["network"], row.get("target", ""), row.get("exporter", ""), row.get("why", old))
    harness.write_result("onnx_readers", about, rows)


if __name__ == "__main__":
    main()
