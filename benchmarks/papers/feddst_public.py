"""Seconds of one FedDST round: this package beside the authors' public code, same machine, threads, data and settings.

    git clone https://github.com/bibikar/feddst CHECKOUT
    python benchmarks/papers/feddst_public.py --code CHECKOUT [--rounds 4] [--clients 20] [--threads 1]

20 of 400 clients with two classes of 20 images, 10 epochs of batches of 32, CIFAR-10 network at S = 0.8, no
evaluation. The public script runs as it is, in a process of its own. Put in its way are only what it cannot do
without a network or with today's numpy: its `datasets` module (the same clients' images, as tensors already
normalised, in torch's own DataLoader: less work than its own), torchvision (imported, not used then), tqdm (which
also takes the times), and the name numpy.int. Ours runs before and after it, since the machine's pace drifts. Each
run's first round, which builds things, is left out, as is our last, which evaluates; medians are compared. Rounds
with a readjustment are told apart. Writes benchmarks/results/feddst_public.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import torch

INTERVAL = 3  # rounds between readjustments, so that a short run has some
CLIENTS, EPOCHS = 400, 10

RUNNER = """
import json, runpy, sys, time, types
import numpy, torch, torch._dynamo
numpy.int = int
torch.set_num_threads({threads})
times = []
def tqdm(iterable, *args, **kwargs):
    served = isinstance(iterable, range) and len(iterable) == {rounds}
    for item in iterable:
        if served:
            times.append(time.perf_counter())
        yield item
    if served:
        times.append(time.perf_counter())
sys.modules['tqdm'] = types.SimpleNamespace(tqdm=tqdm)
sys.modules['torchvision'] = types.ModuleType('torchvision')
def get_dataset(*args, **kwargs):
    held = torch.load({data!r})
    make = lambda x, y: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    return {{i: (torch.device('cpu'), make(x, y), make(x, y)) for i, (x, y) in enumerate(held)}}
sys.modules['datasets'] = types.SimpleNamespace(get_dataset=get_dataset)
sys.path.insert(0, {code!r})
sys.argv = ['dst.py', '--dataset', 'cifar10', '--sparsity', '0.8', '--readjustment-ratio', '0.01',
            '--rounds-between-readjustments', '{interval}', '--clients', '{clients}', '--rounds', '{rounds}',
            '--epochs', '{epochs}', '--device', 'cpu', '--no-eval', '--outfile', {log!r}]
runpy.run_path({script!r}, run_name='__main__')
print('TIMES', json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def experiment(clients: int, rounds: int, threads: int) -> Any:
    """Our side's settings."""
    from edgeprune import engine

    sets = [
        "task.name=cifar10-feddst",
        "data.partition=classes",
        f"fleet.devices={CLIENTS}",
        "algorithm.name=feddst",
        f"algorithm.sample={clients}",
        f"algorithm.epochs={EPOCHS}",
        f"algorithm.interval={INTERVAL}",
        f"run.rounds={rounds}",
        f"run.threads={threads}",
        f"run.evaluate_every={rounds}",
    ]
    return engine.load_experiment(None, sets)


def public_times(code: Path, prepared: Any, clients: int, rounds: int, threads: int) -> list[float]:
    """Seconds of every round of the public code."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.pt"
        torch.save([(part.normalise(part.x), part.y) for part in prepared.local.values()], data)
        text = RUNNER.format(
            threads=threads,
            rounds=rounds,
            clients=clients,
            epochs=EPOCHS,
            interval=INTERVAL,
            data=str(data),
            code=str(code),
            script=str(code / "dst.py"),
            log=str(Path(folder) / "log"),
        )
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=folder)
    line = next((line for line in done.stdout.splitlines() if line.startswith("TIMES ")), None)
    if line is None:
        raise SystemExit(f"the public code did not finish:\n{done.stderr[-2000:]}")
    times: list[float] = json.loads(line.removeprefix("TIMES "))
    return times


def own_times(prepared: Any) -> list[float]:
    """Seconds of every round of ours, everything included: packing, unpacking, merging, records, checkpoints."""
    from edgeprune import engine

    marks = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        engine.start(prepared, Path(folder) / "run", lambda at, record: marks.append(time.perf_counter()))
    return [b - a for a, b in zip(marks, marks[1:], strict=False)]


def main() -> None:
    """Both sides, in turn; prints the medians and writes the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    about = harness.machine()
    from edgeprune import engine

    how = experiment(arguments.clients, arguments.rounds, arguments.threads)
    prepared = engine.prepare(how)
    ours = [own_times(prepared)]
    theirs = public_times(arguments.code.resolve(), prepared, arguments.clients, arguments.rounds, arguments.threads)
    ours.append(own_times(engine.prepare(how)))
    last = arguments.rounds - 1
    plain = [t for times in ours for r, t in enumerate(times, 1) if 1 < r <= last and r % INTERVAL]
    moving = [t for times in ours for r, t in enumerate(times, 1) if 1 < r <= last and not r % INTERVAL]
    public_plain = [t for r, t in enumerate(theirs) if r > 0 and (r - 1) % INTERVAL]
    public_moving = [t for r, t in enumerate(theirs) if r > 0 and not (r - 1) % INTERVAL]
    row = {
        "clients": arguments.clients,
        "threads": arguments.threads,
        "ours_s": statistics.median(plain),
        "public_s": statistics.median(public_plain),
        "ours_readjusting_s": statistics.median(moving),
        "public_readjusting_s": statistics.median(public_moving),
        "ours_all": ours,
        "public_all": theirs,
    }
    row["times_faster"] = row["public_s"] / row["ours_s"]
    print(json.dumps({k: v for k, v in row.items() if not k.endswith("_all")}, indent=1))
    if not arguments.no_write:
        about["data_note"] = prepared.data.note
        harness.write_result("feddst_public", about, [row])


if __name__ == "__main__":
    main()
