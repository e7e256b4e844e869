"""Resumable grids of engine runs: what feddst.py and mpfl.py share.

Every cell is one run of the engine. Its outcome is kept as one JSON file and it is not run again; a run that was
stopped half-way goes on from its checkpoint (`--work`, a folder outside the repository).

    --executor batched --device cuda    the devices of a round at once, on a GPU
    --limit-s 500                       stop by then, with every unfinished run at a checkpoint
    --out DIR                           result files there, in place of benchmarks/results/
    --archive FILE.tar.gz               afterwards: results/ and unfinished runs, work/, in pieces FILE.tar.gz.00 ...
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter, time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adaptcl_judge import VERDICT

RESULTS = Path(__file__).resolve().parents[1] / "results"
GIB = 2**30
BEGIN_S = 25.0  # no cell is begun with less time left
PIECE = 15 * 2**20  # bytes of an archive's piece, and the largest checkpoint in it


@dataclass(frozen=True)
class Cell:
    """One run: ``key`` names its file, ``row`` says which line of the table it belongs to, ``sets`` are overrides.
    ``change`` names a function of the grid that alters what was prepared (a noisy node)."""

    key: str
    row: str
    seed: int
    sets: tuple[str, ...]
    change: str = ""


@dataclass(frozen=True)
class How:
    """``deadline``: seconds of time.time() after which nothing goes on."""

    executor: str = "serial"
    device: str = "cpu"
    deadline: float = math.inf


class OutOfTime(Exception):
    """The run stands at a checkpoint."""


def run_cell(
    cell: Cell,
    work: Path,
    change: Callable[[Any, int], Any] | None = None,
    how: How | None = None,
    finish: Callable[[Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run or go on with ``cell``; what the tables need of it, and what ``finish`` says of the run's folder. Raises
    OutOfTime at the deadline."""
    from edgeprune import engine
    from edgeprune.engine import checkpoint

    folder, how = work / cell.key, how or How()
    began = perf_counter()
    # What error feedback owes makes a checkpoint as large as all clients' models.
    every = 100 if any(text.endswith("feedback=true") for text in cell.sets) else 10
    ways = (f"run.executor={how.executor}", f"run.device={how.device}", f"run.checkpoint_every={every}")
    sets = [f"run.seed={cell.seed}", "run.threads=1", *ways, *cell.sets]

    def watch(at: Any, record: Any) -> None:
        if time() > how.deadline:
            checkpoint.save(folder / checkpoint.FILE, at)
            raise OutOfTime

    if (folder / checkpoint.FILE).exists() and change is None:
        engine.resume(folder, None, watch)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        prepared = engine.prepare(engine.load_experiment(None, sets))
        engine.start(prepared if change is None else change(prepared, cell.seed), folder, watch)
    run = engine.RunDir(folder)
    records, summary = run.metrics(), run.summary()
    outcome = {
        "cell": {"key": cell.key, "row": cell.row, "seed": cell.seed, "sets": list(cell.sets), "change": cell.change},
        "upload_bytes": [record["upload_bytes"] for record in records],
        "download_bytes": summary["download_bytes"],
        "accuracy": {r["round"]: r["accuracy"] for r in records if r["accuracy"] is not None},
        "client_accuracy": {r["round"]: r["client_accuracy"] for r in records if r["client_accuracy"]},
        "facts": {r["round"]: r["facts"] for r in records if "facts" in r},
        "retention": statistics.fmean(records[-1]["retention"].values()),
        "rejected": summary["rejected"],
        "time_s": [record["time_s"] for record in records],
        "utilisation": statistics.fmean(record["utilisation"] or 0.0 for record in records),
        "staleness": histogram(tau for record in records for tau in record.get("staleness", {}).values()),
        "virtual_s": summary["time_s"],
        "run_wall_s": summary["wall_s"],  # of the last process alone, where a run was resumed
        "cell_wall_s": perf_counter() - began,
        "data_note": data_note(run.config["task"]["name"]),
        "executor": summary["executor"],
        "device": summary["device"],
        "machine": summary["machine"],
        **({"more": finish(run)} if finish else {}),
    }
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def histogram(values: Iterable[int]) -> dict[int, int]:
    """How often each value occurs, from the smallest."""
    return dict(sorted(Counter(values).items()))


