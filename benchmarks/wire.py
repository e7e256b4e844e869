"""What messages cost: bytes against entropy, FedDST's upload, and a merge of 1,000 updates in a few models of memory.

    python benchmarks/wire.py [sizes] [feddst] [merge]      all of them without an argument

Writes benchmarks/results/wire.json (parts that are not run keep their last figures).

Entropy. `random`: every element is kept with probability d, H(d) = -d log2 d - (1 - d) log2 (1 - d) bits an element.
`runs`: a two-state Markov chain whose kept runs are 16 long on average, leave = 1/16, enter = leave d / (1 - d), which
has (1 - d) H(enter) + d H(leave) bits an element. `rows`: whole rows of 64 are kept with probability d: H(d) / 64.
Values count as they are (float32 32 bits; int8 8 bits and a 32-bit scale for 256): gradients leave nothing to squeeze.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from edgeprune import wire

N = 4_000_000
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
RUN, ROW = 16, 64
UPDATES, DISTINCT, DENSITY, SAMPLES = 1000, 8, 0.1, 100


def entropy(p: float) -> float:
    """Bits of one draw with probability ``p``."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def masks(kind: str, density: float, seed: int) -> tuple[np.ndarray, float]:
    """(bool [N], entropy in bits of such a mask)."""
    random = np.random.default_rng(seed)
    if kind == "random":
        return random.random(N) < density, N * entropy(density)
    if kind == "rows":
        return np.repeat(random.random(N // ROW) < density, ROW), N // ROW * entropy(density)
    leave, enter = 1 / RUN, density / RUN / (1 - density)
    pairs = int(N * density / RUN * 1.2) + 100
    lengths = np.stack([random.geometric(enter, pairs), random.geometric(leave, pairs)], 1).reshape(-1)
    kept = np.repeat(np.arange(2 * pairs) % 2 == 1, lengths)[:N]
    assert len(kept) == N
    return kept, N * ((1 - density) * entropy(enter) + density * entropy(leave))


def sizes() -> list[dict[str, Any]]:
    """len(blob) over (entropy of the positions + values), for every kind of mask, density and coding."""
    rows = []
    x = torch.randn(N, generator=torch.Generator().manual_seed(0))
    for kind in ("random", "runs", "rows"):
        for density in DENSITIES:
            kept, bits = masks(kind, density, 1)
            mask, count = wire.to_bitmap(torch.from_numpy(kept)), int(kept.sum())
            row: dict[str, Any] = {"mask": kind, "density": density, "kept": count, "entropy_bytes": bits / 8}
            for dtype in ("fp32", "int8"):
                packed = {"w": wire.pack_tensor(x, mask, dtype)}
                blob = wire.encode(wire.Message("state", 0, "", "", {}, packed=packed))
                values = 4 * count if dtype == "fp32" else count + 4 * -(-count // 256)
                row[dtype] = {"bytes": len(blob), "values": values, "ratio": len(blob) / (values + bits / 8)}
                row["positions"] = _coding(blob)
                row["position_bytes"] = len(blob) - values - 76 - 29
            rows.append(row)
            print(
                f"{kind:6} {density:5.3f} {row['positions']:6} {row['position_bytes'] / (bits / 8):.3f} of entropy; "
                f"whole: float32 {row['fp32']['ratio']:.3f}, int8 {row['int8']['ratio']:.3f}",
                flush=True,
            )
    return rows


def _coding(blob: bytes) -> str:
    """The positions' coding of a message of one tensor: the fifth byte of its only entry."""
    return ("all", "known", "bitmap", "gaps", "runs", "zstd", "units")[blob[72 + 4]]


# ---- FedDST ---------------------------------------------------------------------------------------------------------

# conv 3-6 5x5, conv 6-16 5x5, linear 6400-120-84-10; densities of the public code's "ERK" at S = .8, rounded to the
# figure's 156,399 active weights of 781,770; 236 biases.
FEDDST = {
    "conv1": ((6, 3, 5, 5), 104),
    "conv2": ((16, 6, 5, 5), 504),
    "fc1": ((120, 6400), 153_431),
    "fc2": ((84, 120), 2_116),
    "fc3": ((10, 84), 244),
}


def feddst() -> dict[str, Any]:
    """One upload at S = .8: masks known to both sides, and in a readjustment round with the masks."""
    random = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for known in (True, False):
        packed, bitmaps = {}, {}
        for name, (shape, kept) in FEDDST.items():
            n = math.prod(shape)
            chosen = torch.zeros(n, dtype=torch.bool)
            chosen[torch.randperm(n, generator=random)[:kept]] = True
            key = f"{name}.weight"
            bitmaps[key] = wire.to_bitmap(chosen)
            packed[key] = wire.pack_tensor(torch.randn(shape, generator=random), bitmaps[key], known=known)
        biases = {f"{name}.bias": torch.zeros(shape[0]) for name, (shape, _) in FEDDST.items()}
        header = {"loss": 1.2345678901234567, "steps": 20}
        identity = wire.mask_id(bitmaps) if known else ""
        update = wire.Message("update", 100, "device-17", "", biases, header, 40, identity, b"", packed)
        values = 4 * (sum(kept for _, kept in FEDDST.values()) + sum(x.numel() for x in biases.values()))
        size = len(wire.encode(update))
        found["known_masks" if known else "with_masks"] = {"bytes": size, "values": values, "rest": size - values}
    bitmap = sum(math.prod(shape) for shape, _ in FEDDST.values()) / 8
    masks_sent = found["with_masks"]["bytes"] - found["known_masks"]["bytes"]
    found["mask_bytes"] = {"sent": masks_sent, "one_bit_each": bitmap}
    # A readjustment every 15 rounds in the first half of the run.
    found["mask_share_amortised"] = masks_sent / 15 / 2 / found["known_masks"]["bytes"]
    found["mask_share_amortised_while_readjusting"] = masks_sent / 15 / found["known_masks"]["bytes"]
    print(json.dumps(found, indent=1))
    return found


# ---- merge ----------------------------------------------------------------------------------------------------------


def resnet18() -> dict[str, tuple[int, ...]]:
    """Parameters of a ResNet-18 for 32x32 images: 11.17 M."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "bn1.weight": (64,), "bn1.bias": (64,)}
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            at = f"layer{stage + 1}.{block}"
            for i, (a, k) in enumerate(((inputs, 3), (width, 3), (inputs, 1))):
                if k == 1 and inputs == width:
                    continue
                shapes[f"{at}.conv{i}.weight"] = (width, a, k, k)
                shapes[f"{at}.bn{i}.weight"] = shapes[f"{at}.bn{i}.bias"] = (width,)
            inputs = width
    return shapes | {"fc.weight": (10, 512), "fc.bias": (10,)}


def merge() -> dict[str, Any]:
    """1,000 updates of ResNet-18 at 10 %, float32 values and gap-coded positions, merged in a process of its own."""
    shapes = resnet18()
    elements = sum(map(math.prod, shapes.values()))
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(DISTINCT):
            random = torch.Generator().manual_seed(seed)
            state = {name: 0.05 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
            kept = {name: torch.rand(shape, generator=random) < DENSITY for name, shape in shapes.items()}
            packed = {name: wire.pack_tensor(x, wire.to_bitmap(kept[name])) for name, x in state.items()}
            update = wire.Message("update", 1, f"device-{seed}", "", {}, samples=SAMPLES, packed=packed)
            (Path(folder) / f"{seed}.bin").write_bytes(wire.encode(update))
        size = (Path(folder) / "0.bin").stat().st_size
        command = [sys.executable, __file__, "merge-child", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = {"parameters": elements, "model_bytes": 4 * elements, "update_bytes": size}
    found |= json.loads(done.stdout)
    for key in ("peak", "final"):
        found[f"{key}_models"] = found[f"{key}_bytes"] / (4 * elements)
    found["add_bytes_per_s"] = size / found["add_s"]
    print(json.dumps(found, indent=1))
    return found


def merge_child(folder: str) -> None:
    """Reads, decodes, adds, finishes. Memory is what the process takes beyond the model it already held."""
    torch.set_num_threads(1)
    shapes = resnet18()
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for x in base.values():
        x.fill_(0.01)
    blob = (Path(folder) / "0.bin").read_bytes()
    update = wire.decode(blob, kind="update", keep_packed=True)  # loads whatever is loaded on first use
    del update, blob
    before = _resident()
    accumulator = wire.Accumulator(base, total_weight=UPDATES * SAMPLES, reach=1.0)
    decode_s = add_s = 0.0
    for i in range(UPDATES):
        blob = (Path(folder) / f"{i % DISTINCT}.bin").read_bytes()
        start = time.perf_counter()
        update = wire.decode(blob, kind="update", dense_limit=64 << 20, keep_packed=True)
        middle = time.perf_counter()
        accumulator.add({**update.tensors, **update.packed}, update.samples)
        add_s += time.perf_counter() - middle
        decode_s += middle - start
        del blob, update
    start = time.perf_counter()
    merged = accumulator.finish(base)
    finish_s = time.perf_counter() - start
    assert all(bool(torch.isfinite(x).all()) for x in merged.values())
    peak = int(_status("VmHWM")) * 1024
    print(
        json.dumps(
            {
                "updates": UPDATES,
                "peak_bytes": peak - before,
                "final_bytes": _resident() - before,
                "decode_s": decode_s / UPDATES,
                "add_s": add_s / UPDATES,
                "finish_s": finish_s,
            }
        )
    )


def _status(key: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{key}:"))


def _resident() -> int:
    return int(_status("VmRSS")) * 1024


def main(parts: list[str]) -> None:
    """Runs the parts and writes the result file."""
    if parts[:1] == ["merge-child"]:
        merge_child(parts[1])
        return
    about = harness.machine()
    path = harness.RESULTS / "wire.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"][0] if path.exists() else {}
    for name, work in (("sizes", sizes), ("feddst", feddst), ("merge", merge)):
        if not parts or name in parts:
            results[name] = work()
    harness.write_result("wire", about, [results])


if __name__ == "__main__":
    main(sys.argv[1:])
