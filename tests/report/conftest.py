"""Run directories made up from formulas: every number in them can be told by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

MakeRun = Callable[..., Path]


def write_run(
    path: Path,
    *,
    algorithm: str = "fedavg",
    rounds: int = 20,
    devices: list[str] | None = None,
    task: str = "digits",
    pruning: float = 0.0,
    evaluate_every: int = 1,
    rejected: dict[int, dict[str, str]] | None = None,
    joules: dict[str, float] | None = None,
    calibration: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run in which device i of n needs 1 + 4 i/(n-1) s for the whole model and a round lasts as long as its slowest.

    From round 6 on, device i keeps ``1 - pruning * i/(n-1)`` of the channels, and its time and bytes shrink alike.
    Accuracy of round r is 0.98 - 0.88 * 0.8^r. Each device sends 100,000 bytes up and down for the whole model.
    ``joules``: what devices measured in each round; ``calibration``: what each evaluation's cost.
    """
    names = [f"device-{i}" for i in range(10)] if devices is None else devices
    config = {
        "task": {"name": task},
        "data": {"partition": "iid"},
        "algorithm": {"name": algorithm},
        "fleet": {"devices": len(names)},
        "run": {"rounds": rounds, "seed": 3, **more},
    }
    path.mkdir(parents=True)
    (path / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    clock = 0.0
    lines = []
    for round_ in range(1, rounds + 1):
        share = [i / max(1, len(names) - 1) for i in range(len(names))]
        kept = [1.0 - (pruning * s if round_ > 5 else 0.0) for s in share]
        times = [(1 + 4 * s) * k for s, k in zip(share, kept, strict=True)]
        clock += max(times)
        bytes_ = sum(round(100_000 * k) for k in kept)
        out = (rejected or {}).get(round_, {})
        lines.append(
            {
                "round": round_,
                "time_s": clock,
                "accuracy": 0.98 - 0.88 * 0.8**round_ if round_ % evaluate_every == 0 else None,
                "loss": 1.0,
                "upload_bytes": bytes_,
                "download_bytes": bytes_,
                "participants": [name for name in names if name not in out],
                "rejected": out,
                "retention": dict(zip(names, kept, strict=True)),
                "update_time_s": dict(zip(names, times, strict=True)),
                **({"transport": {"energy_j": joules}} if joules else {}),
                "calibration": calibration if round_ % evaluate_every == 0 else None,
            }
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    summary = {"latency_source": {"source": "measured", "machine": {"cpu": "Some CPU"}}}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run("name", ...)`` writes a run directory in the test's folder; see :func:`write_run`."""

    def make(name: str, **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