@cache
def data_note(task: str) -> str:
    """What there is to say about this copy of the task's data."""
    from edgeprune import tasks

    return tasks.get(task).load_data().note


def _run_and_keep(
    cell: Cell,
    into: Path,
    work: Path,
    changes: dict[str, Callable[[Any, int], Any]],
    how: How,
    finish: Callable[[Any], dict[str, Any]] | None = None,
) -> str:
    """The cell's key; empty where time was too short to begin or to end."""
    import torch

    torch.set_num_threads(1)
    path = into / f"{cell.key}.json"
    if time() > how.deadline - BEGIN_S:
        return ""
    try:
        outcome = run_cell(cell, work, changes.get(cell.change), how, finish)
    except OutOfTime:
        return ""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(rounded(outcome)))
    beside.replace(path)
    return cell.key


def run_all(
    cells: Sequence[Cell],
    name: str,
    processes: int,
    work: Path | None = None,
    changes: dict[str, Callable[[Any, int], Any]] | None = None,
    how: How | None = None,
    out: Path | None = None,
    finish: Callable[[Any], dict[str, Any]] | None = None,
) -> None:
    """Run every cell that has no result yet, in order."""
    into = out or RESULTS / name
    into.mkdir(parents=True, exist_ok=True)
    work = work or work_folder(name)
    work.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if not any((at / f"{cell.key}.json").exists() for at in (into, RESULTS / name))]
    print(f"{len(todo)} of {len(cells)} cells to run", flush=True)
    one = partial(_run_and_keep, into=into, work=work, changes=changes or {}, how=how or How(), finish=finish)
    if processes == 1:
        for i, cell in enumerate(todo, start=1):
            print(f"{i}/{len(todo)} {one(cell) or 'no time left'}", flush=True)
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=16) as pool:
        for i, key in enumerate(pool.imap_unordered(one, todo), start=1):
            print(f"{i}/{len(todo)} {key or 'no time left'}", flush=True)


def work_folder(name: str) -> Path:
    """Where unfinished runs are if nothing else is said."""
    return Path(tempfile.gettempdir()) / f"edgeprune-{name}-{os.getuid()}"


def archive(target: Path, results: Path, work: Path) -> list[Path]:
    """Pack the result files (results/) and the unfinished runs (work/) into ``target``, cut into pieces that
    ``cat target.* | tar xz`` puts together again. A run whose checkpoint is too large to travel begins anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz", compresslevel=3) as tar:
        for path in sorted(results.glob("*.json")):
            tar.add(path, f"results/{path.name}")
        for folder in sorted(work.iterdir()):
            checkpoint = folder / "checkpoint.safetensors"
            if checkpoint.exists() and checkpoint.stat().st_size <= PIECE:
                tar.add(folder, f"work/{folder.name}")
    pieces = []
    with target.open("rb") as file:
        while part := file.read(PIECE):
            pieces.append(target.with_name(f"{target.name}.{len(pieces):02}"))
            pieces[-1].write_bytes(part)
    target.unlink()
    return pieces


def load(name: str) -> dict[str, list[dict[str, Any]]]:
    """Every outcome there is, by row, in order of seed."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / name).glob("*.json")):
        outcome = json.loads(path.read_text())
        rows.setdefault(outcome["cell"]["row"], []).append(outcome)
    return {row: sorted(found, key=lambda o: o["cell"]["seed"]) for row, found in rows.items()}


def accuracy_at(outcome: dict[str, Any], cap: float) -> float | None:
    """Accuracy in per cent when ``cap`` bytes had been uploaded: mean of the last three evaluations up to there; None
    where the run ended before."""
    total, reached = 0, 0
    for round_, sent in enumerate(outcome["upload_bytes"], start=1):
        total += sent
        if total > cap:
            break
        reached = round_
    if total < cap * 0.98:
        return None
    before = [value for round_, value in outcome["accuracy"].items() if int(round_) <= reached]
    return 100 * statistics.fmean(before[-3:]) if before else None


def final_accuracy(outcome: dict[str, Any]) -> float:
    """Mean of the last three evaluations, in per cent."""
    return 100 * statistics.fmean(list(outcome["accuracy"].values())[-3:])


def pairs(of: dict[str, list[dict[str, Any]]], ours: str, theirs: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Outcomes of the same seeds, of the two rows."""
    other = {o["cell"]["seed"]: o for o in of.get(theirs, [])}
    return [(o, other[o["cell"]["seed"]]) for o in of.get(ours, []) if o["cell"]["seed"] in other]


def paired(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], cap: float, their_cap: float
) -> list[float]:
    """Differences in points, seed by seed, at ``cap`` and ``their_cap`` bytes."""
    other = {o["cell"]["seed"]: accuracy_at(o, their_cap) for o in theirs}
    found = []
    for o in ours:
        a, b = accuracy_at(o, cap), other.get(o["cell"]["seed"])
        if a is not None and b is not None:
            found.append(a - b)
    return found


def rounded(value: Any) -> Any:
    """``value`` with every number to six digits, none for one that is not finite: the files are for reading and git."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def claims(judged: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table of claims, and what is to be said about the data."""
    lines = ["", "| claim | what | value | bar | |", "|---|---|---|---|---|"]
    for name, claim in judged.items():
        value = claim["value"] if isinstance(claim["value"], list) else [claim["value"]]
        shown = ", ".join(f"{v:.4g}" for v in value)
        lines.append(f"| {name} | {claim['what']} | {shown} | {claim['bar']} | {VERDICT[claim['holds']]} |")
    notes = {o["data_note"] for outcomes in rows.values() for o in outcomes if o["data_note"]}
    return [*lines, *(f"\nData: {note}" for note in sorted(notes))]


def fill(path: Path, name: str, text: str) -> None:
    """Put ``text`` in place of what stands between the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    first, last = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = path.read_text().partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise SystemExit(f"{path}: no lines {first.strip()} and {last.strip()}")
    path.write_text(f"{before}{first}{text}\n{last}{after}")


def command(name: str, about: str | None, cells: Any, judge: Any) -> None:
    """The command line of a paper's benchmark: ``cells`` and ``judge`` are its modules."""
    began = time()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "list", "table"))
    parser.add_argument("--grid", default="all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", help="only these, as 0,1")
    parser.add_argument("--executor", default="serial", choices=("serial", "batched"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--limit-s", type=float, default=math.inf, help="stop by then, unfinished runs at a checkpoint")
    parser.add_argument("--work", type=Path, help="folder for unfinished runs")
    parser.add_argument("--out", type=Path, help="folder for result files")
    parser.add_argument("--into", type=Path, help="table: a page to put it in, between its marks")
    parser.add_argument("--archive", type=Path, help="pack results and unfinished runs into this .tar.gz, in pieces")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        rows = judge.load()
        body = {"claims": judge.judge(rows), "seeds": {row: len(found) for row, found in rows.items()}}
        (RESULTS / f"{name}.json").write_text(json.dumps(rounded(body), indent=1) + "\n")
        shown = judge.table(rows)
        print(shown)
        if arguments.into:
            fill(arguments.into, name, shown)
        return
    chosen = cells.cells(arguments.grid)
    if arguments.seeds:
        chosen = [cell for cell in chosen if str(cell.seed) in arguments.seeds.split(",")]
    if arguments.verb == "list":
        for cell in chosen:
            print(cell.key, *cell.sets)
        return
    how = How(arguments.executor, arguments.device, began + arguments.limit_s)
    changes = getattr(cells, "CHANGES", None)
    finish = getattr(cells, "FINISH", None)
    run_all(chosen, name, arguments.processes, arguments.work, changes, how, arguments.out, finish)
    if arguments.archive:
        results, work = arguments.out or RESULTS / name, arguments.work or work_folder(name)
        for piece in archive(arguments.archive, results, work):
            print(f"{piece}: {piece.stat().st_size:,} B")
